//! What good connections keep of their throughput in a flood of packets that are nobody's.

use anyhow::Result;

use super::Scale;
use super::data_path::CONCURRENCY;
use super::stand::{enter, measure};
use crate::contenders::{DIRECT, Direct, Viproute};
use crate::load::{Strays, raw_socket};
use crate::results::{Chapter, Column, Table, Unit};

/// Each stray is looked for at all of them.
const REPLICAS: usize = 100;

pub fn run(scale: &Scale) -> Result<Chapter> {
    let entrants = enter(vec![Box::new(Direct), Box::new(Viproute::default())], 1, REPLICAS);
    let mut table = Table::new(
        "flood",
        "Requests/s in a flood",
        "Over connections that stay, alone and beside ACKs of connections that nobody has. The sender of these takes its own \
         share of the processors: what the pod's own address keeps is the limit.",
    );
    let columns = [
        Column::new("alone", Unit::PerSecond),
        Column::new("in the flood", Unit::PerSecond),
        Column::new("strays", Unit::PerSecond),
    ];
    measure(&mut table, &entrants, scale.rounds, &columns, |stand| {
        let load = stand.load(&stand.world.client, scale, CONCURRENCY);
        let alone = load.requests()?.rate()?;
        let socket = stand.world.client.run(|| Ok(raw_socket()?))?;
        let strays = Strays::start(socket, stand.targets[0]);
        let flooded = load.requests()?;
        let sent = strays.sent() as f64 / flooded.seconds;
        Ok(vec![alone, flooded.rate()?, sent])
    });
    let text = format!("One service, {REPLICAS} replicas; 200,000 strays a second are tried.");
    Ok(Chapter { title: "A flood".into(), text, tables: vec![table.beside(DIRECT)] })
}
