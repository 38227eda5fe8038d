//! Thousands of VIPs brought into the kernel.

use std::time::Instant;

use anyhow::Result;
use viproute::internals::dataplane;
use viproute::internals::model::VipKey;
use viproute::internals::net::NodeNet;

use super::Scale;
use crate::contenders::{Contender, Plugin, Viproute, key};
use crate::results::{Chapter, Column, Table, Unit};
use crate::stage::{PodKind, Run, World};

pub fn run(scale: &Scale) -> Result<Chapter> {
    let mut table = Table::new(
        "rebuild",
        "VIPs brought into the kernel",
        "Three replicas each, reconciled by one thread of the product's own code (`reconcile_vip`, as the agent does it). Anew: \
         records, maps, groups, routes; what a node does after a reboot, pods and the search for addresses apart. Again: the records \
         and maps exist, the kernel has lost all groups, nexthops and the routes over them. At rest: nothing differs.",
    );
    let world = World::new("rebuild", 3, PodKind::Connected)?;
    let mut viproute = Viproute::default();
    viproute.serve(&world, 1, &[0, 1, 2])?;
    let (mut anew, mut again, mut at_rest) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = 1;
    for count in scale.services.iter().filter(|count| **count > 1) {
        table.columns.push(Column::of(*count, "VIPs", Unit::Seconds));
        viproute.acquire(*count)?;
        let start = Instant::now();
        viproute.serve(&world, *count, &[0, 1, 2])?;
        // Those made before are carried over: as many as there are take as much longer.
        let share = *count as f64 / (*count - before) as f64;
        anew.push(Ok(vec![start.elapsed().as_secs_f64() * share]));
        before = *count;
        again.push(Ok(rounds(scale, *count, || {
            // Groups, and with them the routes over them.
            world.node.cmd("ip").args(["nexthop", "flush", "proto", "118"]).output_of("")?;
            reconcile(&world, *count)
        })?));
        at_rest.push(Ok(rounds(scale, *count, || reconcile(&world, *count))?));
    }
    table.note("anew", anew);
    table.note("again", again);
    table.note("at rest", at_rest);
    Ok(Chapter { title: "After a reboot".into(), text: String::new(), tables: vec![table] })
}

fn rounds(scale: &Scale, count: usize, mut one: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    // Thousands take a minute a round.
    let rounds = if count > 1000 { 1 } else { scale.rounds.min(3) };
    (0..rounds).map(|_| one()).collect()
}

/// Reconciles the first `count` VIPs.
fn reconcile(world: &World, count: usize) -> Result<f64> {
    let registry = Plugin::on(world).registry();
    let keys = (0..count).map(key).collect::<Result<Vec<VipKey>>>()?;
    world.node.try_run(|| {
        let (node, start) = (NodeNet::open()?, Instant::now());
        let tables = dataplane::Tables::read(&node, &registry)?;
        for key in &keys {
            dataplane::reconcile_vip(&node, registry.vip(key)?, Some(&tables))?;
        }
        Ok(start.elapsed().as_secs_f64())
    })
}
