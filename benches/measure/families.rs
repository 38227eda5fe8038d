//! The same by either family: what IPv6 costs beside IPv4, on one node, in turn.

use anyhow::{Result, ensure};

use super::Scale;
use super::cpu_time::{COLUMNS, Site, State};
use crate::contenders::{Contender, DIRECT, Direct, Viproute};
use crate::load::{Slices, Transaction, carried};
use crate::results::{Chapter, Column, Outcome, Table, pooled};
use crate::stage::PodKind;

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut table = Table::new(
        "families",
        "For each second of CPU time, by either family",
        "Pods and VIPs have addresses of both families; each contender's node serves both, and they are asked in turn. No connections are \
         tracked.",
    );
    let runs = (0..scale.nodes).map(|_| once(scale)).collect::<Result<Vec<_>>>()?;
    for (at, (_, name, unit)) in COLUMNS.iter().enumerate() {
        let outcomes = pooled(runs.iter().map(|run| run[at].clone()).collect());
        table.add(&[Column::new(*name, *unit)], rows().into_iter().zip(outcomes).collect::<Vec<(String, Outcome)>>());
    }
    Ok(Chapter {
        title: "IPv4 and IPv6".into(),
        text: "CPU time as above. × is how many times the pod's own address of IPv4 it carries.".into(),
        tables: vec![table.beside(DIRECT)],
    })
}

fn contenders() -> Vec<Box<dyn Contender>> {
    vec![Box::new(Direct), Box::new(Viproute::default().dual()), Box::new(Viproute::without_express().dual())]
}

fn rows() -> Vec<String> {
    let names = contenders().into_iter().map(|contender| contender.name());
    names.flat_map(|name| [name.to_owned(), format!("{name}, IPv6")]).collect()
}

/// On nodes that are made for it: for each column, each row's outcome.
fn once(scale: &Scale) -> Result<Vec<Vec<Outcome>>> {
    let state = State { settled: true, tracked: false };
    let site = |(number, contender)| {
        Site::of(contender, (number, PodKind::Dual), &state).map_err(|error| format!("{error:#}"))
    };
    let mut sites: Vec<_> = contenders().into_iter().enumerate().map(site).collect();
    sites.iter_mut().flatten().try_for_each(|site| site.contender.settle())?;
    let both = |site: &std::result::Result<Site, String>| match site {
        Ok(site) => [Ok(site.path()), Ok(site.path6())],
        Err(reason) => [Err(reason.clone()), Err(reason.clone())],
    };
    let paths: Vec<_> = sites.iter().flat_map(both).collect();
    let kinds: Vec<Transaction> = COLUMNS.iter().map(|(kind, ..)| *kind).collect();
    let outcomes = carried(&paths, &kinds, Slices { rounds: scale.slices, length: scale.slice })?;
    for site in sites.iter().flatten().filter(|site| site.contender.joins_at_start()) {
        ensure!(site.contender.is_settled()?, "the state has changed while it was measured");
    }
    Ok(outcomes)
}
