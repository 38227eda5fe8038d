//! Leases on LANs as they are: more servers than one, other hosts, short pools, clocks that are set, damaged files.

mod claims;
mod clock;
mod files;
mod identity;
mod reasons;
mod room;
mod two_servers;

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Join, Node, Run, Sidecar, until};

/// A loaded machine is slow.
const SOON: Duration = Duration::from_secs(20);

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

/// What viprouted says is wrong beyond single VIPs.
fn problems(sidecar: &Sidecar) -> Vec<String> {
    texts(&sidecar.ask(&json!({ "status": {} }))["problems"])
}

/// Why a new VIP would get no address.
fn readiness_errors(sidecar: &Sidecar) -> Vec<String> {
    texts(&sidecar.ask(&json!({ "status": {} }))["readiness_errors"])
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
}

/// `viproutectl VERB …` of the node.
fn ctl(node: &Node, arguments: &[&str]) -> String {
    node.ctl().args(arguments).finish("").ok()
}

/// The node answers ARP for it.
fn wait_until_answered_for(node: &Node, vip: Ipv4Addr) {
    until("the node answers ARP for the VIP", SOON, || {
        node.ns.ip("neigh show proxy").contains(&format!("{vip} dev eth0")).then_some(())
    });
}
