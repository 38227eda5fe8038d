//! What good connections keep of their throughput in a flood of packets that are nobody's.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use super::Scale;
use super::data_path::CONCURRENCY;
use super::stand::{Entrant, enter, measure, slowest};
use crate::contenders::{DIRECT, Direct, Viproute};
use crate::load::{Strays, paced, raw_socket};
use crate::results::{Chapter, Column, KEPT, Table, Unit};
use crate::stage::World;

/// Each stray is looked for at all of them.
const REPLICAS: usize = 100;
/// The node drops what goes there: strays sent to it cost their sender and the link, and nothing else.
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 80);

pub fn run(scale: &Scale) -> Result<Chapter> {
    let entrants = enter(vec![Box::new(Direct), Box::new(Viproute::default())], 1, REPLICAS);
    for entrant in &entrants {
        if let Ok(stand) = &entrant.stand {
            stand.world.node.ip(&format!("route add blackhole {}/32\n", NOBODY.ip()))?;
        }
    }
    let mut table = Table::new(
        "flood",
        "Requests/s in a flood",
        "Over connections that stay: alone; beside a sender of ACKs of connections that nobody has, to an address that the node \
         drops, since the sender takes its own share of the processors; and beside the same sender to the service. Kept: of the \
         second, in the third. Answered: resets that the pods have sent.",
    );
    let columns = [
        Column::new("alone", Unit::PerSecond),
        Column::new("beside a flood to nobody", Unit::PerSecond),
        Column::new("in the flood", Unit::PerSecond),
        Column::new(KEPT, Unit::Count),
        Column::new("strays sent", Unit::PerSecond),
        Column::new("strays answered", Unit::PerSecond),
    ];
    measure(&mut table, &entrants, scale.rounds, &columns, |stand| {
        let load = stand.load(&stand.world.client, scale, CONCURRENCY);
        let alone = load.requests()?.rate()?;
        let (aside, _) = beside(&stand.world, NOBODY, || load.requests())?;
        let before = resets(&stand.world)?;
        let (flooded, sent) = beside(&stand.world, stand.targets[0], || load.requests())?;
        let answered = (resets(&stand.world)? - before) / flooded.seconds;
        let (aside, flooded) = (aside.rate()?, flooded.rate()?);
        Ok(vec![alone, aside, flooded, flooded / aside * 100.0, sent, answered])
    });
    let text = format!("One service, {REPLICAS} replicas; 200,000 strays a second are tried.");
    let tables = vec![table.beside(DIRECT), at_fixed_rate(&entrants, scale).beside(DIRECT)];
    Ok(Chapter { title: "A flood".into(), text, tables })
}

/// What clients who don't take all there is to have notice of a flood.
fn at_fixed_rate(entrants: &[Entrant], scale: &Scale) -> Table {
    let rate = slowest(entrants, scale, CONCURRENCY).unwrap_or(4.0) / 4.0;
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
        Column::new("strays sent", Unit::PerSecond),
    ];
    measure(&mut table, entrants, scale.rounds, &columns, |stand| {
        let load = stand.load(&stand.world.client, scale, CONCURRENCY);
        let p99 = |latencies: &Histogram<u64>| latencies.value_at_quantile(0.99) as f64 / 1e9;
        let alone = paced(&load, rate)?;
        let (flooded, sent) = beside(&stand.world, stand.targets[0], || paced(&load, rate))?;
        let due = rate * scale.time.as_secs_f64();
        Ok(vec![flooded.len() as f64 / due * 100.0, p99(&alone), p99(&flooded), sent])
    });
    table
}

/// Does something while strays go to `to`; and how many of these were sent a second.
fn beside<T>(world: &World, to: SocketAddrV4, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let socket = world.client.run(|| Ok(raw_socket()?))?;
    let (start, strays) = (Instant::now(), Strays::start(socket, to));
    let done = work()?;
    Ok((done, strays.sent() as f64 / start.elapsed().as_secs_f64()))
}

/// Resets that the pods have sent so far.
fn resets(world: &World) -> Result<f64> {
    let of = |pod: &crate::stage::Pod| {
        // The thread's own: `/proc/net` is that of the process's first thread.
        let text = pod.ns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, numbers) = (lines.next().context("Tcp")?, lines.next().context("Tcp")?);
        let mut pairs = names.split(' ').zip(numbers.split(' '));
        Ok(pairs.find(|(name, _)| *name == "OutRsts").context("OutRsts")?.1.parse::<f64>()?)
    };
    world.pods.iter().map(of).sum()
}
