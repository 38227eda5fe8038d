//! What a transaction costs in CPU time, client, node and pods together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Result, ensure};

use super::Scale;
use super::data_path::everyone;
use crate::contenders::{Contender, DIRECT, Direct, Viproute, track_connections};
use crate::load::{Path, Slices, Transaction, carried};
use crate::results::{Chapter, Column, Outcome, Table, Unit, pooled};
use crate::stage::{PodKind, World, as_ipv6};

/// The transactions and their columns.
pub const COLUMNS: [(Transaction, &str, Unit); 7] = [
    (Transaction::Requests, "requests", Unit::PerSecond),
    (Transaction::InTurn, "requests in turn", Unit::PerSecond),
    (Transaction::Connections, "connections", Unit::PerSecond),
    (Transaction::Datagrams(64), "64-byte packets", Unit::PerSecond),
    (Transaction::Datagrams(1400), "1,400-byte packets", Unit::PerSecond),
    (Transaction::Echo, "UDP answers", Unit::PerSecond),
    (Transaction::Bulk, "bulk", Unit::BytesPerSecond),
];
const REPLICAS: usize = 3;
/// Those of a change's after-effects: what is open isn't concerned.
const AFTER_A_CHANGE: usize = 3;

pub fn run(scale: &Scale) -> Result<Chapter> {
    let method = "Transactions that one second of CPU time carries: one thread on one processor is client, node and servers, so \
                  that its CPU time is all that a transaction costs, kernel included; a proxy's processes on that processor are added. Slices of \
                  a few milliseconds, contenders in turn; other load on the machine isn't counted.";
    let untracked = format!(
        "{method} The node tracks no connections, but for kube-proxy's rules, which need it. Requests: 64 at a time over as many \
         connections that stay; in turn: one after another. Connections: connect, request, answer, close. Packets: UDP one way, \
         those that arrived. Bulk: 6 downloads."
    );
    let tracked = "The same where kube-proxy's nftables rules (for 10 other services) and connection tracking are on every node, as \
                   on a node of a Kubernetes cluster.";
    let mut plain = Table::new("cpu", "For each second of CPU time", &untracked);
    let mut kubernetes =
        Table::new("cpu-tracked", "For each second of CPU time, on a node that tracks connections", tracked);
    let mut fresh = Table::new(
        "cpu-change",
        "For each second of CPU time, just after a change",
        "As the first table, but right after the replicas have joined. For two minutes after a change of its replicas a VIP searches \
         all of them for each SYN; everywhere else on this page that time has passed.",
    );
    measure(&mut plain, everyone, scale, &State { settled: true, tracked: false })?;
    measure(&mut kubernetes, everyone, scale, &State { settled: true, tracked: true })?;
    measure(&mut fresh, own, scale, &State { settled: false, tracked: false })?;
    Ok(Chapter {
        title: "CPU time".into(),
        text: "× is how many times the pod's own address it carries: above 1 the path costs less.".into(),
        tables: [plain, kubernetes, fresh].map(|table| table.beside(DIRECT)).into(),
    })
}

/// Those with after-effects of a change, and what they are compared with.
fn own() -> Vec<Box<dyn Contender>> {
    vec![Box::new(Direct), Box::new(Viproute::default()), Box::new(Viproute::without_express())]
}

/// What all nodes of a table have in common.
pub struct State {
    /// The after-effects of the last change are over.
    pub settled: bool,
    pub tracked: bool,
}

impl State {
    fn columns(&self) -> &'static [(Transaction, &'static str, Unit)] {
        if self.settled { &COLUMNS } else { &COLUMNS[..AFTER_A_CHANGE] }
    }
}

fn measure(table: &mut Table, all: fn() -> Vec<Box<dyn Contender>>, scale: &Scale, state: &State) -> Result<()> {
    let names: Vec<&str> = all().iter().map(|contender| contender.name()).collect();
    let runs = (0..scale.nodes).map(|_| once(all(), scale, state)).collect::<Result<Vec<_>>>()?;
    for (at, (_, name, unit)) in state.columns().iter().enumerate() {
        let outcomes = pooled(runs.iter().map(|run| run[at].clone()).collect());
        let rows = names.iter().map(|name| (*name).to_owned()).zip(outcomes);
        table.add(&[Column::new(*name, *unit)], rows.collect::<Vec<(String, Outcome)>>());
    }
    Ok(())
}

/// On nodes that are made for it: for each column, each contender's outcome.
fn once(contenders: Vec<Box<dyn Contender>>, scale: &Scale, state: &State) -> Result<Vec<Vec<Outcome>>> {
    let site = |(number, contender)| Site::new(contender, number, state).map_err(|error| format!("{error:#}"));
    let mut sites: Vec<_> = contenders.into_iter().enumerate().map(site).collect();
    if state.settled {
        sites.iter_mut().flatten().try_for_each(|site| site.contender.settle())?;
    }
    let kinds: Vec<Transaction> = state.columns().iter().map(|(kind, ..)| *kind).collect();
    let paths: Vec<_> = sites.iter().map(|site| site.as_ref().map(Site::path).map_err(Clone::clone)).collect();
    let outcomes = carried(&paths, &kinds, Slices { rounds: scale.slices, length: scale.slice })?;
    for site in sites.iter().flatten().filter(|site| site.contender.joins_at_start()) {
        ensure!(site.contender.is_settled()? == state.settled, "the state has changed while it was measured");
    }
    Ok(outcomes)
}

/// A contender on a node of its own; its pods' servers are the measuring thread's. Fields are dropped in this order.
pub struct Site {
    pub contender: Box<dyn Contender>,
    pub world: World,
    targets: Vec<SocketAddrV4>,
}

impl Site {
    pub fn new(contender: Box<dyn Contender>, number: usize, state: &State) -> Result<Self> {
        Self::of(contender, (number, PodKind::Connected), state)
    }

    /// With pods of that kind.
    pub fn of(mut contender: Box<dyn Contender>, (number, kind): (usize, PodKind), state: &State) -> Result<Self> {
        let world = World::new(&format!("c{number}"), REPLICAS, kind)?;
        if state.tracked && !contender.has_kube_rules() {
            track_connections(&world)?;
        }
        let targets = contender.serve(&world, 1, &(0..REPLICAS).collect::<Vec<_>>())?;
        Ok(Self { contender, world, targets })
    }

    /// As many services, with the after-effects of that over.
    pub fn serve(&mut self, services: usize) -> Result<()> {
        self.targets = self.contender.serve(&self.world, services, &(0..REPLICAS).collect::<Vec<_>>())?;
        self.contender.settle()
    }

    pub fn path(&self) -> Path {
        self.path_by(IpAddr::V4)
    }

    /// To the same by IPv6.
    pub fn path6(&self) -> Path {
        self.path_by(|address| as_ipv6(address).into())
    }

    fn path_by(&self, of: impl Fn(Ipv4Addr) -> IpAddr) -> Path {
        let all = |targets: &[SocketAddrV4]| -> Vec<SocketAddr> {
            targets.iter().map(|target| SocketAddr::new(of(*target.ip()), target.port())).collect()
        };
        Path {
            client: self.world.client.path(),
            to: all(&self.targets),
            datagrams: self.contender.datagrams(&self.targets).map(all),
            pods: self.world.pods.iter().map(|pod| (pod.ns.path(), of(pod.address))).collect(),
            processes: self.contender.processes(),
        }
    }
}
