//! What good connections keep of their throughput in a flood of packets of connections that no replica has.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::Result;
use hdrhistogram::Histogram;

use super::Scale;
use super::counters::counter;
use super::data_path::CONCURRENCY;
use super::setup::{Candidate, measure, set_up, slowest};
use crate::contenders::{DIRECT, Direct, Viproute};
use crate::load::{Misplaced, paced, raw_socket};
use crate::results::{Chapter, Column, KEPT, Table, Unit};
use crate::stage::{Pod, World};

/// The connection of each misplaced packet is searched for at all of them.
const REPLICAS: usize = 100;
/// The node drops what goes there: packets sent to it cost their sender and the link, and nothing else.
const BLACKHOLE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 80);

pub fn run(scale: &Scale) -> Result<Chapter> {
    let candidates = set_up(vec![Box::new(Direct), Box::new(Viproute::default())], 1, REPLICAS);
    for candidate in &candidates {
        if let Ok(setup) = &candidate.setup {
            setup.world.node.ip_lines(&format!("route add blackhole {}/32\n", BLACKHOLE.ip()))?;
        }
    }
    let mut table = Table::new(
        "flood",
        "Requests/s in a flood",
        "Over connections that stay: alone; beside a sender of misplaced packets (ACKs of connections that no replica \
         has) to an address that the node drops, since the sender takes its own share of the processors; and beside the same sender \
         to the service. Kept: of the second, in the third. Answered: resets that the pods have sent.",
    );
    let columns = [
        Column::new("alone", Unit::PerSecond),
        Column::new("beside a dropped flood", Unit::PerSecond),
        Column::new("in the flood", Unit::PerSecond),
        Column::new(KEPT, Unit::Count),
        Column::new("misplaced packets sent", Unit::PerSecond).aside(),
        Column::new("answered", Unit::PerSecond).aside(),
    ];
    measure(&mut table, &candidates, scale.rounds, &columns, |setup| {
        let load = setup.load(&setup.world.client, scale, CONCURRENCY);
        let alone = load.requests()?.rate()?;
        let (aside, _) = beside(&setup.world, BLACKHOLE, || load.requests())?;
        let before = resets(&setup.world)?;
        let (flooded, sent) = beside(&setup.world, setup.targets[0], || load.requests())?;
        let answered = (resets(&setup.world)? - before) / flooded.seconds;
        let (aside, flooded) = (aside.rate()?, flooded.rate()?);
        Ok(vec![alone, aside, flooded, flooded / aside * 100.0, sent, answered])
    });
    let text = format!("One service, {REPLICAS} replicas; 200,000 misplaced packets a second are tried.");
    let tables = vec![table.beside(DIRECT), at_fixed_rate(&candidates, scale).beside(DIRECT)];
    Ok(Chapter { title: "A flood".into(), text, tables })
}

/// What a flood costs clients that ask for less than the path carries.
fn at_fixed_rate(candidates: &[Candidate], scale: &Scale) -> Table {
    let rate = slowest(candidates, scale, CONCURRENCY).unwrap_or(4.0) / 4.0;
    let text = format!(
        "{} requests/s over connections that stay, a quarter of what the slower path carries alone. Answered: of a hundred that \
         were due. Latency from when a request was due.",
        Unit::PerSecond.text(rate)
    );
    let mut table = Table::new("flood-steady", "A fixed rate in a flood", &text);
    let columns = [
        Column::new("answered in the flood", Unit::Count),
        Column::new("p99 alone", Unit::Seconds),
        Column::new("p99 in the flood", Unit::Seconds),
        Column::new("misplaced packets sent", Unit::PerSecond).aside(),
    ];
    measure(&mut table, candidates, scale.rounds, &columns, |setup| {
        let load = setup.load(&setup.world.client, scale, CONCURRENCY);
        let p99 = |latencies: &Histogram<u64>| latencies.value_at_quantile(0.99) as f64 / 1e9;
        let alone = paced(&load, rate)?;
        let (flooded, sent) = beside(&setup.world, setup.targets[0], || paced(&load, rate))?;
        let due = rate * scale.time.as_secs_f64();
        Ok(vec![flooded.len() as f64 / due * 100.0, p99(&alone), p99(&flooded), sent])
    });
    table
}

/// Does something while misplaced packets go to `to`; and how many of these were sent a second.
fn beside<T>(world: &World, to: SocketAddrV4, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let socket = world.client.try_run(|| Ok(raw_socket()?))?;
    let (start, flood) = (Instant::now(), Misplaced::start(socket, to));
    let done = work()?;
    Ok((done, flood.sent() as f64 / start.elapsed().as_secs_f64()))
}

/// Resets that the pods have sent so far.
fn resets(world: &World) -> Result<f64> {
    let of = |pod: &Pod| Ok(counter(&pod.ns, "snmp", "Tcp", "OutRsts")? as f64);
    world.pods.iter().map(of).sum()
}
