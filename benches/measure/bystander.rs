//! What a pod without a VIP pays for what its node has for others.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use super::Scale;
use super::nodes::{alone, members};
use crate::load::{PORT, Path, Slices, Transaction, carried};
use crate::results::{Column, Outcome, Table, Unit, pooled};
use crate::stage::{Join, Lan, Netns, Node, NodePod, PATIENCE, Sidecar, try_until};

/// What the others are compared with.
pub const BASE: &str = "a node without viproute";

/// What the node has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Has {
    Nothing,
    /// A VIP with a replica.
    Vip,
    /// That, and it knows another node.
    Others,
}

/// The row's name, what the node has, and whether there is any policy rule.
const ROWS: [(&str, Has, bool); 4] = [
    (BASE, Has::Nothing, false),
    ("a VIP on the node", Has::Vip, false),
    ("a VIP, and the node knows another", Has::Others, false),
    ("no viproute, and a policy rule for another device", Has::Nothing, true),
];
const SIZES: [(usize, &str); 2] = [(64, "64-byte packets"), (1400, "1,400-byte packets")];

/// For each second of CPU time, of datagrams to a pod that has no VIP.
pub fn table(scale: &Scale) -> Result<Table> {
    let mut table = Table::new(
        "bystander",
        "A pod without a VIP",
        "Datagrams from a client on the LAN to a pod's own address, for each second of CPU time of client, node and pod. The pod has no VIP: what its node has for other \
         pods is in its packets' way. The last row is what a network namespace's first policy rule costs, whosever it is.",
    );
    let runs = (0..scale.nodes).map(|_| once(scale)).collect::<Result<Vec<_>>>()?;
    for (at, (_, name)) in SIZES.into_iter().enumerate() {
        let outcomes = pooled(runs.iter().map(|run| run[at].clone()).collect());
        let rows = ROWS.iter().map(|(name, ..)| (*name).to_owned()).zip(outcomes);
        table.add(&[Column::new(name, Unit::PerSecond)], rows.collect::<Vec<(String, Outcome)>>());
    }
    Ok(table.beside(BASE))
}

/// On nodes that are made for it: for each size, each row's outcome.
fn once(scale: &Scale) -> Result<Vec<Vec<Outcome>>> {
    let site =
        |(_, has, has_rule): &(&str, Has, bool)| Site::new(*has, *has_rule).map_err(|error| format!("{error:#}"));
    let sites: Vec<_> = ROWS.iter().map(site).collect();
    let paths: Vec<_> = sites.iter().map(|site| site.as_ref().map(Site::path).map_err(Clone::clone)).collect();
    let slices = Slices { rounds: scale.slices, length: scale.slice };
    carried(&paths, &SIZES.map(|(size, _)| Transaction::Datagrams(size)), slices)
}

/// Fields are dropped in this order.
struct Site {
    client: Netns,
    bystander: NodePod,
    _sidecars: Vec<Sidecar>,
    _pods: Vec<NodePod>,
    _nodes: [Node; 2],
    _lan: Lan,
}

impl Site {
    fn new(has: Has, has_rule: bool) -> Result<Self> {
        let lan = Lan::new();
        let nodes = [1, 2].map(|number| Node::without_allocator(&lan, number));
        let node = &nodes[0];
        let client = lan.client(50, &["10.1.1.0/24 via 192.0.2.1"]);
        node.ns.set_sysctl("net/ipv4/ip_forward", "1");
        if has_rule {
            node.ns.ip_lines("rule add pref 118 iif none lookup 119")?;
        }
        let sidecars = match has {
            Has::Nothing => Vec::new(),
            Has::Vip => vec![alone(node)?],
            Has::Others => members(&nodes)?,
        };
        let bystander = node.pod();
        let mut pods = Vec::new();
        if has != Has::Nothing {
            pods.push(node.joined(&Join::annotated("web")));
            let table = || node.ns.cmd("nft").args(["list", "table", "ip", "viproute"]).output();
            let is_there = || table().is_ok_and(|listed| listed.status.success()).then_some(());
            try_until("the node's nftables table is there", PATIENCE, is_there)?;
        }
        if has == Has::Others {
            let route = || node.ns.ip("route show table local proto 118").contains("tos 0x1c").then_some(());
            try_until("the VIP's route for other nodes is there", PATIENCE, route).context("membership")?;
        }
        Ok(Self { client, bystander, _sidecars: sidecars, _pods: pods, _nodes: nodes, _lan: lan })
    }

    fn path(&self) -> Path {
        let own = IpAddr::V4(self.bystander.address());
        let to = vec![SocketAddr::new(own, PORT)];
        Path {
            client: self.client.path(),
            datagrams: Ok(to.clone()),
            to,
            pods: vec![(self.bystander.ns.path(), own)],
            processes: Vec::new(),
        }
    }
}
