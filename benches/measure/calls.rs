//! The control path: plugins as a runtime calls them, from the start of the process to its end.

mod call;
mod kinds;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use call::{Cycle, median, memory, system_calls};
use kinds::{Kind, Site};

use super::Scale;
use crate::contenders::{Plugin, pool};
use crate::load::{PORT, Server};
use crate::results::{ADD, Chapter, Column, Table, Unit, interleaved};
use crate::stage::{PodKind, World, program, try_base_plugin};

pub fn run(scale: &Scale) -> Result<Chapter> {
    Ok(Chapter {
        title: "Control path".into(),
        text: "Whole processes, from start to end, as a runtime sees them.".into(),
        tables: vec![verbs(scale)?, present(scale)?, at_once(scale)?, first_packet(scale)?, sizes()],
    })
}

/// The median of `calls` cycles of ADD, CHECK and DEL, in each round.
fn verbs(scale: &Scale) -> Result<Table> {
    let text = format!(
        "The median of {} cycles of ADD, CHECK, DEL in each round. viproute joins a VIP that has one replica. Memory: the most an \
         ADD ever had, its children's apart (`time`). System calls: of one ADD, its children's included (`strace -f -c`).",
        scale.calls
    );
    let mut table = Table::new("calls", "One call, alone", &text);
    let site = Site::new("calls", 1)?;
    let mut add = |columns: &[Column], rounds: usize, one: &dyn Fn(Kind) -> Result<Vec<f64>>| {
        let outcomes = interleaved(Kind::ALL.len(), rounds, |at| one(Kind::ALL[at]));
        table.add(columns, Kind::ALL.iter().map(|kind| kind.name().to_owned()).zip(outcomes).collect());
    };
    let cycles = |kind| (0..scale.calls).map(|_| site.cycle(kind)).collect::<Result<Vec<_>>>();
    let columns = [ADD, "DEL"].map(|name| Column::new(name, Unit::Seconds));
    add(&columns, scale.rounds, &|kind| {
        let cycles = cycles(kind)?;
        Ok(vec![median(&cycles, |cycle| Ok(cycle.add))?, median(&cycles, |cycle| Ok(cycle.del))?])
    });
    // Apart from the others: portmap's may fail where its ADD and DEL don't.
    add(&[Column::new("CHECK", Unit::Seconds)], scale.rounds, &|kind| Ok(vec![median(&cycles(kind)?, Cycle::check)?]));
    add(&[Column::new("memory", Unit::Bytes)], 1, &|kind| Ok(vec![memory(&site, kind)?]));
    add(&[Column::new("system calls", Unit::Count)], 1, &|kind| Ok(vec![system_calls(&site, kind)?]));
    Ok(table)
}

/// The same for viproute with so many replicas there already.
fn present(scale: &Scale) -> Result<Table> {
    let mut table = Table::new(
        "replicas-calls",
        "viproute's calls by number of replicas present",
        "Replicas of the same VIP on the node. The base plugin's part isn't in it.",
    );
    let mut rows: [Vec<std::result::Result<Vec<f64>, String>>; 3] = Default::default();
    let mut site = Site::new("present", 0)?;
    for count in &scale.present {
        table.columns.push(Column::of(*count, "replicas", Unit::Seconds));
        site.grow(*count)?;
        let outcome = interleaved(1, scale.rounds, |_| {
            let cycles = (0..scale.calls).map(|_| site.cycle(Kind::Viproute)).collect::<Result<Vec<_>>>()?;
            let of = |which: fn(&Cycle) -> Result<f64>| median(&cycles, which);
            Ok(vec![of(|cycle| Ok(cycle.add))?, of(Cycle::check)?, of(|cycle| Ok(cycle.del))?])
        });
        let series = outcome.into_iter().next().context("a round")?;
        for (at, row) in rows.iter_mut().enumerate() {
            row.push(series.as_ref().map(|series| series[at].samples.clone()).map_err(Clone::clone));
        }
    }
    for (name, row) in [ADD, "CHECK", "DEL"].iter().zip(rows) {
        table.note(name, row);
    }
    Ok(table)
}

/// Many at the same moment, as when a node starts.
fn at_once(scale: &Scale) -> Result<Table> {
    let count = scale.at_once;
    let title = format!("{count} calls at once");
    let mut table = Table::new("at-once", &title, "Until the last one has ended; every pod is another one.");
    table.columns = [ADD, "DEL"].iter().map(|name| Column::new(format!("{count} {name}"), Unit::Seconds)).collect();
    let site = Site::new("at-once", 1)?;
    for kind in [Kind::Ptp, Kind::Viproute, Kind::Passed] {
        let pods = site.crowd(kind, count)?;
        let outcome = interleaved(1, scale.rounds.min(3), |_| {
            Ok(vec![site.all_at_once(kind, "ADD", &pods)?, site.all_at_once(kind, "DEL", &pods)?])
        });
        let row = match outcome.into_iter().next().context("a round")? {
            Ok(series) => series.into_iter().map(|series| Ok(series.samples)).collect(),
            Err(reason) => vec![Err(reason.clone()), Err(reason)],
        };
        table.note(kind.name(), row);
    }
    Ok(table)
}

/// From ADD's return to an answer through the VIP.
fn first_packet(scale: &Scale) -> Result<Table> {
    let mut table = Table::new(
        "first",
        "From ADD's return to the first answer",
        "A connection from outside to a VIP whose only replica has just been added, tried until it is answered. Beside it a \
         connection to the pod's own address at that moment: what connecting takes anyway.",
    );
    table.columns = vec![Column::new("answered after", Unit::Seconds)];
    let world = World::new("first", 1, PodKind::Connected)?;
    let (plugin, _agent) = (Plugin::on(&world), pool(&world)?);
    let _server = Server::start(&world.pods)?;
    let pod = &world.pods[0];
    let (mut through, mut own) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds * scale.calls.min(4) {
        plugin.add(&world.node, pod, "web")?;
        let returned = Instant::now();
        let record = plugin.registry().vip_record(&viproute::internals::model::VipKey::new("bench", "web")?)?;
        let vip = record.context("the VIP's record")?.address();
        through.push(answered(&world, vip, returned)?);
        own.push(answered(&world, pod.address.into(), Instant::now())?);
        plugin.del(&world.node, pod, "web")?;
    }
    table.note("the VIP", vec![Ok(through)]);
    table.note("the pod's own address", vec![Ok(own)]);
    Ok(table)
}

fn answered(world: &World, to: std::net::IpAddr, since: Instant) -> Result<f64> {
    use std::io::{Read, Write};
    world.client.try_run(|| {
        let deadline = since + Duration::from_secs(5);
        loop {
            let tried = std::net::TcpStream::connect_timeout(&(to, PORT).into(), Duration::from_secs(1));
            let heard = tried.and_then(|mut stream| {
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
                stream.read(&mut [0; 64])
            });
            match heard {
                Ok(1..) => return Ok(since.elapsed().as_secs_f64()),
                _ if Instant::now() > deadline => anyhow::bail!("{to} doesn't answer"),
                _ => {}
            }
        }
    })
}

fn sizes() -> Table {
    let mut table = Table::new("sizes", "Size of the programs", "As they are built for a release, in bytes on disk.");
    table.columns = vec![Column::new("size", Unit::Bytes)];
    let own = ["viproute", "viprouted", "viproutectl"].map(|name| (name, Ok(program(name))));
    let others = ["ptp", "host-local", "bridge", "portmap"].map(|name| (name, try_base_plugin(name)));
    for (name, path) in own.into_iter().chain(others) {
        let size = path.and_then(|path| Ok(std::fs::metadata(path)?.len() as f64));
        table.note(name, vec![size.map(|size| vec![size]).map_err(|error| format!("{error:#}"))]);
    }
    table
}
