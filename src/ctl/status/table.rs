//! The report as people read it.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{COLUMNS, Lease, PACKETS, Replica, Report, UPLINKS, Vip};
use crate::api::protocol::{Express, LeaseState, ServiceEntry};
use crate::registry::State;

/// The columns of the fourth table, of Kubernetes Services, and what they mean.
pub const SERVICES: [(&str, &str); 6] = [
    ("SERVICE", "<namespace>/<name>, which is its VIP's name."),
    ("UID", "Its identity: one that is made again under the same name is another."),
    ("EXTERNAL-IP", "Its addresses, in its own order; - while it has none."),
    ("KEPT BY", "The node that gets its address and writes its status."),
    ("WAITS FOR", "What keeps it from an address."),
    ("CLIENTS", "The ranges that they are of, the first of them and how many more; - where they may be anybody."),
];

/// Each in a line of its own.
fn listed(addresses: impl Iterator<Item = impl ToString>) -> String {
    let all: Vec<String> = addresses.map(|address| address.to_string()).collect();
    if all.is_empty() { "-".to_owned() } else { all.join("\n") }
}

fn addresses(vip: &Vip) -> String {
    let served = vip.address.iter().chain(&vip.others).map(ToString::to_string);
    listed(served.chain(vip.reserved.iter().map(|address| format!("{address} (reserved)"))))
}

/// The report as a table, a line per replica.
pub fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(COLUMNS.map(|(name, _)| name));
    for vip in &report.vips {
        let mut cells =
            vec![vip.vip.clone(), addresses(vip), lease_text(vip.lease.as_ref(), SystemTime::now()), word(&vip.state)];
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
    if let Some(express) = &report.express {
        text.push_str("\n\n");
        text.push_str(&express_table(express));
    }
    if !report.services.is_empty() {
        text.push_str("\n\n");
        text.push_str(&services_table(&report.services));
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
    table.set_header(PACKETS.map(|(name, _)| name));
    for vip in vips {
        let Some(flows) = &vip.flows else { continue };
        let counts = [
            flows.local_hit,
            flows.steered,
            flows.no_owner,
            flows.search_throttled,
            flows.port_denied,
            flows.spoofed,
            flows.egress_denied,
            flows.reset_withheld,
            flows.own_source,
            flows.source_denied,
            flows.misrouted,
        ];
        table.add_row(std::iter::once(vip.vip.clone()).chain(counts.map(|count| count.to_string())));
    }
    table.trim_fmt()
}

/// A line per uplink; where the express path is off on the whole node, why.
fn express_table(express: &Express) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(UPLINKS.map(|(name, _)| name));
    let node = express.off.as_ref().map(|why| format!("off: {why}"));
    if express.uplinks.is_empty() {
        table.add_row(["-".to_owned(), node.clone().unwrap_or_else(|| "off: no uplink".to_owned())]);
    }
    for uplink in &express.uplinks {
        let own = uplink.off.as_ref().map_or_else(|| "on".to_owned(), |why| format!("off: {why}"));
        table.add_row([uplink.device.clone(), node.clone().unwrap_or(own)]);
    }
    table.trim_fmt()
}

/// A line per Service.
fn services_table(services: &[ServiceEntry]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(SERVICES.map(|(name, _)| name));
    for ServiceEntry { service, uid, address, others, keeper, waits, clients } in services {
        let address = listed(address.iter().chain(others));
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let clients = clients.as_deref().map_or_else(|| "-".to_owned(), shown_clients);
        table.add_row([service.clone(), uid.clone(), address, or_none(keeper), or_none(waits), clients]);
    }
    table.trim_fmt()
}

fn shown_clients(ranges: &[String]) -> String {
    match ranges {
        [] => "nobody".to_owned(),
        [first] => first.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    }
}

fn replica_cells(replica: &Replica) -> [String; 7] {
    [
        replica.pod.clone(),
        replica.address.to_string(),
        state_text(replica),
        replica.weight.to_string(),
        format!("{:.1} %", replica.buckets * 100.0),
        counted(replica.packets_in),
        counted(replica.packets_out),
    ]
}

fn counted(packets: Option<u64>) -> String {
    packets.map_or_else(|| "-".to_owned(), |packets| packets.to_string())
}

/// With the check that a replica waits for, or the policy that keeps it out.
fn state_text(replica: &Replica) -> String {
    let state = word(&replica.state);
    match (&replica.policy, &replica.health) {
        (Some(policy), _) => format!("{state} (NetworkPolicy {policy})"),
        (None, Some(check)) if replica.state == State::Pending => format!("{state} ({check})"),
        _ => state,
    }
}

fn lease_text(lease: Option<&Lease>, now: SystemTime) -> String {
    let Some(lease) = lease else { return "-".to_owned() };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let left = |until: u64| until.saturating_sub(now);
    if let (LeaseState::Bound, Some(until)) = (lease.state, lease.held_until) {
        return held_text(left(until));
    }
    match (lease.state, lease.expires) {
        (LeaseState::Bound, Some(expires)) => match &lease.renewer {
            Some(renewer) => format!("{} s, {renewer} renews", left(expires)),
            None => format!("{} s", left(expires)),
        },
        (LeaseState::Bound, None) => "for ever".to_owned(),
        (state, _) => word(&state),
    }
}

/// How long the address has been held without a replica.
fn held_text(seconds: u64) -> String {
    match seconds {
        0..60 => format!("held {seconds} s"),
        60..7200 => format!("held {} min", seconds / 60),
        _ => format!("held {} h", seconds / 3600),
    }
}

/// A state's name as JSON spells it.
fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_held_for_nobody_says_for_how_long() {
        let (state, expires) = (LeaseState::Bound, Some(2000));
        let lease = Lease { state, expires, error: None, held_until: None, claimed_by: None, renewer: None };
        let text = |lease: &Lease| lease_text(Some(lease), UNIX_EPOCH + Duration::from_secs(1000));
        assert_eq!(text(&lease), "1000 s");
        assert_eq!(text(&Lease { renewer: Some("n2".into()), ..lease.clone() }), "1000 s, n2 renews");
        let held = |until| text(&Lease { held_until: Some(until), ..lease.clone() });
        assert_eq!([1030, 1599, 90_000].map(held), ["held 30 s", "held 9 min", "held 24 h"]);
    }
}
