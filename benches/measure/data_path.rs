//! One service over three replicas: what each path carries, and what it costs.

use anyhow::Result;

use super::Scale;
use super::stand::{Entrant, Stand, enter, measure, slowest};
use crate::contenders::{Contender, DIRECT, Direct, Haproxy, KubeIptables, KubeNftables, Nginx, Viproute};
use crate::load::{Load, Tally, bulk, flood, paced};
use crate::results::{Chapter, Column, Cpu, TRACKED, Table, Unit};
use crate::stage::Ns;

/// Connections at the same time.
pub const CONCURRENCY: usize = 64;
/// UDP flows.
const FLOWS: usize = 64;
/// Downloads at the same time.
const DOWNLOADS: usize = 6;

/// Everyone.
fn all() -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(Direct),
        Box::new(Viproute::default()),
        Box::new(KubeIptables::default()),
        Box::new(KubeNftables::default()),
        Box::new(Haproxy::default()),
        Box::new(Nginx::stream()),
        Box::new(Nginx::http()),
    ]
}

/// Those who are also asked with many services and replicas.
pub fn chosen() -> Vec<Box<dyn Contender>> {
    let mut contenders = all();
    contenders.truncate(5);
    contenders
}

pub fn run(scale: &Scale) -> Result<Chapter> {
    let entrants = enter(all(), 1, 3);
    Ok(Chapter {
        title: "Data path".into(),
        text: "One service, three replicas in pods connected as `ptp` does it. Each contender has a node, pods and a client of \
               its own, all alike. Whether client, servers or path come to their limit first, all share the same \
               processors: what a path costs is missing from what it carries."
            .into(),
        tables: vec![outside(&entrants, scale), latency(&entrants, scale), costs(&entrants, scale), inside(&entrants, scale)],
    })
}

fn outside(entrants: &[Entrant], scale: &Scale) -> Table {
    let mut table = Table::new(
        "data",
        "From outside",
        &format!(
            "Connections: connect, one request, one answer, close, {CONCURRENCY} at a time. Requests: over {CONCURRENCY} \
             connections that stay. Packets: {FLOWS} UDP flows from one sender, counted in the pods, by bytes of payload. Bulk: \
             {DOWNLOADS} downloads. Tracked connections: what the node's kernel still has in its table afterwards."
        ),
    );
    let rates = [Column::new("connections/s", Unit::PerSecond), Column::new(TRACKED, Unit::Count)];
    measure(&mut table, entrants, scale.rounds, &rates, |stand| {
        let tally = stand.load(&stand.world.client, scale, CONCURRENCY).connections()?;
        let tracked = f64::from(stand.world.node.tracked()?) / tally.done as f64 * 1000.0;
        stand.world.node.forget_tracked()?;
        Ok(vec![tally.rate()?, tracked])
    });
    measure(&mut table, entrants, scale.rounds, &[Column::new("requests/s", Unit::PerSecond)], |stand| {
        Ok(vec![stand.load(&stand.world.client, scale, CONCURRENCY).requests()?.rate()?])
    });
    for (name, size) in [("64-byte packets/s", 64), ("1,400-byte packets/s", 1400)] {
        measure(&mut table, entrants, scale.rounds, &[Column::new(name, Unit::PerSecond)], |stand| {
            Ok(vec![packets(stand, scale, size)?.rate()?])
        });
    }
    measure(&mut table, entrants, scale.rounds, &[Column::new("bulk", Unit::BytesPerSecond)], |stand| {
        Ok(vec![bulk(&stand.load(&stand.world.client, scale, DOWNLOADS))?])
    });
    table.beside(DIRECT)
}

/// UDP packets from outside.
pub fn packets(stand: &Stand, scale: &Scale, size: usize) -> Result<Tally> {
    let to = stand.contender.datagrams(&stand.targets).map_err(anyhow::Error::msg)?;
    flood(&Load { to, ..stand.load(&stand.world.client, scale, FLOWS) }, size, &stand.servers)
}

fn latency(entrants: &[Entrant], scale: &Scale) -> Table {
    let mut table = Table::new("latency", "Latency at a fixed rate", "");
    // Half of what the slowest can carry is what all are asked.
    let rate = slowest(entrants, scale, CONCURRENCY).unwrap_or(2.0) / 2.0;
    table.text = format!(
        "{} requests/s over {CONCURRENCY} connections, the same for all: half of what the slowest path carries. Measured from \
         when a request was due, so that a stall counts for all that had to wait.",
        Unit::PerSecond.text(rate)
    );
    let columns = ["p50", "p99", "p99.9"].map(|name| Column::new(name, Unit::Seconds));
    measure(&mut table, entrants, scale.rounds, &columns, |stand| {
        let latencies = paced(&stand.load(&stand.world.client, scale, CONCURRENCY), rate)?;
        Ok([0.5, 0.99, 0.999].iter().map(|at| latencies.value_at_quantile(*at) as f64 / 1e9).collect())
    });
    table.beside(DIRECT)
}

fn costs(entrants: &[Entrant], scale: &Scale) -> Table {
    let mut table = Table::new(
        "cost",
        "Processor time",
        "Of the whole machine while the work was done (`/proc/stat`, less what it uses at rest, looked at just before), client and \
         servers included: the difference to the pod's own address is the path's.",
    );
    measure(&mut table, entrants, scale.rounds, &[Column::new("1,000 connections", Unit::Seconds)], |stand| {
        let cost = cost(|| stand.load(&stand.world.client, scale, CONCURRENCY).connections())?;
        stand.world.node.forget_tracked()?;
        Ok(vec![cost * 1e3])
    });
    for (name, size) in [("1,000,000 packets of 64 bytes", 64), ("1,000,000 packets of 1,400 bytes", 1400)] {
        measure(&mut table, entrants, scale.rounds, &[Column::new(name, Unit::Seconds)], |stand| {
            Ok(vec![cost(|| packets(stand, scale, size))? * 1e6])
        });
    }
    table.beside(DIRECT)
}

/// Processor time for each one that was done, seconds.
fn cost(work: impl FnOnce() -> Result<Tally>) -> Result<f64> {
    let idle = Cpu::at_rest()?;
    let tally = work()?;
    tally.rate()?;
    Ok((tally.busy - idle * tally.seconds) / tally.done as f64)
}

fn inside(entrants: &[Entrant], scale: &Scale) -> Table {
    let mut table = Table::new("inside", "From a pod and from the node itself", "The same clients in other places.");
    for (name, place) in [("a pod", a_pod as fn(&Stand) -> &Ns), ("the node", the_node)] {
        let columns = [Column::new(format!("connections/s from {name}"), Unit::PerSecond)];
        measure(&mut table, entrants, scale.rounds, &columns, |stand| {
            let rate = stand.load(place(stand), scale, CONCURRENCY).connections()?.rate()?;
            stand.world.node.forget_tracked()?;
            Ok(vec![rate])
        });
        let columns = [Column::new(format!("requests/s from {name}"), Unit::PerSecond)];
        measure(&mut table, entrants, scale.rounds, &columns, |stand| {
            Ok(vec![stand.load(place(stand), scale, CONCURRENCY).requests()?.rate()?])
        });
    }
    table.beside(DIRECT)
}

fn a_pod(stand: &Stand) -> &Ns {
    &stand.world.bystander.ns
}

fn the_node(stand: &Stand) -> &Ns {
    &stand.world.node
}
