//! FRR 8 and newer. zebra ignores nexthop ids as high as viproute's, and with them the data route: it reads the unreachable
//! one, whose metric is the number of ready replicas.

use std::fmt::Write;

use ipnetwork::Ipv4Network;

use super::{Facts, MOST_COUNTED, Session};

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
    for (number, prefix) in facts.prefixes.iter().enumerate() {
        let sequence = (number + 1) * 5;
        let _ =
            writeln!(text, "ip prefix-list VIPROUTE-VIPS seq {sequence} permit {prefix}{}", longer(*prefix, "ge 32"));
        let _ =
            writeln!(text, "ip prefix-list VIPROUTE-WITHIN seq {sequence} permit {prefix}{}", longer(*prefix, "le 32"));
    }
    text.push_str("!\n! What this node has heard of no one.\nbgp as-path access-list VIPROUTE-OWN seq 5 permit ^$\n");
    weights(&mut text);
    text.push_str(
        "!
! Only what this node serves itself goes out, never another node's VIP.
route-map VIPROUTE-OUT permit 10
 match ip address prefix-list VIPROUTE-VIPS
 match as-path VIPROUTE-OWN
exit
!
! Another node's VIP must not be taken: zebra would put it in as soon as this node has no replica. Nothing else is taken
! either: what the node needs besides its VIPs, permit by a stanza after this one.
route-map VIPROUTE-IN deny 10
 match ip address prefix-list VIPROUTE-WITHIN
exit
!
",
    );
    router(facts, &mut text);
    text
}

/// A prefix list takes no length that a prefix of a single address has already.
fn longer(prefix: Ipv4Network, lengths: &str) -> String {
    if prefix.prefix() == 32 { String::new() } else { format!(" {lengths}") }
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
fn weights(text: &mut String) {
    let _ = write!(
        text,
        "!
! The metric is the number of ready replicas; with none ready (of {NOBODY_READY} zebra keeps that) nothing is announced.
route-map VIPROUTE-WEIGHT deny 1
 match metric {NOBODY_READY}
exit
"
    );
    for replicas in 1..=MOST_COUNTED {
        let _ = writeln!(
            text,
            "route-map VIPROUTE-WEIGHT permit {}\n match ip address prefix-list VIPROUTE-VIPS\n match metric {replicas}",
            replicas + 1
        );
        bandwidth(replicas, text);
    }
    let _ = writeln!(
        text,
        "! More than {MOST_COUNTED} count as so many.\nroute-map VIPROUTE-WEIGHT permit {}\n match ip address prefix-list VIPROUTE-VIPS",
        MOST_COUNTED + 2
    );
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
    text.push_str(" address-family ipv4 unicast\n  redistribute kernel route-map VIPROUTE-WEIGHT\n");
    for Session { router, .. } in &facts.sessions {
        let _ = writeln!(text, "  neighbor {router} next-hop-self\n  neighbor {router} send-community extended");
        let _ = writeln!(
            text,
            "  neighbor {router} route-map VIPROUTE-OUT out\n  neighbor {router} route-map VIPROUTE-IN in"
        );
        let _ = writeln!(text, "  neighbor {router} soft-reconfiguration inbound");
    }
    text.push_str(" exit-address-family\nexit\n");
}
