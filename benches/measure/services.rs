//! Many services on a node: the cost must stay flat.

use anyhow::Result;

use super::Scale;
use super::data_path::{CONCURRENCY, chosen, packets};
use super::stand::{change_all, enter, measure};
use crate::contenders::DIRECT;
use crate::results::{Chapter, Column, Table, Unit};

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut connections = Table::new(
        "services",
        "Connections/s by number of services",
        "To all services in turn. viproute's VIPs beyond the first have the first one's replicas: recorded and brought into the \
         kernel by the product's own code, since a pod joins eight VIPs at most.",
    );
    let mut datagrams = Table::new(
        "services-udp",
        "64-byte packets/s by number of services",
        "To the first service, over flows that stay: kube-proxy's rules have UDP for that one only.",
    );
    let mut entrants = enter(chosen(), 1, 3);
    for services in &scale.services {
        change_all(&mut entrants, |stand| stand.serve(*services));
        let column = [Column::of(*services, "services", Unit::PerSecond)];
        measure(&mut connections, &entrants, scale.rounds, &column, |stand| {
            let rate = stand.load(&stand.world.client, scale, CONCURRENCY).connections()?.rate()?;
            stand.world.node.forget_tracked()?;
            Ok(vec![rate])
        });
        measure(&mut datagrams, &entrants, scale.rounds, &column, |stand| Ok(vec![packets(stand, scale, 64)?.rate()?]));
    }
    Ok(Chapter {
        title: "Many services".into(),
        text: "Three replicas behind each.".into(),
        tables: vec![connections.beside(DIRECT), datagrams.beside(DIRECT)],
    })
}
