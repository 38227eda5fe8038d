//! Many services on a node: the cost must stay flat.

use anyhow::{Result, ensure};

use super::Scale;
use super::cpu_time::{Site, State};
use super::data_path::chosen;
use crate::contenders::DIRECT;
use crate::load::{Path, Slices, Transaction, carried};
use crate::results::{Chapter, Column, Outcome, Table, Unit};

/// A slice of the slowest carries more connections.
const A_SLICE: usize = 20;

const KINDS: [Transaction; 2] = [Transaction::Connections, Transaction::Datagrams(64)];

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut connections = Table::new(
        "services",
        "Connections for each second of CPU time, by number of services",
        "To all services in turn, each of which has been asked before. viproute's VIPs beyond the first have the first one's replicas: recorded and reconciled by the \
         product's own code, since a pod joins eight VIPs at most.",
    );
    let mut datagrams = Table::new(
        "services-udp",
        "64-byte packets for each second of CPU time, by number of services",
        "To the first service, over flows that stay: kube-proxy's rules have UDP for that one only.",
    );
    let contenders = chosen();
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name()).collect();
    let state = State { settled: true, tracked: false };
    let site = |(number, contender)| Site::new(contender, number, &state).map_err(|error| format!("{error:#}"));
    let mut sites: Vec<_> = contenders.into_iter().enumerate().map(site).collect();
    for services in &scale.services {
        for outcome in &mut sites {
            let served = outcome.as_mut().map(|site| site.serve(*services));
            if let Ok(Err(error)) = served {
                *outcome = Err(format!("{error:#}"));
            }
        }
        let column = [Column::of(*services, "services", Unit::PerSecond)];
        let tables = [&mut connections, &mut datagrams];
        ask_each(&sites, *services, scale)?;
        for (table, outcomes) in tables.into_iter().zip(measure(&sites, scale)?) {
            let rows = names.iter().map(|name| (*name).to_owned()).zip(outcomes);
            table.add(&column, rows.collect::<Vec<(String, Outcome)>>());
        }
    }
    Ok(Chapter {
        title: "Many services".into(),
        text: "Three replicas behind each. CPU time as above.".into(),
        tables: vec![connections.beside(DIRECT), datagrams.beside(DIRECT)],
    })
}

/// Each service's first connection makes what is kept for it (counters, entries of maps and caches): it isn't measured.
fn ask_each(sites: &[std::result::Result<Site, String>], services: usize, scale: &Scale) -> Result<()> {
    let slices = Slices { rounds: services.div_ceil(A_SLICE), length: scale.slice };
    carried(&paths(sites), &KINDS[..1], slices).map(drop)
}

fn paths(sites: &[std::result::Result<Site, String>]) -> Vec<std::result::Result<Path, String>> {
    sites.iter().map(|site| site.as_ref().map(Site::path).map_err(Clone::clone)).collect()
}

fn measure(sites: &[std::result::Result<Site, String>], scale: &Scale) -> Result<Vec<Vec<Outcome>>> {
    let slices = Slices { rounds: scale.slices * scale.nodes, length: scale.slice };
    let outcomes = carried(&paths(sites), &KINDS, slices)?;
    for site in sites.iter().flatten() {
        ensure!(site.contender.is_settled()?, "measured while a change had its after-effects");
        site.world.forget_tracked()?;
    }
    Ok(outcomes)
}
