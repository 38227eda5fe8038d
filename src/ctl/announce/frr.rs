//! FRR 8 and newer. zebra ignores nexthop ids as high as viproute's, and with them the data route: it reads the unreachable
//! one, whose metric is the number of ready replicas.

use std::fmt::Write;

use crate::model::Family;

use super::{Facts, MOST_COUNTED, Part, Session};

/// zebra keeps the lower 24 bits of a kernel route's metric, and takes the rest as its distance.
const NOBODY_READY: u32 = 0x00ff_ffff;

/// `/etc/frr/frr.conf`.
pub(super) fn text(facts: &Facts) -> String {
    let mut text = String::new();
    for line in facts.head("frr.conf (FRR 8 or newer)").iter().chain(&notes(facts)) {
        let _ = writeln!(text, "{}", format!("! {line}").trim_end());
    }
    text.push_str(
        "!
! zebra makes no nexthop objects: it would bring back those of others that are deleted.
no zebra nexthop kernel enable
!
! VIPs, and every prefix that lies within theirs.
",
    );
    facts.parts().for_each(|part| prefix_lists(&part, &mut text));
    text.push_str("!\n! What this node has heard of no one.\nbgp as-path access-list VIPROUTE-OWN seq 5 permit ^$\n");
    for part in facts.parts() {
        weights(&part, &mut text);
        route_maps(&part, &mut text);
    }
    text.push_str("!\n");
    router(facts, &mut text);
    text
}

/// What FRR's commands call a family.
fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ipv6",
    }
}

fn prefix_lists(part: &Part<'_>, text: &mut String) {
    let (ip, bits, suffix) = (ip(part.family), part.family.bits(), part.suffix());
    for (number, prefix) in part.prefixes.iter().enumerate() {
        let sequence = (number + 1) * 5;
        for (list, lengths) in [("VIPS", "ge"), ("WITHIN", "le")] {
            // A prefix list takes no length that a prefix of a single address has already.
            let lengths = if prefix.prefix() == bits { String::new() } else { format!(" {lengths} {bits}") };
            let _ = writeln!(text, "{ip} prefix-list VIPROUTE-{list}{suffix} seq {sequence} permit {prefix}{lengths}");
        }
    }
}

fn route_maps(part: &Part<'_>, text: &mut String) {
    let (ip, suffix) = (ip(part.family), part.suffix());
    let _ = write!(
        text,
        "!
! Only what this node serves itself goes out, never another node's VIP.
route-map VIPROUTE-OUT{suffix} permit 10
 match {ip} address prefix-list VIPROUTE-VIPS{suffix}
 match as-path VIPROUTE-OWN
exit
!
! Another node's VIP must not be taken: zebra would put it in as soon as this node has no replica. Nothing else is taken
! either: what the node needs besides its VIPs, permit by a stanza after this one.
route-map VIPROUTE-IN{suffix} deny 10
 match {ip} address prefix-list VIPROUTE-WITHIN{suffix}
exit
"
    );
}

fn notes(facts: &Facts) -> Vec<String> {
    let mut notes = vec![
        String::new(),
        "/etc/frr/daemons: bgpd=yes and bfdd=yes. `vtysh -c \"show bgp ipv4 unicast\"` lists the VIPs.".into(),
        "With soft-reconfiguration inbound the routers' own routes are kept, also those refused:".into(),
        "[[gateway]] kind = \"frr\" in viprouted.toml has its address conflict search ask for them.".into(),
        String::new(),
    ];
    notes.extend(facts.router_side());
    notes
}

/// One stanza for each number of replicas: a route map adds no numbers up. Of unlike origins, or with a MED of their own,
/// nodes' routes were no multipath to a router.
fn weights(part: &Part<'_>, text: &mut String) {
    let (ip, suffix) = (ip(part.family), part.suffix());
    let map = format!("route-map VIPROUTE-WEIGHT{suffix}");
    let vips = format!("match {ip} address prefix-list VIPROUTE-VIPS{suffix}");
    let (more, is) = match part.family {
        Family::V4 => (0, "is"),
        // The data route has the lowest metric.
        Family::V6 => (1, "is one more than"),
    };
    let _ = write!(
        text,
        "!
! The metric {is} the number of ready replicas; with none ready (of {NOBODY_READY} zebra keeps that) nothing is announced.
{map} deny 1
 match metric {NOBODY_READY}
exit
"
    );
    for replicas in 1..=MOST_COUNTED {
        let _ = writeln!(text, "{map} permit {}\n {vips}\n match metric {}", replicas + 1, replicas + more);
        bandwidth(replicas, text);
    }
    let _ = writeln!(text, "! More than {MOST_COUNTED} count as so many.\n{map} permit {}\n {vips}", MOST_COUNTED + 2);
    bandwidth(MOST_COUNTED, text);
}

fn bandwidth(replicas: u32, text: &mut String) {
    let _ = writeln!(text, " set extcommunity bandwidth {replicas}\n set metric 0\n set origin igp\nexit");
}

fn router(facts: &Facts, text: &mut String) {
    let _ = writeln!(text, "router bgp {}\n bgp router-id {}", facts.asn, facts.router_id);
    for Session { router, asn, local, .. } in &facts.sessions {
        let _ = writeln!(text, " neighbor {router} remote-as {asn}\n neighbor {router} bfd");
        let _ = writeln!(text, " neighbor {router} timers 3 9\n neighbor {router} timers connect 2");
        if let Some(hops) = facts.multihop {
            // Sessions within an AS may be of any length.
            if *asn != facts.asn {
                let _ = writeln!(text, " neighbor {router} ebgp-multihop {hops}");
            }
            let _ = writeln!(text, " neighbor {router} update-source {local}");
        }
        if *asn != facts.asn {
            let _ = writeln!(text, " neighbor {router} advertisement-interval 0");
        }
    }
    not_of_ipv4(facts, text);
    facts.parts().for_each(|part| address_family(&part, text));
    text.push_str("exit\n");
}

/// FRR has each neighbour exchange routes of IPv4, unless that is switched off.
fn not_of_ipv4(facts: &Facts, text: &mut String) {
    let six: Vec<_> = facts.sessions.iter().filter(|session| session.router.is_ipv6()).collect();
    if six.is_empty() {
        return;
    }
    text.push_str(" address-family ipv4 unicast\n");
    for Session { router, .. } in six {
        let _ = writeln!(text, "  no neighbor {router} activate");
    }
    text.push_str(" exit-address-family\n");
}

fn address_family(part: &Part<'_>, text: &mut String) {
    let (family, suffix) = (part.family, part.suffix());
    let _ = writeln!(text, " address-family {family} unicast\n  redistribute kernel route-map VIPROUTE-WEIGHT{suffix}");
    for Session { router, .. } in &part.sessions {
        if family == Family::V6 {
            let _ = writeln!(text, "  neighbor {router} activate");
        }
        let _ = writeln!(text, "  neighbor {router} next-hop-self\n  neighbor {router} send-community extended");
        let _ = writeln!(
            text,
            "  neighbor {router} route-map VIPROUTE-OUT{suffix} out\n  neighbor {router} route-map VIPROUTE-IN{suffix} in"
        );
        let _ = writeln!(text, "  neighbor {router} soft-reconfiguration inbound");
    }
    text.push_str(" exit-address-family\n");
}
