//! Live connections, and what breaks them.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Scale;
use crate::contenders::{
    Contender, ECMP, EXPRESS_SWITCHED, Ecmp, HAPROXY, Haproxy, KUBE_IPTABLES, KUBE_NFTABLES, KubeIptables,
    KubeNftables, NGINX_STREAM, Nginx, VIPROUTE, Viproute, WITHOUT_EXPRESS,
};
use crate::load::{Flows, Server};
use crate::results::{Chapter, Column, Table, Unit};
use crate::stage::{PodKind, World};

/// Pods that serve from the start, and one that is there to join. A rolling restart takes as many more.
const REPLICAS: usize = 3;
/// Long enough for TCP's retransmission time-out, more than once.
const OUTAGE: Duration = Duration::from_millis(1500);

/// What happens to a service with live connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Added,
    Removed,
    Drained,
    RouteChanged,
    TimeOut,
    Restarted,
    Reloaded,
    Rolled,
}

impl Event {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Added, "replica added"),
        (Self::Removed, "replica removed, less its own"),
        (Self::Drained, "replica drained"),
        (Self::RouteChanged, "unrelated route changed"),
        (Self::TimeOut, "retransmission time-out"),
        (Self::Restarted, "proxy or agent restarted"),
        (Self::Reloaded, "proxy reloaded"),
        (Self::Rolled, "rolling restart of all"),
    ];
}

/// A contender, and how to make one.
type Maker = (&'static str, fn() -> Box<dyn Contender>);

pub fn run(scale: &Scale) -> Result<Chapter> {
    let makers: [Maker; 8] = [
        (VIPROUTE, || Box::new(Viproute::default())),
        (WITHOUT_EXPRESS, || Box::new(Viproute::without_express())),
        (EXPRESS_SWITCHED, || Box::new(Viproute::express_switched())),
        (ECMP, || Box::new(Ecmp)),
        (KUBE_IPTABLES, || Box::new(KubeIptables::default())),
        (KUBE_NFTABLES, || Box::new(KubeNftables::default())),
        (HAPROXY, || Box::new(Haproxy::default())),
        (NGINX_STREAM, || Box::new(Nginx::stream())),
    ];
    let mut table = Table::new(
        "survival",
        &format!("Broken of {} live connections", scale.connections),
        "Connections from outside, all asked before, across and after the event; one that isn't answered by the replica it began \
         with is broken. Drained: no new connections, the pod lives on. Rolling restart: for each replica a new pod joins and the \
         old one is drained. Time-out: what the client sends is lost for 1.5 s, every connection's request with it. A proxy or \
         agent is killed and started again; kube-proxy's part of that is writing all its rules anew. Express switched: off before the event, on again after it.",
    );
    table.columns = Event::ALL.iter().map(|(_, name)| Column::new(*name, Unit::Count)).collect();
    // Side by side: nothing here is timed, and most of it is waiting.
    let rows = thread::scope(|scope| {
        let row = |(number, (_, make)): (usize, &Maker)| {
            let make = *make;
            scope.spawn(move || survive_all(make, &format!("s{number}"), scale))
        };
        let rows: Vec<_> = makers.iter().enumerate().map(row).collect();
        rows.into_iter().map(|row| row.join().ok().context("a contender's thread")).collect::<Result<Vec<_>>>()
    })?;
    for ((name, _), row) in makers.iter().zip(rows) {
        table.note(name, row);
    }
    Ok(Chapter {
        title: "Survival".into(),
        text: "Every cell is a fresh node with a fresh contender.".into(),
        tables: vec![table],
    })
}

/// One contender's row; its worlds are called `name` and something.
fn survive_all(make: fn() -> Box<dyn Contender>, name: &str, scale: &Scale) -> Vec<Outcome> {
    let cell = |(number, (event, _)): (usize, (Event, &str))| {
        let broken = survive(make(), event, &format!("{name}{number}"), scale);
        broken.map_err(|error| format!("{error:#}"))?.map(|broken| vec![broken])
    };
    Event::ALL.into_iter().enumerate().map(cell).collect()
}

/// A cell: the number of broken connections, or why there is none.
type Outcome = std::result::Result<Vec<f64>, String>;

/// How many break; or, without a fault of anybody's, why that can't be asked.
fn survive(
    contender: Box<dyn Contender>,
    event: Event,
    name: &str,
    scale: &Scale,
) -> Result<std::result::Result<f64, String>> {
    let mut deployment = Deployment::new(contender, name)?;
    let to = *deployment.contender.serve(&deployment.world, 1, &deployment.serving)?.first().context("a service")?;
    let mut flows = Flows::open(&deployment.world.client, to, scale.connections)?;
    let own = flows.of(&deployment.world.pods[0].name());
    deployment.contender.switch(&deployment.world)?;
    if let Some(reason) = deployment.trigger(event, &mut flows, scale.settled)? {
        return Ok(Err(reason.to_owned()));
    }
    flows.ask();
    flows.hear()?;
    deployment.contender.switch(&deployment.world)?;
    // Twice: the first question may be what moves a connection.
    for pause in [Duration::ZERO, scale.settled] {
        thread::sleep(pause);
        flows.ask();
        flows.hear()?;
    }
    let broken = match event {
        Event::Removed => flows.broken_without(&deployment.world.pods[0].name()),
        _ => flows.broken(),
    };
    anyhow::ensure!(event != Event::Removed || own > 0, "the removed replica had no connections");
    Ok(Ok(broken as f64))
}

/// A service while something happens to it. Fields are dropped in this order.
struct Deployment {
    contender: Box<dyn Contender>,
    /// One each, so that one can end.
    servers: Vec<Option<Server>>,
    world: World,
    serving: Vec<usize>,
}

impl Deployment {
    fn new(contender: Box<dyn Contender>, name: &str) -> Result<Self> {
        let world = World::new(name, 2 * REPLICAS, PodKind::Connected)?;
        let servers = world.pods.iter().map(|pod| Server::start([pod]).map(Some)).collect::<Result<_>>()?;
        Ok(Self { contender, servers, world, serving: (0..REPLICAS).collect() })
    }

    fn serve(&mut self, serving: Vec<usize>) -> Result<()> {
        self.serving = serving;
        self.contender.serve(&self.world, 1, &self.serving).map(drop)
    }

    /// `Some`: why it can't happen to this contender.
    fn trigger(&mut self, event: Event, flows: &mut Flows, settled: Duration) -> Result<Option<&'static str>> {
        match event {
            Event::Added => self.serve((0..=REPLICAS).collect())?,
            Event::Removed => {
                // As a runtime does it: the processes end, then the network is taken away.
                self.servers[0] = None;
                self.contender.pod_removed(&self.world, 0)?;
                self.world.node.ip_lines(&format!("link del {}\n", self.world.pods[0].host))?;
                self.serve((1..REPLICAS).collect())?;
            }
            Event::Drained => self.serve((1..REPLICAS).collect())?,
            Event::RouteChanged => {
                self.world.node.ip_lines("route add 203.0.113.0/24 dev eth0\nroute del 203.0.113.0/24 dev eth0\n")?;
            }
            Event::TimeOut => {
                // Lost without a word, as on a bad link: the client must not notice that its own device is down.
                self.world.node.ip_lines("rule add iif eth0 priority 1 blackhole\n")?;
                flows.ask();
                thread::sleep(OUTAGE);
                self.world.node.ip_lines("rule del iif eth0 priority 1 blackhole\n")?;
                flows.hear()?;
            }
            Event::Restarted => return self.contender.restart(&self.world),
            Event::Reloaded => return self.contender.reload(&self.world),
            Event::Rolled => {
                for at in 0..REPLICAS {
                    self.serve((at + 1..=REPLICAS + at).collect())?;
                    thread::sleep(settled);
                    flows.ask();
                    flows.hear()?;
                }
            }
        }
        Ok(None)
    }
}
