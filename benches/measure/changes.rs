//! Replicas that come and go under load: a rolling update of servers that just exit, and drain and scale.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Scale;
use super::counters::counter;
use crate::contenders::{Contender, Ecmp, Haproxy, KubeIptables, KubeNftables, Nginx, Viproute};
use crate::load::{Arrivals, Flows, Server};
use crate::results::{Chapter, Column, DRAIN_COLUMNS, Table, Unit, update_columns};
use crate::stage::{PodKind, World};

/// Servers that are replaced.
const REPLICAS: usize = 3;
/// From a pod's start until its server listens.
const START: Duration = Duration::from_secs(1);
/// From a server's start or end until the one who configures the path knows: an endpoint's way through a cluster, and how
/// long kube-proxy gathers changes (`minSyncPeriod`, 1 s).
const NOTICE: Duration = Duration::from_secs(1);
/// New connections a second while replicas are drained and added.
const RATE: f64 = 300.0;
/// How often the live connections are asked.
const PAUSE: Duration = Duration::from_millis(250);

type Maker = fn() -> Box<dyn Contender>;

const MAKERS: [Maker; 7] = [
    || Box::new(Viproute::default()),
    || Box::new(Viproute::without_express()),
    || Box::new(KubeIptables::default()),
    || Box::new(KubeNftables::default()),
    || Box::new(Haproxy::checked()),
    || Box::new(Nginx::stream()),
    || Box::new(Ecmp),
];

pub fn run(scale: &Scale) -> Result<Chapter> {
    Ok(Chapter {
        title: "Changes under load".into(),
        text: "Connections are counted and nothing is timed, so contenders are measured side by side, each on a node of its own."
            .into(),
        tables: vec![updates(scale)?, drains(scale)?],
    })
}

/// A row for each contender, in a thread each.
fn rows(table: &mut Table, name: &str, row: impl Fn(Maker, &str) -> Result<Vec<f64>> + Sync) -> Result<()> {
    let rows = thread::scope(|scope| {
        let start = |(number, make): (usize, &Maker)| {
            let (make, row, world) = (*make, &row, format!("{name}{number}"));
            (make().name(), scope.spawn(move || row(make, &world)))
        };
        let rows: Vec<_> = MAKERS.iter().enumerate().map(start).collect();
        rows.into_iter()
            .map(|(name, row)| Ok((name, row.join().ok().context("a contender's thread")?)))
            .collect::<Result<Vec<(&str, Result<Vec<f64>>)>>>()
    })?;
    for (name, row) in rows {
        let cells = match row {
            Ok(numbers) => numbers.into_iter().map(|number| Ok(vec![number])).collect(),
            Err(error) => table.columns.iter().map(|_| Err(format!("{error:#}"))).collect(),
        };
        table.note(name, cells);
    }
    Ok(())
}

fn updates(scale: &Scale) -> Result<Table> {
    let mut table = Table::new(
        "update",
        "Rolling update of three servers that just exit",
        "For each server a new pod starts, whose server listens a second later; then the old server exits, without a drain and \
         without a check of its health. A pod joins its VIP when it starts; kube-proxy's rules and the proxies' configuration follow \
         a second after a server listens or has exited. HAProxy checks its servers each second. Numbers of new connections, by how \
         many arrive a second; those that a server has accepted before it exits are reset by whatever path. Repeated SYNs: the \
         clients'.",
    );
    for rate in &scale.arrivals {
        table.columns.extend(update_columns(*rate).map(|name| Column::new(name, Unit::Count)));
    }
    rows(&mut table, "u", |make, name| {
        let update = |(number, rate): (usize, &f64)| update(make(), &format!("{name}-{number}"), *rate, scale);
        Ok(scale.arrivals.iter().enumerate().map(update).collect::<Result<Vec<_>>>()?.concat())
    })?;
    Ok(table)
}

/// As [`update_columns`] has them.
fn update(contender: Box<dyn Contender>, name: &str, rate: f64, scale: &Scale) -> Result<Vec<f64>> {
    let mut deployment = Deployment::new(contender, name)?;
    let repeated = |world: &World| counter(&world.client, "netstat", "TcpExt", "TCPSynRetrans");
    let before = repeated(&deployment.world)?;
    let arrivals = Arrivals::start(&deployment.world.client, deployment.to, rate);
    thread::sleep(scale.step);
    for old in 0..REPLICAS {
        deployment.start(old + REPLICAS)?;
        thread::sleep(scale.step);
        deployment.exit(old)?;
        thread::sleep(scale.step);
    }
    let count = arrivals.end()?;
    let repeated = repeated(&deployment.world)? - before;
    let numbers = [count.begun, count.refused, count.reset + count.timed_out, usize::try_from(repeated)?];
    Ok(numbers.map(|number| number as f64).into())
}

fn drains(scale: &Scale) -> Result<Table> {
    let connections = scale.connections / 4;
    let mut table = Table::new(
        "drain",
        "Drain and scale under load",
        &format!(
            "{connections} live connections that are asked all the time and {RATE} new ones a second; meanwhile one replica of three \
             is drained, two more are added, and all but one are drained. Pods that are drained live on. Broken: live connections \
             that another replica answers, or none. To a drained replica: new connections from the next second on. Tracked \
             connections: in the node's kernel at the end."
        ),
    );
    table.columns = DRAIN_COLUMNS.map(|name| Column::new(name, Unit::Count)).into();
    rows(&mut table, "d", |make, name| drain(make(), name, connections))?;
    Ok(table)
}

/// As [`DRAIN_COLUMNS`] has them.
fn drain(contender: Box<dyn Contender>, name: &str, connections: usize) -> Result<Vec<f64>> {
    let mut deployment = Deployment::new(contender, name)?;
    let added: Vec<usize> = (REPLICAS..REPLICAS + 2).collect();
    for pod in &added {
        deployment.servers[*pod] = Some(Server::start([&deployment.world.pods[*pod]])?);
    }
    let mut flows = Flows::open(&deployment.world.client, deployment.to, connections)?;
    let arrivals = Arrivals::start(&deployment.world.client, deployment.to, RATE);
    let mut to_drained = 0;
    let steps = [vec![1, 2], [vec![1, 2], added].concat(), vec![1]];
    for serving in steps {
        let drained: Vec<usize> = deployment.serving.iter().copied().filter(|pod| !serving.contains(pod)).collect();
        deployment.serve(serving)?;
        ask(&mut flows, NOTICE)?;
        let before = arrivals.count();
        ask(&mut flows, NOTICE)?;
        let after = arrivals.count();
        let name = |pod: &usize| deployment.world.pods[*pod].name();
        to_drained += drained.iter().map(name).map(|name| after.of(&name) - before.of(&name)).sum::<usize>();
    }
    let count = arrivals.end()?;
    let numbers = [flows.broken(), count.failed(), to_drained, deployment.world.tracked()? as usize];
    Ok(numbers.map(|number| number as f64).into())
}

/// Asks all live connections again and again.
fn ask(flows: &mut Flows, time: Duration) -> Result<()> {
    for _ in 0..time.as_millis() / PAUSE.as_millis() {
        flows.ask();
        flows.hear()?;
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A service whose replicas come and go. Fields are dropped in this order.
struct Deployment {
    contender: Box<dyn Contender>,
    /// One each, so that one can end.
    servers: Vec<Option<Server>>,
    world: World,
    serving: Vec<usize>,
    to: SocketAddrV4,
}

impl Deployment {
    fn new(mut contender: Box<dyn Contender>, name: &str) -> Result<Self> {
        let world = World::new(name, 2 * REPLICAS, PodKind::Connected)?;
        let serving: Vec<usize> = (0..REPLICAS).collect();
        let start = |(at, pod)| if at < REPLICAS { Server::start([pod]).map(Some) } else { Ok(None) };
        let servers = world.pods.iter().enumerate().map(start).collect::<Result<_>>()?;
        let to = *contender.serve(&world, 1, &serving)?.first().context("a service")?;
        contender.settle()?;
        Ok(Self { contender, servers, world, serving, to })
    }

    fn serve(&mut self, serving: Vec<usize>) -> Result<()> {
        self.serving = serving;
        self.contender.serve(&self.world, 1, &self.serving).map(drop)
    }

    /// A pod starts, and a while later its server listens.
    fn start(&mut self, pod: usize) -> Result<()> {
        let serving = [&self.serving[..], &[pod]].concat();
        if self.contender.joins_at_start() {
            self.serve(serving.clone())?;
        }
        thread::sleep(START);
        self.servers[pod] = Some(Server::start([&self.world.pods[pod]])?);
        if !self.contender.joins_at_start() {
            thread::sleep(NOTICE);
            self.serve(serving)?;
        }
        Ok(())
    }

    /// A server exits, and a while later its pod's network goes.
    fn exit(&mut self, pod: usize) -> Result<()> {
        self.servers[pod] = None;
        thread::sleep(NOTICE);
        self.contender.pod_removed(&self.world, pod)?;
        self.serve(self.serving.iter().copied().filter(|serving| *serving != pod).collect())?;
        self.world.node.ip_lines(&format!("link del {}\n", self.world.pods[pod].host)).map(drop)
    }
}
