//! Three nodes on one LAN, whose knowledge of each other the tests write.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use viproute::internals::model::{Family, NodeId};
use viproute::internals::registry::Registry;

use super::translated::{joining, served};
use crate::harness::{
    Crowd, FAR_NEXTHOPS, FarReplicas, Flows, Join, Lan, Netns, PATIENCE, PORT, Page, Pod, SOON, Sidecar,
    allow_many_files, far_endpoint, until, vip_dir, write_endpoint,
};

/// Each hands out addresses by itself, which the others may serve too: the VIP is pinned, as it has to be there.
const SETTINGS: &str = r#"
    backend = "pool"
    cluster = "one"
    peers = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    announce = "none"
    [pool]
    cidr = "10.118.0.0/24"
    {CIDR6}
    [[pin]]
    vip = "default/web"
    address = "10.118.0.1"
"#;
/// Where VIPs have addresses of both families.
const CIDR6: &str = "fd00:118::/96";

/// A node with viprouted, its replicas, and a pod that is none.
pub struct Node {
    pub pods: Vec<Pod>,
    /// How each has joined, by its place.
    joins: Vec<Join>,
    /// Whose servers run; a drained one's as well.
    servers: Vec<Crowd>,
    /// Joined, by the pod's place.
    joined: Vec<usize>,
    drained: Vec<usize>,
    pub bystander: Pod,
    /// The only family of its addresses on the LAN.
    pub underlay: Option<Family>,
    _sidecar: Sidecar,
    pub host: crate::harness::Node,
}

impl Node {
    pub fn ns(&self) -> &Netns {
        &self.host.ns
    }

    fn ready_pods(&self) -> impl Iterator<Item = usize> {
        self.joined.iter().copied().filter(|pod| !self.drained.contains(pod))
    }

    fn ready(&self) -> usize {
        self.ready_pods().count()
    }

    /// What it tells the others of its ready pods' ports; none: they list none.
    fn served(&self) -> Option<String> {
        let mut weights = BTreeMap::<String, usize>::new();
        for place in self.ready_pods() {
            let lists = self.joins[place].annotations.as_ref().and_then(|all| all.get("viproute.io/ports")?.as_str());
            for port in lists.into_iter().flat_map(|ports| ports.split(',')) {
                // 8080:9001/tcp: the VIP's number, and the protocol.
                let (number, transport) = port.split_once('/').expect("a protocol");
                let number = number.split(':').next().expect("a number");
                *weights.entry(format!("{number}/{transport}")).or_default() += 1;
            }
        }
        let said: Vec<_> = weights.iter().map(|(port, weight)| format!("{port}={weight}")).collect();
        (!said.is_empty()).then(|| said.join(","))
    }

    /// How many members of the VIP's group lead to other nodes.
    pub fn far_legs(&self) -> usize {
        let members = |group: &Value| group["group"].as_array().cloned().unwrap_or_default();
        let groups = self.ns().ip_json("nexthop show proto 118 groups");
        let ids = groups.iter().flat_map(members).filter_map(|member| member["id"].as_u64());
        ids.filter(|id| *id > u64::from(FAR_NEXTHOPS)).count()
    }

    /// Removes the record of another node's replicas.
    fn forgets(&self, other: u8) {
        write_endpoint(&self.host, &far_endpoint(other.into()), None);
    }

    fn set_state(&self, pod: &Pod, state: &str) {
        let file = format!("{}@eth0.json", pod.id);
        let mut endpoint: Value =
            serde_json::from_str(&fs::read_to_string(format!("{}/endpoints/{file}", vip_dir(&self.host))).unwrap())
                .unwrap();
        endpoint["state"] = json!(state);
        write_endpoint(&self.host, &file, Some(endpoint.to_string()));
    }
}

pub struct Cluster {
    nodes: Vec<Node>,
    pub client: Netns,
    routed: Netns,
    pub lan: Lan,
    pub vip: Ipv4Addr,
    /// Which of the VIP's addresses clients ask.
    pub to: IpAddr,
    /// The only family that nodes have addresses of on the LAN; none: IPv4 at least.
    underlay: Option<Family>,
    /// Nodes that the others take to be away.
    suspects: Vec<u8>,
    /// Nodes that know no other.
    alone: Vec<u8>,
    /// How pods join, by their nodes.
    joins: [Join; 3],
    ports: Ports,
    /// It says that UDP flows stay.
    is_sticky: bool,
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

fn at(number: u8, underlay: Option<Family>) -> IpAddr {
    match underlay {
        Some(Family::V6) => address6(number).into(),
        _ => address(number).into(),
    }
}

/// What a node knows of the others, as viprouted writes it.
fn write_nodes(on: &crate::harness::Node, (number, others): (u8, &[u8]), underlay: Option<Family>, suspects: &[u8]) {
    let of = |number: u8| {
        let at = at(number, underlay);
        let mut node = json!({ "id": NodeId::of(at), "name": format!("n{number}"), "tunnel": at });
        if at.is_ipv6() {
            node["heard6"] = json!(at);
        }
        node
    };
    let other = |number: &u8| {
        let mut node = of(*number);
        node["number"] = json!(number);
        node["state"] = json!(if suspects.contains(number) { "suspect" } else { "live" });
        node
    };
    let nodes: Vec<_> = others.iter().map(other).collect();
    let text = json!({ "schema": 2, "own": of(number), "nodes": nodes }).to_string();
    let path = format!("{}/nodes.json", on.data());
    fs::write(format!("{path}.tmp"), text).unwrap();
    fs::rename(format!("{path}.tmp"), path).unwrap();
}

/// As viprouted makes it of the node's id.
fn on_tunnel(id: NodeId) -> Ipv6Addr {
    let [a, b, c, d] = id.0.octets();
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x76, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

impl Cluster {
    /// `replicas` on each of three nodes; packets for the VIP come to node 1.
    pub fn new(replicas: usize) -> Self {
        Self::by(Family::V4, replicas)
    }

    /// The same of a VIP whose clients ask by that family. With IPv6 it has addresses of both.
    pub fn by(family: Family, replicas: usize) -> Self {
        Self::build(Form::of(family, Ports::Same), [1, 2, 3].map(|_| Join::annotated("web")), replicas)
    }

    /// The same of nodes that have addresses of IPv6 alone, as their clients and routers do.
    pub fn over_ipv6(replicas: usize) -> Self {
        let form = Form { family: Family::V6, underlay: Some(Family::V6), ports: Ports::Same };
        Self::build(form, [1, 2, 3].map(|_| Join::annotated("web")), replicas)
    }

    /// The same of a VIP whose UDP flows stay.
    pub fn sticky(family: Family, replicas: usize) -> Self {
        let join = Join::annotated("web").annotation("viproute.io/ports", "8080/udp,8080/tcp");
        let join = join.annotation("viproute.io/udp-sticky", "true");
        Self::build(Form::of(family, Ports::Same), [1, 2, 3].map(|_| join.clone()), replicas)
    }

    /// Of pods that have another number in the place of the VIP's port, on each node its own.
    pub fn translated(replicas: usize) -> Self {
        Self::build(Form::of(Family::V4, Ports::Translated), [1, 2, 3].map(joining), replicas)
    }

    /// Of pods that join in another way on each node, and whose servers have both ports, whatever they serve.
    pub fn serving(family: Family, joins: &[Join; 3], replicas: usize) -> Self {
        Self::build(Form::of(family, Ports::Both), joins.clone(), replicas)
    }

    /// As the pods join.
    pub fn of(join: &Join, replicas: usize) -> Self {
        Self::build(Form::of(Family::V4, Ports::Same), [1, 2, 3].map(|_| join.clone()), replicas)
    }

    fn build(form: Form, joins: [Join; 3], replicas: usize) -> Self {
        let Form { family, underlay, ports } = form;
        allow_many_files();
        let lan = Lan::new();
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let routed = lan.routed_client();
        let of = |number: u8| node((&lan, number), form, &joins[usize::from(number) - 1], replicas);
        let nodes: Vec<Node> = (1..=3).map(of).collect();
        let vip = nodes[0].pods[0].vip();
        let is_sticky = joins[0].annotations.as_ref().is_some_and(|all| all.get("viproute.io/udp-sticky").is_some());
        let (suspects, alone) = (Vec::new(), Vec::new());
        let to = vip.into();
        let mut cluster =
            Self { nodes, client, routed, lan, vip, to, underlay, suspects, alone, joins, ports, is_sticky };
        for number in (1..=3).filter(|_| underlay.is_none()) {
            for other in (1..=3).filter(|other| *other != number) {
                cluster.node(number).ns().ip(&format!("route add 10.1.{other}.0/24 via {}", address(other)));
            }
            cluster.lan.ns.ip(&format!("route add 10.1.{number}.0/24 via {}", address(number)));
        }
        assert!(cluster.nodes.iter().all(|node| node.pods[0].vip() == vip), "one VIP on all nodes");
        cluster.lan.ns.ip("route add 10.118.0.0/16 via 192.0.2.1");
        if family == Family::V6 {
            cluster.has_ipv6();
        }
        cluster.tell_all();
        cluster
    }

    /// Clients ask by it.
    fn has_ipv6(&mut self) {
        self.lan.add_ipv6(&self.client, 50);
        self.lan.ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        self.lan.ns.ip("addr add 2001:db8:c::1/64 dev clients nodad");
        self.routed.ip("addr add 2001:db8:c::2/64 dev eth0 nodad");
        self.routed.ip("route add default via 2001:db8:c::1");
        for number in 1..=3 {
            for other in (1..=3).filter(|other| *other != number) {
                self.node(number).ns().ip(&format!("route add fd00:1:{other}::/64 via {}", address6(other)));
            }
            self.lan.ns.ip(&format!("route add fd00:1:{number}::/64 via {}", address6(number)));
        }
        let vips: Vec<_> = (1..=3).flat_map(|number| self.node(number).pods[0].vips6()).collect();
        assert!(vips.len() == 3 && vips.iter().all(|vip| *vip == vips[0]), "one address on all nodes: {vips:?}");
        self.to = vips[0].into();
        self.leads_to(1);
    }

    pub fn family(&self) -> Family {
        Family::of(self.to)
    }

    /// Where the node is heard, and its end of the tunnel.
    pub fn at(&self, number: u8) -> IpAddr {
        at(number, self.underlay)
    }

    pub fn id(&self, number: u8) -> NodeId {
        NodeId::of(self.at(number))
    }

    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    fn node_mut(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    pub fn ns(&self, from: &str) -> &Netns {
        match from {
            "the client" => &self.client,
            "the routed client" => &self.routed,
            "a pod on 2" => &self.node(2).bystander.ns,
            "node 1" => self.node(1).ns(),
            "node 3" => self.node(3).ns(),
            other => panic!("{other}"),
        }
    }

    /// Live connections from the client, from a pod of node 2, and from node 1 itself.
    pub fn flows(&self, count: usize) -> Vec<Flows> {
        ["the client", "a pod on 2", "node 1"].map(|from| Flows::open(from, self.ns(from), self.to, count)).into()
    }

    /// All of them answer, each by the replica that it began with, twice.
    pub fn unbroken(live: &mut [Flows], when: &str) {
        Self::unbroken_but(live, &[], when);
    }

    /// The same of those that began with others than the replicas `gone`.
    pub fn unbroken_but(live: &mut [Flows], gone: &[String], when: &str) {
        for _ in 0..2 {
            live.iter_mut().for_each(Flows::ask);
            live.iter_mut().for_each(Flows::hear);
        }
        let complaints: Vec<_> = live.iter().filter_map(|flows| flows.complaint(gone)).collect();
        assert!(complaints.is_empty(), "{when}\n{}", complaints.join("\n"));
    }

    /// They stay while a replica comes, drains and goes on each of these nodes, and while the VIP's packets come to each node in turn.
    pub fn unbroken_by_changes(&mut self, live: &mut [Flows], nodes: &[u8]) {
        for number in nodes {
            self.joins(*number);
            Self::unbroken(live, &format!("a replica joins on {number}"));
            self.drains(*number);
            Self::unbroken(live, &format!("a replica drains on {number}"));
            self.leaves(*number);
            Self::unbroken(live, &format!("the drained replica leaves {number}"));
        }
        for number in [2, 3, 1] {
            self.leads_to(number);
            Self::unbroken(live, &format!("the VIP's packets come to {number}"));
        }
    }

    /// One more replica, which had no connection before.
    pub fn joins(&mut self, number: u8) {
        let join = self.joins[usize::from(number) - 1].clone();
        self.joins_as(number, &join);
    }

    /// The same in another way.
    pub fn joins_as(&mut self, number: u8, join: &Join) {
        let (ports, family) = (self.ports, self.family());
        let node = self.node_mut(number);
        let place = node.pods.len();
        let mut pod = node.host.pod();
        pod.name = format!("n{number}-{}", pod.name);
        node.servers.extend(ports.on(&pod, number, family));
        node.host.add(&pod, join).ok();
        node.pods.push(pod);
        node.joins.push(join.clone());
        node.joined.push(place);
        self.tell_all();
    }

    /// The one that came last.
    pub fn drains(&mut self, number: u8) {
        self.drains_unheard(number);
        self.tell_all();
    }

    /// The others don't learn of it.
    pub fn drains_unheard(&mut self, number: u8) {
        let node = self.node_mut(number);
        let place = *node.joined.last().expect("a replica");
        node.set_state(&node.pods[place], "draining");
        node.drained.push(place);
        let expected = node.ready();
        until("the replica has left the group", SOON, || {
            let table = self.node(number).ns().ip("route show table local proto 118");
            let groups = self.node(number).ns().ip_json("nexthop show proto 118 groups");
            let local = groups.iter().find(|group| group["id"].as_u64().is_some_and(|id| id & 0x0080_0000 != 0));
            let members = local.and_then(|group| group["group"].as_array()).map_or(0, Vec::len);
            (members == expected && (expected > 0) == table.contains("nhid")).then_some(())
        });
    }

    /// The one that came last, by DEL.
    pub fn leaves(&mut self, number: u8) {
        self.leaves_unheard(number);
        self.tell_all();
    }

    /// The others don't learn of it.
    pub fn leaves_unheard(&mut self, number: u8) {
        let join = self.joins[usize::from(number) - 1].clone();
        let node = self.node_mut(number);
        let place = node.joined.pop().expect("a replica");
        node.drained.retain(|drained| *drained != place);
        node.host.del(&node.pods[place], &join).ok();
    }

    /// It has heard of no replica of the others'.
    pub fn has_heard_nothing(&self, number: u8) {
        for other in 1..=3 {
            self.node(number).forgets(other);
        }
        until("the group has no far legs", SOON, || (self.node(number).far_legs() == 0).then_some(()));
    }

    pub fn everything_leaves(&mut self, number: u8) {
        self.alone.push(number);
        for other in 1..=3 {
            self.node(number).forgets(other);
        }
        let join = self.joins[usize::from(number) - 1].clone();
        let node = self.node_mut(number);
        for place in std::mem::take(&mut node.joined) {
            node.host.del(&node.pods[place], &join).ok();
        }
        self.tell_all();
    }

    /// Clients' packets for the VIP come to that node.
    pub fn leads_to(&self, number: u8) {
        for ns in [&self.client, &self.lan.ns] {
            ns.ip(&format!("route replace 10.118.0.0/16 via {}", address(number)));
            if self.family() == Family::V6 {
                ns.ip(&format!("route replace {CIDR6} via {}", address6(number)));
            }
        }
    }

    pub fn suspects(&mut self, number: u8) {
        self.suspects.push(number);
        self.tell_all();
    }

    pub fn trusts(&mut self, number: u8) {
        self.suspects.retain(|suspect| *suspect != number);
        self.tell_all();
    }

    /// Without `nodes.json` and the others' replicas.
    pub fn stands_alone(&mut self, number: u8) {
        self.alone.push(number);
        fs::remove_file(format!("{}/nodes.json", self.node(number).host.data())).unwrap();
        for other in 1..=3 {
            self.node(number).forgets(other);
        }
        self.tell_all();
    }

    /// It and the others know each other again.
    pub fn knows_others(&mut self, number: u8) {
        self.alone.retain(|alone| *alone != number);
        self.tell_all();
    }

    /// Writes on each node what it knows of the others, and waits until its kernel has it. Records of a node that is no longer known go
    /// before the node does, as viprouted has it.
    pub fn tell_all(&mut self) {
        for (number, gone) in (1..=3).flat_map(|number| self.alone.iter().map(move |gone| (number, *gone))) {
            self.node(number).forgets(gone);
        }
        for number in (1..=3).filter(|number| !self.alone.contains(number)) {
            self.write_nodes(number);
        }
        self.learn_devices();
        for number in (1..=3).filter(|number| !self.alone.contains(number)) {
            let expected = self.others(number).filter(|other| self.leg(*other).is_some_and(|ready| ready > 0)).count();
            until("the group has its far legs", PATIENCE, || (self.node(number).far_legs() == expected).then_some(()));
        }
    }

    /// Writes the others' replicas on each node, by its device's index of now.
    pub fn learn_devices(&self) {
        let knows_some = |number: &u8| !self.alone.contains(number) && self.others(*number).next().is_some();
        for number in (1..=3).filter(knows_some) {
            let index = until("the tunnel's device is there", PATIENCE, || {
                let ns = self.node(number).ns();
                let links = ns.has_device("viptun0").then(|| ns.ip_json("link show viptun0"));
                links.and_then(|links| links[0]["ifindex"].as_u64())
            });
            for other in self.others(number) {
                self.write_far(number, other, index);
            }
        }
    }

    fn others(&self, number: u8) -> impl Iterator<Item = u8> {
        let alone = self.alone.clone();
        (1..=3).filter(move |other| *other != number && !alone.contains(other))
    }

    fn write_nodes(&self, number: u8) {
        let others: Vec<u8> = self.others(number).collect();
        write_nodes(&self.node(number).host, (number, &others), self.underlay, &self.suspects);
    }

    /// How many ready replicas the others see on a node; none: it has no replica at all.
    fn leg(&self, number: u8) -> Option<usize> {
        let node = self.node(number);
        let is_away = self.suspects.contains(&number);
        (!node.joined.is_empty()).then(|| if is_away { 0 } else { node.ready() })
    }

    fn write_far(&self, number: u8, other: u8, ifindex: u64) {
        let (on, node) = (&self.node(number).host, self.id(other).0);
        match self.leg(other) {
            Some(ready) => {
                FarReplicas {
                    number: other.into(),
                    node,
                    via: node,
                    device: "viptun0",
                    ifindex,
                    ready,
                    sticky: self.is_sticky,
                    served: self.node(other).served(),
                    via6: (self.family() == Family::V6).then(|| on_tunnel(self.id(other))),
                }
                .write(on);
            }
            None => self.node(number).forgets(other),
        }
    }

    /// Between node 1 and node 2 lies the router, whose links to them take packets of so many bytes.
    pub fn shorter_link(&self, mtu: u16) {
        self.lan.ns.set_sysctl("net/ipv4/conf/all/send_redirects", "0");
        self.lan.ns.set_sysctl("net/ipv4/conf/br0/send_redirects", "0");
        for (node, other) in [(1, 2), (2, 1)] {
            self.lan.ns.ip(&format!("route add {} dev br0 mtu {mtu}", address(node)));
            self.node(node).ns().ip(&format!("route add {} via 192.0.2.254", address(other)));
        }
    }

    /// What the programs counted in the tunnel on a node.
    pub fn counts(&self, number: u8) -> BTreeMap<String, u64> {
        let node = &self.node(number).host;
        let page = Page::of(node);
        let of = |(name, value): (&str, i64)| {
            let outcome = name.strip_prefix("viproute_tunnel_packets_total{outcome=\"")?.strip_suffix("\"}")?;
            Some((outcome.to_owned(), value.cast_unsigned()))
        };
        page.counters().into_iter().filter_map(of).collect()
    }
}

/// What a scene is made with.
#[derive(Clone, Copy)]
struct Form {
    /// By which clients ask.
    family: Family,
    underlay: Option<Family>,
    ports: Ports,
}

impl Form {
    fn of(family: Family, ports: Ports) -> Self {
        Self { family, underlay: None, ports }
    }
}

/// Which ports pods' servers have.
#[derive(Clone, Copy)]
enum Ports {
    /// The VIP's.
    Same,
    /// Another number in its place.
    Translated,
    /// The VIP's two.
    Both,
}

impl Ports {
    fn on(self, pod: &Pod, number: u8, family: Family) -> Vec<Crowd> {
        let ports = match self {
            Self::Same => vec![PORT],
            Self::Translated => vec![served(number)],
            Self::Both => vec![PORT, 9090],
        };
        let server = match family {
            Family::V4 => Crowd::on,
            Family::V6 => Crowd::of_both,
        };
        ports.into_iter().map(|port| server(pod, port)).collect()
    }
}

fn node((lan, number): (&Lan, u8), form: Form, join: &Join, replicas: usize) -> Node {
    let Form { family, underlay, ports } = form;
    let node = crate::harness::Node::without_allocator(lan, number);
    let (node, cidr6) = match family {
        Family::V4 => (node, String::new()),
        Family::V6 => (node.with_ipv6(lan), format!("cidr6 = \"{CIDR6}\"")),
    };
    if underlay == Some(Family::V6) {
        node.ns.ip("-4 addr flush dev eth0");
    }
    let sidecar = Sidecar::start(&node, &SETTINGS.replace("{CIDR6}", &cidr6));
    let mut pods: Vec<Pod> = (0..replicas).map(|_| node.pod()).collect();
    for pod in &mut pods {
        pod.name = format!("n{number}-{}", pod.name);
    }
    let servers = pods.iter().flat_map(|pod| ports.on(pod, number, family)).collect();
    if underlay.is_some() {
        // `peers` are none of its addresses: the others are known, and what they answer on the LAN is no stranger's.
        let others: Vec<u8> = (1..=3).filter(|other| *other != number).collect();
        // The first call of a boot begins the registry anew.
        Registry::new(node.data()).begin().expect("a registry");
        write_nodes(&node, (number, &others), underlay, &[]);
    }
    for pod in &pods {
        node.add(pod, join).ok();
    }
    let bystander = node.pod();
    let joined = (0..replicas).collect();
    let joins = pods.iter().map(|_| join.clone()).collect();
    Node { pods, joins, servers, joined, drained: Vec::new(), bystander, underlay, _sidecar: sidecar, host: node }
}
