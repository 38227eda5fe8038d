//! Many replicas of one service: the cost must stay flat.

use anyhow::Result;

use super::Scale;
use super::data_path::{CONCURRENCY, chosen, packets};
use super::setup::{measure, set_up};
use crate::contenders::DIRECT;
use crate::results::{Chapter, Column, Table, Unit};

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut connections = Table::new("replicas", "Connections/s by number of replicas", "One service, from outside.");
    let mut datagrams =
        Table::new("replicas-udp", "64-byte packets/s by number of replicas", "One service, from outside.");
    for replicas in &scale.replicas {
        let candidates = set_up(chosen(), 1, *replicas);
        let column = [Column::of(*replicas, "replicas", Unit::PerSecond)];
        measure(&mut connections, &candidates, scale.rounds, &column, |setup| {
            let rate = setup.load(&setup.world.client, scale, CONCURRENCY).connections()?.rate()?;
            setup.world.forget_tracked()?;
            Ok(vec![rate])
        });
        measure(&mut datagrams, &candidates, scale.rounds, &column, |setup| {
            Ok(vec![packets(setup, scale, 64)?.rate()?])
        });
    }
    let tables = vec![connections.beside(DIRECT), datagrams.beside(DIRECT)];
    Ok(Chapter { title: "Many replicas".into(), text: "All servers are one thread.".into(), tables })
}
