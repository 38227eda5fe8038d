//! What may be wrong with the API.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};

use super::super::Run;
use super::{KubeApi, State, kind_of, reply};

impl KubeApi {
    /// Lists and watches of a kind are refused with this code; none: no longer.
    pub fn refuse(&self, kind: &str, code: Option<u16>) {
        let kind = kind_of(&json!({ "kind": kind }));
        let mut held = self.state.held.lock().unwrap();
        match code {
            Some(code) => drop(held.refused.insert(kind, code)),
            None => drop(held.refused.remove(kind)),
        }
        self.state.changed.notify_all();
    }

    /// The versions that watches are at are too old (410).
    pub fn expire(&self) {
        let mut held = self.state.held.lock().unwrap();
        held.expiries += 1;
        held.oldest = held.log.len();
        drop(held);
        self.state.changed.notify_all();
    }

    /// viprouted may not do these: `verb resource`.
    pub fn deny(&self, rights: &[&str]) {
        self.state.held.lock().unwrap().denied = rights.iter().map(|right| (*right).to_owned()).collect();
    }

    /// Its clock is so many seconds ahead.
    pub fn set_clock(&self, ahead: i64) {
        self.state.held.lock().unwrap().ahead = ahead;
    }

    /// An API of before `ipMode`.
    pub fn forget_mode(&self) {
        self.state.held.lock().unwrap().lacks_mode = true;
    }
}

/// Whose answer says what time it is.
pub fn version(mut stream: &TcpStream, state: &State) -> Option<()> {
    let ahead = state.held.lock().unwrap().ahead;
    let date = Command::new("date").args(["-u", "-R", "-d", &format!("{ahead} seconds")]).finish("").ok();
    let head = format!("HTTP/1.1 200 X\r\ncontent-length: 2\r\ndate: {}\r\n\r\n{{}}", date.trim());
    stream.write_all(head.as_bytes()).ok()
}

pub fn review(stream: &TcpStream, state: &State, body: &Value) -> Option<()> {
    let asked = &body["spec"]["resourceAttributes"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default();
    let resource = [text("resource"), text("subresource")].join("/");
    let right = format!("{} {}", text("verb"), resource.trim_end_matches('/'));
    let mut answer = body.clone();
    answer["status"] = json!({ "allowed": !state.held.lock().unwrap().denied.contains(&right) });
    reply(stream, 201, &answer)
}
