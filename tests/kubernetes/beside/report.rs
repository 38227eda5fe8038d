//! The page that the measurements are written to.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::Run;

/// All contenders' numbers of the last runs.
const KNOWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/benchmarks-kubernetes.json");
/// Those of many Services.
const MANY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/benchmarks-kubernetes-many.json");
/// Those of what requests cost.
const COSTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/benchmarks-kubernetes-costs.json");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks-kubernetes.md");

/// What one contender did.
pub struct Column {
    title: String,
    /// The machine's, before it began.
    load: String,
    lines: Vec<(String, String)>,
}

impl Column {
    pub fn new(title: String) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self { title, load: load.split(' ').next().unwrap_or_default().to_owned(), lines: Vec::new() }
    }

    pub fn say(&mut self, line: &str, value: String) {
        eprintln!("{}: {line}: {value}", self.title);
        self.lines.push((line.to_owned(), value));
    }

    fn json(&self) -> Value {
        json!({ "title": self.title, "load": self.load, "lines": self.lines })
    }
}

const TEXT: &str = "\
# Benchmarks beside MetalLB

Written by `./install.sh bench --kubernetes`. Each contender has a [cluster of Kubernetes' own parts](design/test-cluster.md) to itself: two nodes, kube-proxy in nftables mode, four pods,
two a node, and a client on the LAN that is no node. MetalLB runs in L2 mode, of its own module's programs and manifests; the client calls the Service's address.

*Live*: 60 connections, each of which is asked once more 10 seconds after the event; broken is one that was reset, or silent for 30 seconds. *New*: 50 connections a second meanwhile,
failed is one without an answer within 5 seconds. *ARP after*: when another node answered the client, which asked all the time. Pods that end take their own connections with them, and a
node without a link those of its pods: what counts there is the number in brackets.
";

const COSTS_TEXT: &str = "
## Processor time

Requests for the same processor time of the whole machine, as a multiple of those to the pod's own address: more is better. One connection by the Service's address and one to the same pod's own, in turn, 10,000 requests each, the median
of 11 rounds. To the pod's own address a packet takes no way by another node. To a pod of the other node viproute's packets go by a tunnel with the client's address in them; behind MetalLB kube-proxy writes the node's own
address over it, and routes them: that costs less, and the pod doesn't see who calls.

";

const MANY_TEXT: &str = "
## Many Services

viproute alone, on a cluster of its own, whose controllers may ask the API 500 times a second. Each pod is in eight of the VIPs. All Services are given to the API by one `kubectl apply`; a client that watches the API calls
each from the moment on at which it has an address.

";

/// Takes the place of this contender's numbers of an earlier run.
pub fn write(column: &Column) {
    let mut columns = known(KNOWN);
    columns.retain(|known| known["title"] != column.title);
    columns.push(column.json());
    // viproute first.
    columns.sort_by_key(|column| column["title"].as_str().map(|title| (title.starts_with('M'), title.to_owned())));
    keep(KNOWN, &columns);
}

/// The same of many Services.
pub fn write_many(column: &Column) {
    keep(MANY, &[column.json()]);
}

/// The same of what requests cost, of all contenders.
pub fn write_costs(columns: &[Column]) {
    keep(COSTS, &columns.iter().map(Column::json).collect::<Vec<_>>());
}

fn known(path: &str) -> Vec<Value> {
    fs::read_to_string(path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn keep(path: &str, columns: &[Value]) {
    fs::write(path, Value::from(columns.to_vec()).to_string()).expect("write the numbers");
    fs::write(PAGE, page(&known(KNOWN), &[(COSTS_TEXT, known(COSTS)), (MANY_TEXT, known(MANY))]))
        .expect("write the page");
}

fn page(columns: &[Value], others: &[(&str, Vec<Value>)]) -> String {
    let mut page = TEXT.to_owned();
    let kernel = Command::new("uname").arg("-r").finish("").ok();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    writeln!(page, "\nLinux {}, {processors} processors.\n", kernel.trim()).expect("memory");
    page += &table(columns);
    for (text, columns) in others.iter().filter(|(_, columns)| !columns.is_empty()) {
        page += text;
        page += &table(columns);
    }
    page
}

/// A line for what the first column has, with what the others say of it.
fn table(columns: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |name: &str, values: Vec<String>| format!("| {name} | {} |\n", values.join(" | "));
    let lines = |column: &Value| column["lines"].as_array().cloned().unwrap_or_default();
    let mut table = row("", columns.iter().map(|column| text(&column["title"])).collect());
    writeln!(table, "|---|{}", "---|".repeat(columns.len())).expect("memory");
    for line in columns.first().map(lines).unwrap_or_default() {
        let of = |column: &Value| {
            let found = lines(column).into_iter().find(|other| other[0] == line[0]);
            found.map(|found| text(&found[1])).unwrap_or_default()
        };
        table += &row(&text(&line[0]), columns.iter().map(of).collect());
    }
    table + &row("load average at the beginning", columns.iter().map(|column| text(&column["load"])).collect())
}
