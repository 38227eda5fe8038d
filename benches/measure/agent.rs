//! What the sidecar costs while nothing happens.

use std::thread;

use anyhow::Result;
use viproute::internals::model::Recorded;
use viproute::internals::registry::{Endpoint, Registry};

use super::Scale;
use crate::contenders::{Plugin, endpoints, key, pool};
use crate::load::{PORT, Server};
use crate::results::{Chapter, Column, Table, Unit};
use crate::stage::{PodKind, Sidecar, World};

pub fn run(scale: &Scale) -> Result<Chapter> {
    let text = format!(
        "viprouted's processor time for a minute of rest, watched for {} s, and the most memory it ever had. With checks: every \
         endpoint's record asks for `health: \"listen\"` each second and names the port its pod serves.",
        scale.watch.as_secs()
    );
    let mut table = Table::new("agent", "The sidecar at rest, by number of endpoints", &text);
    let names = ["processor time a minute", "a minute with checks", "memory"];
    let units = [Unit::Seconds, Unit::Seconds, Unit::Bytes];
    table.columns = names.into_iter().zip(units).map(|(name, unit)| Column::new(name, unit)).collect();
    let mut world = World::new("agent", 0, PodKind::Bare)?;
    let (plugin, agent) = (Plugin::on(&world), pool(&world)?);
    let mut servers = Vec::new();
    for count in &scale.endpoints {
        let before = world.pods.len();
        world.grow(*count, PodKind::Bare)?;
        servers.push(Server::start(&world.pods[before..])?);
        for pod in &world.pods[before..] {
            plugin.add(&world.node, pod, key(0)?.name())?;
        }
        check_all(&plugin.registry(), false)?;
        let plain = watch(&agent, scale)?;
        check_all(&plugin.registry(), true)?;
        let checked = watch(&agent, scale)?;
        let memory = agent.daemon.peak_memory() as f64;
        let name = format!("{} endpoints", Unit::Count.text(*count as f64));
        table.note(&name, [plain, checked, memory].map(|number| Ok(vec![number])).into());
    }
    Ok(Chapter { title: "The sidecar".into(), text: String::new(), tables: vec![table] })
}

fn watch(agent: &Sidecar, scale: &Scale) -> Result<f64> {
    // What the change itself has set off.
    thread::sleep(scale.watch / 5);
    let before = agent.daemon.cpu_time().as_secs_f64();
    thread::sleep(scale.watch);
    Ok((agent.daemon.cpu_time().as_secs_f64() - before) * 60.0 / scale.watch.as_secs_f64())
}

fn check_all(registry: &Registry, checked: bool) -> Result<()> {
    let endpoints = endpoints(registry)?;
    let mut vip = registry.vip(&key(0)?)?;
    for (name, endpoint) in endpoints {
        let health = checked.then(|| Recorded::read("listen".to_owned()));
        let ports = checked.then(|| Recorded::read(format!("{PORT}/tcp"))).into_iter().collect();
        vip.write_endpoint(&name, &Endpoint { health, ports, ..endpoint })?;
    }
    Ok(())
}
