//! Asking the sidecar over HTTP, and reading its metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::node::Node;
use super::wait::{PATIENCE, scaled};

/// An answer by HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Of a request over `stream`.
    pub fn of(mut stream: impl Read + Write, method: &str, path: &str) -> Self {
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n").expect("send a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {head:?}"));
        Self { status, head: head.into(), body: body.into() }
    }
}

/// GET from a node's sidecar.
pub fn get(node: &Node, path: &str) -> Answer {
    let stream = UnixStream::connect(node.metrics()).expect("connect to the metrics' socket");
    stream.set_read_timeout(Some(scaled(PATIENCE))).expect("a timeout");
    Answer::of(stream, "GET", path)
}

/// A page of metrics.
#[derive(Debug)]
pub struct Page {
    pub text: String,
    /// By name and labels as they are written there; tests compare whole numbers.
    values: BTreeMap<String, i64>,
}

impl Page {
    pub fn of(node: &Node) -> Self {
        let answer = get(node, "/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let values = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
            #[allow(clippy::cast_possible_truncation)] // sums of seconds, which no test asks for
            (name.to_owned(), value as i64)
        });
        Self { values: values.collect(), text: answer.body }
    }

    /// The one value of that name and these labels (in the order of their names).
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in\n{}", self.text))
    }

    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<i64> {
        let mut key = name.to_owned();
        for (place, (label, value)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            write!(key, "{before}{label}=\"{value}\"").expect("a string");
        }
        key.push_str(if labels.is_empty() { "" } else { "}" });
        self.values.get(&key).copied()
    }

    /// The names of the families there are.
    pub fn families(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    /// Every counter's value, by name and labels.
    pub fn counters(&self) -> BTreeMap<&str, i64> {
        let is_counter = |name: &str| name.split('{').next().is_some_and(|name| name.ends_with("_total"));
        self.values.iter().filter(|(name, _)| is_counter(name)).map(|(name, value)| (name.as_str(), *value)).collect()
    }
}
