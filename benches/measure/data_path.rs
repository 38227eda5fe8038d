//! One service over three replicas: what each path carries by the wall's clock.

use anyhow::Result;

use super::Scale;
use super::setup::{Candidate, Setup, measure, set_up, slowest};
use crate::contenders::{Contender, DIRECT, Direct, Haproxy, KubeIptables, KubeNftables, Nginx, Viproute};
use crate::load::{Load, Work, bulk, flood, paced};
use crate::results::{Chapter, Column, TRACKED, Table, Unit};
use crate::stage::Netns;

/// Connections at the same time.
pub const CONCURRENCY: usize = 64;
/// UDP flows.
const FLOWS: usize = 64;
/// Downloads at the same time.
const DOWNLOADS: usize = 6;

/// All of them.
pub fn everyone() -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(Direct),
        Box::new(Viproute::default()),
        Box::new(Viproute::without_express()),
        Box::new(KubeIptables::default()),
        Box::new(KubeNftables::default()),
        Box::new(Haproxy::default()),
        Box::new(Nginx::stream()),
        Box::new(Nginx::http()),
    ]
}

/// Those who are also asked with many services and replicas.
pub fn chosen() -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(Direct),
        Box::new(Viproute::default()),
        Box::new(KubeIptables::default()),
        Box::new(KubeNftables::default()),
        Box::new(Haproxy::default()),
    ]
}

pub fn run(scale: &Scale) -> Result<Chapter> {
    let candidates = set_up(everyone(), 1, 3);
    Ok(Chapter {
        title: "Data path".into(),
        text: "One service, three replicas in pods connected as `ptp` does it. Each contender has a node, pods and a client of \
               its own, all alike. By the wall's clock: whether client, servers or path come to their limit first, all share \
               the same processors, and other load on the machine shows. *CPU time* above is the steadier comparison."
            .into(),
        tables: vec![outside(&candidates, scale), latency(&candidates, scale), inside(&candidates, scale)],
    })
}

fn outside(candidates: &[Candidate], scale: &Scale) -> Table {
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
    measure(&mut table, candidates, scale.rounds, &rates, |setup| {
        let work = setup.load(&setup.world.client, scale, CONCURRENCY).connections()?;
        let tracked = f64::from(setup.world.tracked()?) / work.done as f64 * 1000.0;
        setup.world.forget_tracked()?;
        Ok(vec![work.rate()?, tracked])
    });
    measure(&mut table, candidates, scale.rounds, &[Column::new("requests/s", Unit::PerSecond)], |setup| {
        Ok(vec![setup.load(&setup.world.client, scale, CONCURRENCY).requests()?.rate()?])
    });
    for (name, size) in [("64-byte packets/s", 64), ("1,400-byte packets/s", 1400)] {
        measure(&mut table, candidates, scale.rounds, &[Column::new(name, Unit::PerSecond)], |setup| {
            Ok(vec![packets(setup, scale, size)?.rate()?])
        });
    }
    measure(&mut table, candidates, scale.rounds, &[Column::new("bulk", Unit::BytesPerSecond)], |setup| {
        Ok(vec![bulk(&setup.load(&setup.world.client, scale, DOWNLOADS))?])
    });
    table.beside(DIRECT)
}

/// UDP packets from outside.
pub fn packets(setup: &Setup, scale: &Scale, size: usize) -> Result<Work> {
    let to = setup.contender.datagrams(&setup.targets).map_err(anyhow::Error::msg)?;
    flood(&Load { to, ..setup.load(&setup.world.client, scale, FLOWS) }, size, &setup.servers)
}

fn latency(candidates: &[Candidate], scale: &Scale) -> Table {
    let mut table = Table::new("latency", "Latency at a fixed rate", "");
    // Half of what the slowest can carry is what all are asked.
    let rate = slowest(candidates, scale, CONCURRENCY).unwrap_or(2.0) / 2.0;
    table.text = format!(
        "{} requests/s over {CONCURRENCY} connections, the same for all: half of what the slowest path carries. Measured from \
         when a request was due, so that a stall counts for all that had to wait.",
        Unit::PerSecond.text(rate)
    );
    let columns = ["p50", "p99", "p99.9"].map(|name| Column::new(name, Unit::Seconds));
    measure(&mut table, candidates, scale.rounds, &columns, |setup| {
        let latencies = paced(&setup.load(&setup.world.client, scale, CONCURRENCY), rate)?;
        Ok([0.5, 0.99, 0.999].iter().map(|at| latencies.value_at_quantile(*at) as f64 / 1e9).collect())
    });
    table.beside(DIRECT)
}

fn inside(candidates: &[Candidate], scale: &Scale) -> Table {
    let mut table = Table::new("inside", "From a pod and from the node itself", "The same clients in other places.");
    for (name, place) in [("a pod", a_pod as fn(&Setup) -> &Netns), ("the node", the_node)] {
        let columns = [Column::new(format!("connections/s from {name}"), Unit::PerSecond)];
        measure(&mut table, candidates, scale.rounds, &columns, |setup| {
            let rate = setup.load(place(setup), scale, CONCURRENCY).connections()?.rate()?;
            setup.world.forget_tracked()?;
            Ok(vec![rate])
        });
        let columns = [Column::new(format!("requests/s from {name}"), Unit::PerSecond)];
        measure(&mut table, candidates, scale.rounds, &columns, |setup| {
            Ok(vec![setup.load(place(setup), scale, CONCURRENCY).requests()?.rate()?])
        });
    }
    table.beside(DIRECT)
}

fn a_pod(setup: &Setup) -> &Netns {
    &setup.world.bystander.ns
}

fn the_node(setup: &Setup) -> &Netns {
    &setup.world.node
}
