//! Two nodes: a replica on the node that the packets come to, and one on the other node.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};

use super::data_path::CONCURRENCY;
use super::{Scale, bystander};
use crate::contenders::dnat_to;
use crate::load::{Load, PORT, Server};
use crate::results::{Chapter, Column, Outcome, Table, Unit, interleaved};
use crate::stage::{Join, Lan, Netns, Node, NodePod, PATIENCE, Run, Sidecar, program, try_until};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 118, 9, 1);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// What the others are compared with.
const BASE: &str = "viproute, replica here";

/// The row's name, whether it is viproute's, and the place of the node that has the replica.
const ROWS: [(&str, bool, usize); 4] = [
    (BASE, true, 0),
    ("viproute, replica on the other node", true, 1),
    ("kube-proxy's nftables rules, pod here", false, 0),
    ("kube-proxy's nftables rules, pod on the other node", false, 1),
];

pub fn run(scale: &Scale) -> Result<Chapter> {
    let sites: Vec<_> =
        ROWS.iter().map(|(_, ours, at)| Site::new(*ours, *at).map_err(|error| format!("{error:#}"))).collect();
    let mut table = Table::new(
        "nodes",
        "A replica on another node",
        &format!(
            "A client on the LAN, two nodes, one replica. All packets to the VIP, or to the service's address, come to the first node: as the one that answers ARP, \
             with MetalLB in layer 2 mode beside kube-proxy. {CONCURRENCY} connections at a time. viproute's go by the tunnel, and answers straight back; kube-proxy's \
             are rewritten and masqueraded, and answers come back by the first node."
        ),
    );
    let columns = [Column::new("connections/s", Unit::PerSecond), Column::new("requests/s", Unit::PerSecond)];
    let outcomes = interleaved(sites.len(), scale.rounds, |at| match &sites[at] {
        Ok(site) => {
            let to = [site.target];
            let load = Load { from: &site.client, to: &to, concurrency: CONCURRENCY, time: scale.time };
            Ok(vec![load.connections()?.rate()?, load.requests()?.rate()?])
        }
        Err(reason) => Err(anyhow::anyhow!(reason.clone())),
    });
    let names = ROWS.iter().map(|(name, ..)| (*name).to_owned());
    table.add(&columns, names.zip(outcomes).collect::<Vec<(String, Outcome)>>());
    Ok(Chapter {
        title: "Two nodes".into(),
        text: "Nodes, clients and pods share the machine's processors, so that a second node costs what it costs and takes no load off the first.".into(),
        tables: vec![table.beside(BASE), bystander::table(scale)?],
    })
}

/// Fields are dropped in this order.
struct Site {
    client: Netns,
    target: SocketAddrV4,
    _servers: Server,
    _sidecars: Vec<Sidecar>,
    _pods: Vec<NodePod>,
    _nodes: [Node; 2],
    _lan: Lan,
}

impl Site {
    /// The replica is on the node in that place.
    fn new(ours: bool, at: usize) -> Result<Self> {
        let lan = Lan::new();
        let nodes = [1, 2].map(|number| Node::without_allocator(&lan, number));
        let client = lan.client(50, &["10.96.0.0/16 via 192.0.2.1", "10.118.0.0/16 via 192.0.2.1"]);
        for ns in nodes.iter().map(|node| &node.ns).chain([&client]) {
            ns.set_sysctl("net/ipv4/ip_forward", "1");
            ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
            ns.set_sysctl("net/ipv4/tcp_max_tw_buckets", "0");
        }
        for (node, other) in [(0, 2), (1, 1)] {
            nodes[node].ns.ip_lines(&format!("route add 10.1.{other}.0/24 via 192.0.2.{other}"))?;
        }
        let sidecars = if ours { members(&nodes)? } else { Vec::new() };
        let mut pods = Vec::new();
        if ours {
            // The first node's programs come with its first pod.
            pods.push(nodes[0].joined(&Join::annotated("own")));
        }
        let pod = nodes[at].pod();
        let servers = Server::at(vec![(pod.ns.path(), pod.name.clone())])?;
        let address = if ours { VIP } else { SERVICE };
        if ours {
            nodes[at].add(&pod, &Join::annotated("web")).ok();
            let leads = || nodes[0].ns.ip(&format!("route show {VIP} proto 118")).contains("nhid");
            try_until("the VIP's route is on the first node", PATIENCE, || leads().then_some(()))?;
        } else {
            dnat_to(&nodes[0].ns, SERVICE, &[pod.address()])?;
        }
        pods.push(pod);
        let target = SocketAddrV4::new(address, PORT);
        Ok(Self { client, target, _servers: servers, _sidecars: sidecars, _pods: pods, _nodes: nodes, _lan: lan })
    }
}

/// viprouted on a node that knows no other.
pub fn alone(node: &Node) -> Result<Sidecar> {
    Sidecar::try_run(node.dir.path(), &settings(1), node.ns.cmd(program("viprouted")))
}

fn settings(number: usize) -> String {
    format!(
        "backend = \"pool\"\nannounce = \"none\"\nallow = [\"10.118.0.0/16\"]\n[pool]\ncidr = \"10.118.{number}.0/24\"\n\
         [[pin]]\nvip = \"default/web\"\naddress = \"{VIP}\"\n"
    )
}

/// viprouted on both, which know each other.
pub fn members(nodes: &[Node; 2]) -> Result<Vec<Sidecar>> {
    let key = nodes[0].dir.file("membership.key");
    nodes[0].ns.cmd(program("viproutectl")).args(["key", "new", &key]).output_of("").context("a key")?;
    let start = |(number, node): (usize, &Node)| {
        let membership =
            format!("[membership]\nseeds = [\"192.0.2.1\", \"192.0.2.2\"]\nkey_file = {key:?}\nname = \"n{number}\"");
        let settings = settings(number) + &membership;
        Sidecar::try_run(node.dir.path(), &settings, node.ns.cmd(program("viprouted")))
    };
    (1..).zip(nodes).map(start).collect()
}
