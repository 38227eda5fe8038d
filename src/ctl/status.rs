//! `viproutectl status`: each VIP, its address and lease, its replicas and what reaches them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::api::client;
use crate::api::protocol::{Express, Kubernetes, LeaseState, ServiceEntry, VipStatus};
use crate::ctl::ANSWER;
use crate::dataplane::{self, ids};
use crate::ebpf::{self, Counts, ExpressCounts, LinkDrops};
use crate::model::{Source, VipKey};
use crate::net::{NodeNet, link, nexthop};
use crate::registry::{Endpoint, LockedVip, Registry, State, VipRecord};
use crate::with_causes;

use super::way::{Causes, RouteQuery, shown};

mod table;

pub use table::{SERVICES, table};

/// Everything `status` shows.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The VIPs of this node, by name.
    pub vips: Vec<Vip>,
    /// The express path as viprouted has it; none while it doesn't answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub express: Option<Express>,
    /// The Kubernetes Services, where they are served; with one VIP alone, its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceEntry>,
    /// What could not be read or asked, a sentence each.
    pub problems: Vec<String>,
}

/// One VIP.
#[derive(Debug, Serialize)]
pub struct Vip {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// The address by which it is served; none while there is only a lease being asked for.
    pub address: Option<IpAddr>,
    /// The others it has: of IPv6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<IpAddr>,
    /// Those that it has and isn't served by: its replicas or its Services ask for the other family alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<IpAddr>,
    /// Its lease; none where the allocator knows nothing of it or can't be reached.
    pub lease: Option<Lease>,
    /// How it is served here.
    pub state: VipState,
    /// How many replicas get connections.
    pub ready: usize,
    /// What the flow owner did with packets of its connections; none where it does without.
    pub flows: Option<Flows>,
    /// Its replicas on this node.
    pub replicas: Vec<Replica>,
}

/// What became of packets, counted since the flow owner was loaded.
#[derive(Debug, Serialize)]
pub struct Flows {
    /// Belonged to a connection of the replica the route had chosen.
    pub local_hit: u64,
    /// Were brought to another replica, which has their connection.
    pub steered: u64,
    /// Had no owner, and were refused.
    pub no_owner: u64,
    /// Were dropped without a search, because the allowance for searches was used up.
    pub search_throttled: u64,
    /// Were denied: their port isn't served.
    pub port_denied: u64,
    /// Came from a replica and had a source that isn't its own (of all its VIPs).
    pub spoofed: u64,
    /// Came from a replica, with the VIP as their source, and would have begun a flow.
    pub egress_denied: u64,
    /// Resets of a replica that had just closed its port, withheld while another one listens.
    pub reset_withheld: u64,
    /// Were dropped on their way to a replica: they came from one of its pod's own addresses.
    pub own_source: u64,
    /// Would have begun a flow with a port that isn't for that client.
    pub source_denied: u64,
    /// Were dropped on their way to a replica: they were for no VIP of its pod's.
    pub misrouted: u64,
}

/// A VIP's lease.
#[derive(Clone, Debug, Serialize)]
pub struct Lease {
    /// See [`LeaseState`].
    pub state: LeaseState,
    /// Unix seconds; none: never.
    pub expires: Option<u64>,
    /// The last thing that went wrong with it, until it goes right again.
    pub error: Option<String>,
    /// Unix seconds at which it is given up, since no replica is here; none while there is one.
    pub held_until: Option<u64>,
    /// The Ethernet address of another host that says the address is its own.
    pub claimed_by: Option<String>,
    /// The name of the node that renews it for all; none: each node does for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewer: Option<String>,
}

/// How a VIP is served on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VipState {
    /// By at least one replica, and the kernel's state equals the registry's.
    Serving,
    /// By none: requests are refused.
    Unserved,
    /// Its address was lost.
    Withdrawn,
    /// The kernel's tables are not what the registry wants.
    Degraded,
    /// They are, and something else goes before its route.
    Diverted,
    /// It has a lease and no replica here.
    Idle,
}

/// One replica.
#[derive(Debug, Serialize)]
pub struct Replica {
    /// `<namespace>/<name>` of the pod where the runtime names it, else the container.
    pub pod: String,
    /// The pod's address.
    pub address: IpAddr,
    /// The host veth of its pair.
    pub device: String,
    /// Whether it gets connections.
    pub state: State,
    /// The check that decides on that, if it has one.
    pub health: Option<String>,
    /// The `NetworkPolicy` because of which it gets no new ones, `<namespace>/<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What made it one: `annotation`, `conflist`, `person`, …
    pub source: Source,
    /// What it serves, as `viproute.io/ports` has it; empty: everything.
    pub ports: Vec<String>,
    /// Its share as configured.
    pub weight: u8,
    /// Its share of the VIP's buckets, 0 to 1.
    pub buckets: f64,
    /// Packets to the pod by this pair (of all its VIPs); none of another node, which shares a device with all others.
    pub packets_in: Option<u64>,
    /// Packets from the pod by this pair (of all its VIPs), likewise.
    pub packets_out: Option<u64>,
    /// Of those to the pod the ones that took the express path, which the pair's host veth doesn't show.
    pub express_in: u64,
    /// Of those from the pod.
    pub express_out: u64,
}

/// The table's columns and what they mean.
pub const COLUMNS: [(&str, &str); 11] = [
    ("VIP", "<namespace>/<name>."),
    (
        "ADDRESS",
        "Its address, and under it the one of IPv6; (reserved): it has that and isn't served by it; - while it has none.",
    ),
    (
        "LEASE",
        "How long its lease runs and which node renews it for all of them, or a state of the lease; - where viprouted knows nothing of it.",
    ),
    ("STATE", "How it is served on this node."),
    (
        "REPLICA",
        "The pod, <namespace>/<name>; where the runtime names none, its attachment. Another node with its replicas: node and its \
         address.",
    ),
    ("POD ADDRESS", "The pod's own address."),
    (
        "REPLICA STATE",
        "Whether it gets connections; in parentheses the health check it waits for, or the NetworkPolicy because of which it gets none.",
    ),
    ("WEIGHT", "Its share as configured, 1 to 255."),
    ("BUCKETS", "Its share of the VIP's flows on this node, as the kernel has it now."),
    ("IN", "Packets to the pod by its VIPs' interface; - for another node."),
    ("OUT", "Packets from the pod by that."),
];

/// The same of the second table: packets of a VIP's connections, counted since the flow owner was loaded.
pub const PACKETS: [(&str, &str); 12] = [
    ("PACKETS", "The VIP."),
    ("LOCAL", "They belonged to a connection of the replica that the route had chosen."),
    (
        "STEERED",
        "They were brought to another replica, which has their connection or listens where the chosen one doesn't.",
    ),
    ("NO OWNER", "No replica had their connection: they were refused."),
    ("THROTTLED", "They were dropped without a search: too many a second had no owner."),
    ("DENIED", "Their port isn't served."),
    ("SPOOFED", "They came from a replica and had a source that isn't its own (of all its VIPs)."),
    ("EGRESS", "A replica would have begun a flow with them from the VIP, which only answers."),
    ("WITHHELD", "They were resets of a replica that had just closed its port, while another one listens."),
    ("OWN", "They came to a replica from one of its pod's own addresses."),
    ("SOURCE", "They would have begun a flow with a port that isn't for their client."),
    ("MISROUTED", "They came to a replica's host veth, and are not for a VIP of its pod."),
];

/// The same of the third table: the devices by which clients are reached.
pub const UPLINKS: [(&str, &str); 2] = [
    ("UPLINK", "A device that routes to clients name."),
    ("EXPRESS", "Whether packets of connections take the express path there, and if not, why."),
];

/// What a state of a lease means.
pub fn of_lease(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Selecting => "An address is being asked for.",
        LeaseState::Probing => "An address was offered, and is searched for conflicts.",
        LeaseState::Bound => "In order (the table shows its time in its place).",
        LeaseState::Expired => "It was taken away by the server, or ran out; another is being asked for.",
        LeaseState::Failed => "No address was to be had; it is tried again from time to time.",
    }
}

/// What a state of a replica means.
pub fn of_replica(state: State) -> &'static str {
    match state {
        State::Pending => "It has not been ready yet: no connections.",
        State::Ready => "It gets connections.",
        State::Draining => "It keeps the connections it has and gets no new one.",
    }
}

impl VipState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Serving, Self::Unserved, Self::Withdrawn, Self::Degraded, Self::Diverted, Self::Idle];

    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Unserved => "unserved",
            Self::Withdrawn => "withdrawn",
            Self::Degraded => "degraded",
            Self::Diverted => "diverted",
            Self::Idle => "idle",
        }
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Serving => "By at least one replica, and the kernel has what the registry says.",
            Self::Unserved => "By none, or by no address of the family that it is to have: requests are refused.",
            Self::Withdrawn => "Its address was lost, and is no longer used.",
            Self::Degraded => "The kernel's tables are not what the registry says; viproutectl doctor says in what.",
            Self::Diverted => {
                "A rule, an address or another route of the node's goes before its route; viproutectl doctor has the cure."
            }
            Self::Idle => "It has a lease and no replica on this node.",
        }
    }
}

/// Reads all VIPs, or one of them.
pub fn read(registry: &Registry, allocator: &Path, only: Option<&VipKey>) -> Result<Report, dataplane::Error> {
    let net = NodeNet::open()?;
    let mut report = Report { vips: Vec::new(), express: None, services: Vec::new(), problems: Vec::new() };
    let mut leases = read_leases(allocator, &mut report);
    // One that is older than this, or doesn't answer, says nothing of them.
    let Kubernetes { services, kept_out, .. } = client::kubernetes(allocator, false, ANSWER).unwrap_or_default();
    report.services = services;
    if let Some(only) = only.map(ToString::to_string) {
        leases.retain(|vip, _| *vip == only);
        report.services.retain(|service| service.service == only);
    }
    let mut ways = Ways { query: RouteQuery::new(&net)?, causes: Causes::default() };
    for key in registry.vips()?.into_iter().filter(|key| only.is_none_or(|only| only == key)) {
        let mut vip = read_vip(&net, registry, &key, &mut report.problems, &mut ways)?;
        if let Some(vip) = &mut vip {
            vip.lease = leases.remove(&vip.vip).map(Lease::from);
            for replica in vip.replicas.iter_mut().filter(|replica| replica.state != State::Ready) {
                replica.policy = kept_out.get(&replica.pod).cloned();
            }
        }
        report.vips.extend(vip);
    }
    report.problems.extend(ways.causes.0.iter().map(|(cause, vips)| format!("{}: {cause}", shown(vips))));
    // Leases without a replica here: still asked for, or held for a while.
    report.vips.extend(leases.into_values().map(|lease| Vip {
        vip: lease.vip.clone(),
        address: lease.address,
        others: Vec::new(),
        reserved: Vec::new(),
        state: VipState::Idle,
        ready: 0,
        flows: None,
        replicas: Vec::new(),
        lease: Some(lease.into()),
    }));
    report.vips.sort_by(|a, b| a.vip.cmp(&b.vip));
    Ok(report)
}

fn read_leases(allocator: &Path, report: &mut Report) -> BTreeMap<String, VipStatus> {
    let problems = &mut report.problems;
    match client::status(allocator, ANSWER) {
        Ok(status) => {
            report.express = status.express;
            problems.extend(status.problems);
            problems
                .extend(status.readiness_errors.iter().map(|why| format!("a new VIP would get no address now: {why}")));
            status.vips.into_iter().map(|vip| (vip.vip.clone(), vip)).collect()
        }
        Err(e) => {
            problems.push(with_causes(&e));
            BTreeMap::new()
        }
    }
}

impl From<VipStatus> for Lease {
    fn from(status: VipStatus) -> Self {
        let VipStatus { state, expires, error, held_until, claimed_by, renewer, .. } = status;
        Self { state, expires, error, held_until, claimed_by, renewer }
    }
}

/// What goes before VIPs' routes.
struct Ways<'a> {
    query: RouteQuery<'a>,
    causes: Causes,
}

/// Without its lease.
fn read_vip(
    net: &NodeNet,
    registry: &Registry,
    key: &VipKey,
    problems: &mut Vec<String>,
    ways: &mut Ways<'_>,
) -> Result<Option<Vip>, dataplane::Error> {
    let Some(mut locked) = registry.vip_if_present(key)? else { return Ok(None) };
    problems.extend(locked.damage()?.iter().map(ToString::to_string));
    let Some(record) = locked.record.clone() else { return Ok(None) };
    let in_order = dataplane::differs(net, &mut locked)?.is_empty();
    let buckets = nexthop::buckets(net, ids::group(record.slot)).unwrap_or_default();
    let mut replicas = Vec::new();
    for (name, endpoint) in registry.endpoints(key)? {
        // A damaged one is reported above.
        if let Ok(endpoint) = endpoint {
            replicas.push(read_replica(net, &name, &endpoint, (&buckets, &record))?);
        }
    }
    replicas.sort_by_key(|replica| replica.address);
    let ready = replicas.iter().filter(|r| r.state == State::Ready).count();
    let diverted = ways.causes.add(&ways.query, &record, ready > 0)?;
    let mut served = record.served_addresses();
    let (address, others): (_, Vec<IpAddr>) = (served.next(), served.collect());
    let state = match (record.withdrawn, in_order, ready) {
        (true, ..) => VipState::Withdrawn,
        (_, false, _) => VipState::Degraded,
        (_, _, 0) => VipState::Unserved,
        _ if address.is_none() => VipState::Unserved,
        _ if diverted => VipState::Diverted,
        _ => VipState::Serving,
    };
    let flows = read_flows(&record, &mut locked)?;
    let (vip, reserved) = (key.to_string(), record.unserved_addresses().collect());
    Ok(Some(Vip { vip, address, others, reserved, lease: None, state, ready, flows, replicas }))
}

fn read_flows(record: &VipRecord, vip: &mut LockedVip) -> Result<Option<Flows>, dataplane::Error> {
    let host_veths: Vec<u32> = vip.replicas()?.values().map(|replica| replica.ifindex).collect();
    let counted = dataplane::owner::counts(record, &host_veths)?;
    Ok(counted.map(|(counts, LinkDrops { spoofed, misrouted })| {
        let Counts {
            local_hit,
            steered,
            no_owner,
            search_throttled,
            port_denied,
            egress_denied,
            reset_withheld,
            own_source,
            source_denied,
        } = counts;
        Flows {
            local_hit,
            steered,
            no_owner,
            search_throttled,
            port_denied,
            spoofed,
            egress_denied,
            reset_withheld,
            own_source,
            source_denied,
            misrouted,
        }
    }))
}

fn read_replica(
    net: &NodeNet,
    name: &str,
    endpoint: &Endpoint,
    (buckets, vip): (&[u32], &VipRecord),
) -> Result<Replica, dataplane::Error> {
    let is_local = endpoint.backend.is_local();
    // The device that leads to other nodes has the packets of all of them.
    let link = if is_local { link::by_name(net, &endpoint.device)? } else { None };
    let express = match (&link, &vip.flow_owner) {
        (Some(link), Some(dir)) => {
            ebpf::express_counts(dir, &[link.index].into())?.remove(&link.index).unwrap_or_default()
        }
        _ => ExpressCounts::default(),
    };
    let packets = is_local.then(|| link.map(|link| link.packets).unwrap_or_default());
    let mine = buckets.iter().filter(|id| Some(**id) == endpoint.nexthop).count();
    Ok(Replica {
        pod: endpoint.pod_name(name),
        address: endpoint.address(),
        device: endpoint.device.clone(),
        state: endpoint.state,
        health: endpoint.health.as_ref().map(ToString::to_string),
        policy: None,
        source: endpoint.source.clone(),
        ports: endpoint.ports.iter().map(ToString::to_string).collect(),
        weight: endpoint.weight,
        buckets: share(mine, buckets.len()),
        packets_in: packets.map(|packets| packets.sent + express.in_packets),
        packets_out: packets.map(|packets| packets.received),
        express_in: express.in_packets,
        express_out: express.out_packets,
    })
}

/// Buckets number 65,535 at most: exact as floats.
#[allow(clippy::cast_precision_loss)]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
