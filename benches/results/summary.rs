//! What the tables come to, in six sentences that need no table.

use super::goals::{ADD, DRAIN_COLUMNS, update_columns};
use super::table::{Tables, Unit};
use crate::contenders::{DIRECT, HAPROXY, KUBE_NFTABLES, NGINX_STREAM, VIPROUTE};

/// In place of a number that a run hasn't.
const UNKNOWN: &str = "(not measured)";
/// New connections a second of the rolling update that the sentence is about.
const RATE: f64 = 1000.0;

/// A sentence each.
pub fn summary(tables: Tables<'_>) -> [String; 6] {
    [
        gain(tables, "kube-proxy", "its nftables rules", KUBE_NFTABLES),
        gain(tables, "HAProxy", "in TCP mode", HAPROXY),
        gain(tables, "nginx", "its TCP proxy", NGINX_STREAM),
        own_address(tables),
        changes(tables),
        price(tables),
    ]
}

/// How many times another path is carried for the same CPU time, on a Kubernetes node.
fn gain(tables: Tables<'_>, name: &str, which: &str, row: &str) -> String {
    let times = |column: &str| times(tables.ratio("cpu-tracked", column, (VIPROUTE, row)));
    let (requests, connections) = (times("requests"), times("connections"));
    // The proxies carry TCP only.
    let udp =
        if row == KUBE_NFTABLES { format!(", {} the UDP packets", times("64-byte packets")) } else { String::new() };
    format!(
        "**Instead of {name}** ({which}), for the same CPU time, a VIP carries {requests} the requests and {connections} the new \
         connections{udp}."
    )
}

fn own_address(tables: Tables<'_>) -> String {
    let on = |table: &str| {
        let times = |column: &str| times(tables.ratio(table, column, (VIPROUTE, DIRECT)));
        let [requests, connections, packets] = ["requests", "connections", "64-byte packets"].map(times);
        format!("{requests} the requests, {connections} the new connections, {packets} the UDP packets")
    };
    format!(
        "**Instead of the pod's own address**, without any load balancer: {}; on a node that tracks connections, as \
         Kubernetes nodes do, {}.",
        on("cpu"),
        on("cpu-tracked")
    )
}

fn changes(tables: Tables<'_>) -> String {
    let [all, refused, reset, _] = update_columns(RATE);
    let number = |table: &str, row: &str, column: &str| {
        tables.at(table, row, column).map_or_else(|| UNKNOWN.to_owned(), |series| Unit::Count.text(series.median()))
    };
    let of = |row: &str| {
        let [refused, reset] = [&refused, &reset].map(|column| number("update", row, column));
        format!("{refused} refused and {reset} reset")
    };
    format!(
        "**While servers are replaced** that just exit: of {} new connections {}, by kube-proxy's rules {}, by HAProxy {}. Drain \
         and scale under load break {} live connections, with {} entries of connection tracking.",
        number("update", VIPROUTE, &all),
        of(VIPROUTE),
        of(KUBE_NFTABLES),
        of(HAPROXY),
        number("drain", VIPROUTE, DRAIN_COLUMNS[0]),
        number("drain", VIPROUTE, DRAIN_COLUMNS[3]),
    )
}

fn price(tables: Tables<'_>) -> String {
    let known = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let text = |table: &str, row: &str, column: &str, unit: Unit| {
        known(tables.at(table, row, column).map(|series| unit.text(series.median())))
    };
    let last = tables.find("agent").and_then(|table| table.rows.last()).map(|row| row.name.clone()).unwrap_or_default();
    let change = times(tables.ratio("cpu-change", "connections", (VIPROUTE, DIRECT)));
    format!(
        "**What you pay**: {} more for a pod's start; a daemon of {} that needs {} of CPU time a minute beside {}; \
         for two minutes after a change of replicas {change} the connections of the pod's own address; an address for each service.",
        text("calls", VIPROUTE, ADD, Unit::Seconds),
        text("agent", &last, "memory", Unit::Bytes),
        text("agent", &last, "processor time a minute", Unit::Seconds),
        if last.is_empty() { UNKNOWN } else { &last },
    )
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| UNKNOWN.to_owned(), |ratio| format!("{ratio:.2} ×"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::series::Series;
    use crate::results::{Column, Table};

    #[test]
    fn six_sentences_whatever_was_measured() {
        let sentences = summary(Tables(&[]));
        assert!(sentences.iter().all(|sentence| sentence.contains(UNKNOWN) && sentence.ends_with('.')));
    }

    #[test]
    fn numbers_come_from_the_tables() {
        let mut cpu = Table::new("cpu-tracked", "", "");
        let one = |value| Ok(vec![Series::of(vec![value]).unwrap()]);
        let rows = vec![(VIPROUTE.to_owned(), one(30.0)), (HAPROXY.to_owned(), one(10.0))];
        cpu.add(&[Column::new("requests", Unit::PerSecond)], rows);
        let [_, haproxy, ..] = summary(Tables(&[&cpu]));
        assert!(haproxy.ends_with("3.00 × the requests and (not measured) the new connections."), "{haproxy}");
    }
}
