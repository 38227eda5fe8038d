//! `viproutectl status`: each VIP, its address and lease, its replicas and what reaches them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::allocator::client;
use crate::allocator::protocol::{LeaseState, VipStatus};
use crate::bpf::Counts;
use crate::net::{NodeNet, link, nexthop};
use crate::registry::{Endpoint, LockedVip, Registry, State, VipKey, VipRecord};
use crate::vip::{self, ids};
use crate::with_causes;

/// viprouted answers from memory.
const ALLOCATOR_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything `status` shows.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The VIPs of this node, by name.
    pub vips: Vec<Vip>,
    /// What could not be read or asked, a sentence each.
    pub problems: Vec<String>,
}

/// One VIP.
#[derive(Debug, Serialize)]
pub struct Vip {
    /// `<namespace>/<name>`.
    pub vip: String,
    /// Its address; none while there is only a lease being asked for.
    pub address: Option<Ipv4Addr>,
    /// How its lease stands; none where the allocator knows nothing of it or can't be asked.
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
    pub chosen: u64,
    /// Were brought to another replica, which has their connection.
    pub owned: u64,
    /// Were nobody's and so refused.
    pub missed: u64,
    /// Were dropped unasked, because too many a second were nobody's.
    pub limited: u64,
    /// Were refused: their port isn't served.
    pub refused: u64,
    /// Came from a replica and had a source that isn't its own (of all its VIPs).
    pub spoofed: u64,
}

/// A VIP's lease.
#[derive(Debug, Serialize)]
pub struct Lease {
    /// See [`LeaseState`].
    pub state: LeaseState,
    /// Unix seconds; none: never.
    pub expires: Option<u64>,
    /// The last thing that went wrong with it, until it goes right again.
    pub error: Option<String>,
}

/// How a VIP is served on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VipState {
    /// By at least one replica, and the kernel is as it should be.
    Serving,
    /// By none: requests are refused.
    Unserved,
    /// Its address was lost.
    Withdrawn,
    /// The kernel's tables are not what the registry wants.
    Degraded,
    /// It has a lease and no replica here.
    Idle,
}

/// One replica.
#[derive(Debug, Serialize)]
pub struct Replica {
    /// `<namespace>/<name>` of the pod where the runtime names it, else the container.
    pub pod: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The host end of its pair.
    pub device: String,
    /// Whether it gets connections.
    pub state: State,
    /// The check that decides on that, if it has one.
    pub health: Option<String>,
    /// Its share as configured.
    pub weight: u8,
    /// Its share of the VIP's buckets, 0 to 1.
    pub buckets: f64,
    /// Packets to the pod by this pair (of all its VIPs).
    pub packets_in: u64,
    /// Packets from the pod by this pair (of all its VIPs).
    pub packets_out: u64,
}

/// Looks at everything.
pub fn read(registry: &Registry, allocator: &Path) -> Result<Report, vip::Error> {
    let net = NodeNet::open()?;
    let mut report = Report { vips: Vec::new(), problems: Vec::new() };
    let mut leases = read_leases(allocator, &mut report.problems);
    for key in registry.vips()? {
        let lease = leases.remove(&key.to_string());
        report.vips.extend(read_vip(&net, registry, &key, lease, &mut report.problems)?);
    }
    // Leases without a replica here: still asked for, or held for a while.
    report.vips.extend(leases.into_values().map(|lease| Vip {
        vip: lease.vip.clone(),
        address: lease.address,
        state: VipState::Idle,
        ready: 0,
        flows: None,
        replicas: Vec::new(),
        lease: Some(lease.into()),
    }));
    report.vips.sort_by(|a, b| a.vip.cmp(&b.vip));
    Ok(report)
}

fn read_leases(allocator: &Path, problems: &mut Vec<String>) -> BTreeMap<String, VipStatus> {
    match client::status(allocator, ALLOCATOR_TIMEOUT) {
        Ok(status) => {
            problems.extend(status.problems);
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
        Self { state: status.state, expires: status.expires, error: status.error }
    }
}

fn read_vip(
    net: &NodeNet,
    registry: &Registry,
    key: &VipKey,
    lease: Option<VipStatus>,
    problems: &mut Vec<String>,
) -> Result<Option<Vip>, vip::Error> {
    let Some(mut locked) = registry.vip_if_present(key)? else { return Ok(None) };
    problems.extend(locked.damage()?.iter().map(ToString::to_string));
    let Some(record) = locked.record.clone() else { return Ok(None) };
    let in_order = vip::differs(net, &mut locked)?.is_empty();
    let buckets = nexthop::buckets(net, ids::group(record.slot)).unwrap_or_default();
    let mut replicas = Vec::new();
    for (name, endpoint) in registry.endpoints(key)? {
        // A damaged one was told of above.
        if let Ok(endpoint) = endpoint {
            replicas.push(read_replica(net, &name, &endpoint, &buckets)?);
        }
    }
    replicas.sort_by_key(|replica| replica.address);
    let ready = replicas.iter().filter(|r| r.state == State::Ready).count();
    let state = match (record.withdrawn, in_order, ready) {
        (true, ..) => VipState::Withdrawn,
        (_, false, _) => VipState::Degraded,
        (_, _, 0) => VipState::Unserved,
        _ => VipState::Serving,
    };
    let lease = lease.map(Lease::from);
    let flows = read_flows(&record, &mut locked)?;
    Ok(Some(Vip { vip: key.to_string(), address: Some(record.address), lease, state, ready, flows, replicas }))
}

fn read_flows(record: &VipRecord, vip: &mut LockedVip) -> Result<Option<Flows>, vip::Error> {
    let host_ends: Vec<u32> = vip.replicas()?.values().map(|replica| replica.ifindex).collect();
    let counted = vip::owner::counts(record, &host_ends)?;
    Ok(counted.map(|(Counts { chosen, owned, missed, limited, refused }, spoofed)| Flows {
        chosen,
        owned,
        missed,
        limited,
        refused,
        spoofed,
    }))
}

fn read_replica(net: &NodeNet, name: &str, endpoint: &Endpoint, buckets: &[u32]) -> Result<Replica, vip::Error> {
    let link = link::by_name(net, &endpoint.device)?;
    let packets = link.map(|link| link.packets).unwrap_or_default();
    let mine = buckets.iter().filter(|id| Some(**id) == endpoint.nexthop).count();
    Ok(Replica {
        pod: endpoint.pod_name(name),
        address: endpoint.address,
        device: endpoint.device.clone(),
        state: endpoint.state,
        health: endpoint.health.clone(),
        weight: endpoint.weight,
        buckets: share(mine, buckets.len()),
        packets_in: packets.sent,
        packets_out: packets.received,
    })
}

/// Buckets number 65,535 at most: exact as floats.
#[allow(clippy::cast_precision_loss)]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The report as a table, a line per replica.
pub fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "VIP",
        "ADDRESS",
        "LEASE",
        "STATE",
        "REPLICA",
        "POD ADDRESS",
        "REPLICA STATE",
        "WEIGHT",
        "BUCKETS",
        "IN",
        "OUT",
    ]);
    for vip in &report.vips {
        let mut cells = vec![
            vip.vip.clone(),
            vip.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
            lease_text(vip.lease.as_ref(), SystemTime::now()),
            word(&vip.state),
        ];
        if vip.replicas.is_empty() {
            table.add_row(cells.iter());
        }
        for replica in &vip.replicas {
            cells.extend(replica_cells(replica));
            table.add_row(cells);
            cells = vec![String::new(); 4]; // the VIP's own columns once
        }
    }
    let mut text = table.trim_fmt();
    if report.vips.iter().any(|vip| vip.flows.is_some()) {
        text.push_str("\n\n");
        text.push_str(&flows_table(&report.vips));
    }
    for problem in &report.problems {
        text.push_str("\n! ");
        text.push_str(problem);
    }
    text
}

/// Packets of connections, a line per VIP.
fn flows_table(vips: &[Vip]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["PACKETS", "CHOSEN", "OWNED", "MISSED", "LIMITED", "REFUSED", "SPOOFED"]);
    for vip in vips {
        let Some(Flows { chosen, owned, missed, limited, refused, spoofed }) = &vip.flows else { continue };
        let counts = [chosen, owned, missed, limited, refused, spoofed].map(u64::to_string);
        table.add_row(std::iter::once(vip.vip.clone()).chain(counts));
    }
    table.trim_fmt()
}

fn replica_cells(replica: &Replica) -> [String; 7] {
    [
        replica.pod.clone(),
        replica.address.to_string(),
        state_text(replica),
        replica.weight.to_string(),
        format!("{:.1} %", replica.buckets * 100.0),
        replica.packets_in.to_string(),
        replica.packets_out.to_string(),
    ]
}

/// With the check that a replica waits for.
fn state_text(replica: &Replica) -> String {
    let state = word(&replica.state);
    match &replica.health {
        Some(check) if replica.state == State::Pending => format!("{state} ({check})"),
        _ => state,
    }
}

fn lease_text(lease: Option<&Lease>, now: SystemTime) -> String {
    let Some(lease) = lease else { return "-".to_owned() };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match (lease.state, lease.expires) {
        (LeaseState::Held, Some(expires)) => format!("{} s", expires.saturating_sub(now)),
        (LeaseState::Held, None) => "for ever".to_owned(),
        (state, _) => word(&state),
    }
}

/// A state's name as JSON spells it.
fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
