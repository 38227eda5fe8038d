//! BIRD 2. It reads the data route (`krt_source`, `krt_cwnd`), touches no nexthop object, and follows by itself.

use std::fmt::Write;

use crate::model::Family;

use super::{Facts, MOST_COUNTED, Part, Session, bandwidth, suffix};

/// `/etc/bird/bird.conf`.
pub(super) fn text(facts: &Facts) -> String {
    let mut text = String::new();
    for line in facts.head("bird.conf (BIRD 2)").iter().chain(&notes(facts)) {
        let _ = writeln!(text, "# {line}");
    }
    let _ = write!(text, "\nlog syslog all;\nrouter id {};\n", facts.router_id);
    facts.parts().for_each(|part| prefixes(&part, &mut text));
    text.push_str("\nprotocol device { scan time 10; }\n");
    bfd(facts, &mut text);
    facts.parts().for_each(|part| kernel(&part, &mut text));
    filters(facts, &mut text);
    sessions(facts, &mut text);
    text
}

fn prefixes(part: &Part<'_>, text: &mut String) {
    let (bits, suffix) = (part.family.bits(), part.suffix());
    let lengths = |modifier: &dyn Fn(u8) -> String| {
        let prefixes = part.prefixes.iter().map(|prefix| format!("{prefix}{}", modifier(prefix.prefix())));
        prefixes.collect::<Vec<_>>().join(", ")
    };
    let _ = write!(
        text,
        "
# VIPs' {family} addresses, and every prefix that lies within theirs.
define VIPS{suffix} = [ {exact} ];
define WITHIN{suffix} = [ {within} ];
",
        family = part.family.name(),
        exact = lengths(&|_| format!("{{{bits},{bits}}}")),
        within = lengths(&|length| format!("{{{length},{bits}}}")),
    );
}

fn notes(facts: &Facts) -> Vec<String> {
    let mut notes = vec![
        String::new(),
        "Leave net.ipv4.nexthop_compat_mode at 1: with 0 BIRD doesn't understand the VIPs' routes and withdraws them."
            .into(),
        "`birdc show route` lists the VIPs; with import table the routers' own routes are kept, also those refused:"
            .into(),
        "[[gateway]] kind = \"bird\" in viprouted.toml has its address conflict search ask for them.".into(),
        String::new(),
    ];
    notes.extend(facts.router_side());
    notes
}

fn bfd(facts: &Facts, text: &mut String) {
    const TIMES: &str = "min rx interval 300 ms; min tx interval 300 ms; multiplier 3;";
    text.push_str("\n# A router or a node that is silent for 0.9 s is out of use. The router must speak BFD too, or none is spoken.\n");
    text.push_str("protocol bfd {\n");
    if facts.multihop.is_some() {
        let _ = writeln!(text, "  multihop {{ {TIMES} }};");
    } else {
        for device in facts.devices() {
            let _ = writeln!(text, "  interface \"{device}\" {{ {TIMES} }};");
        }
    }
    text.push_str("}\n");
}

fn kernel(part: &Part<'_>, text: &mut String) {
    let (family, suffix) = (part.family, part.suffix());
    let _ = write!(
        text,
        "
# viproute's routes: protocol 118. Those without cwnd have no ready replica on this node and are not announced. Nothing is
# exported: a route of BIRD's to a VIP would stand beside viproute's own.
protocol kernel vips{suffix} {{
  learn;
  scan time 5;
  {family} {{
    import filter {{
      if krt_source = 118 && defined(krt_cwnd) && net ~ VIPS{suffix} then accept;
      reject;
    }};
    export none;
  }};
}}
"
    );
}

fn filters(facts: &Facts, text: &mut String) {
    text.push_str(
        "
# Only what this node serves itself goes out (never another node's VIP), with the number of ready replicas as its link
# bandwidth: N × 125,000 bytes/s, as a float.
filter vips_out {
  if source != RTS_INHERIT || krt_source != 118 || !defined(krt_cwnd) then reject;
  case krt_cwnd {
",
    );
    let asn = facts.community_asn();
    for replicas in 1..=MOST_COUNTED {
        let _ = writeln!(
            text,
            "    {replicas}: bgp_ext_community.add((generic, 0x0004{asn:04x}, {:#010x}));",
            bandwidth(replicas)
        );
    }
    let most = bandwidth(MOST_COUNTED);
    let _ = write!(
        text,
        "    else: bgp_ext_community.add((generic, 0x0004{asn:04x}, {most:#010x}));
  }}
  accept;
}}

# Another node's VIP must not be taken in place of this node's own: a BGP route would be better than a learned one (preference
# 100, not 10). Nothing else is taken either: what the node needs besides its VIPs, accept after the first line.
"
    );
    for suffix in facts.parts().map(|part| part.suffix()) {
        let _ = write!(
            text,
            "filter routes_in{suffix} {{
  if net ~ WITHIN{suffix} then reject;
  reject;
}}
"
        );
    }
}

fn sessions(facts: &Facts, text: &mut String) {
    facts.parts().for_each(|part| template(facts, &part, text));
    let asn = facts.asn;
    for (number, Session { router, asn: theirs, local, .. }) in facts.sessions.iter().enumerate() {
        let (number, suffix) = (number + 1, suffix(Family::of(*router)));
        let _ = write!(
            text,
            "
protocol bgp router{number} from to_router{suffix} {{
  local {local} as {asn};
  neighbor {router} as {theirs};
}}
"
        );
    }
}

fn template(facts: &Facts, part: &Part<'_>, text: &mut String) {
    let how = facts.multihop.map_or_else(|| "direct".to_owned(), |hops| format!("multihop {hops}"));
    let (family, suffix) = (part.family, part.suffix());
    let _ = write!(
        text,
        "
# Without shorter waits a session comes back a minute after BFD has ended it.
template bgp to_router{suffix} {{
  {how};
  bfd on;
  hold time 9;
  keepalive time 3;
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 5;
  {family} {{
    import table on;
    import filter routes_in{suffix};
    export filter vips_out;
    next hop self;
  }};
}}
"
    );
}
