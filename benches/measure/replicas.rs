//! Many replicas of one service: the cost must stay flat.

use anyhow::Result;

use super::Scale;
use super::data_path::{CONCURRENCY, chosen, packets};
use super::stand::{enter, measure};
use crate::contenders::DIRECT;
use crate::results::{Chapter, Column, Table, Unit};

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut connections = Table::new("replicas", "Connections/s by number of replicas", "One service, from outside.");
    let mut datagrams =
        Table::new("replicas-udp", "64-byte packets/s by number of replicas", "One service, from outside.");
    for replicas in &scale.replicas {
        let entrants = enter(chosen(), 1, *replicas);
        let column = [Column::of(*replicas, "replicas", Unit::PerSecond)];
        measure(&mut connections, &entrants, scale.rounds, &column, |stand| {
            let rate = stand.load(&stand.world.client, scale, CONCURRENCY).connections()?.rate()?;
            stand.world.node.forget_tracked()?;
            Ok(vec![rate])
        });
        measure(&mut datagrams, &entrants, scale.rounds, &column, |stand| Ok(vec![packets(stand, scale, 64)?.rate()?]));
    }
    let tables = vec![connections.beside(DIRECT), datagrams.beside(DIRECT)];
    Ok(Chapter { title: "Many replicas".into(), text: "All servers are one thread.".into(), tables })
}
