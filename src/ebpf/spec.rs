//! The table of programs: what each is called, where it runs, which maps it has. Whatever attaches, checks, replaces or
//! removes programs goes through it. And the objects that they are compiled to.

use std::path::Path;

use super::ipv6::{
    ADDRESSES6, ANSWER_FRAGMENTS6, ANSWERERS6, ASKED6, CALLS6, CLIENTS6, EXPRESS6, FRAGMENTS6, HEARD6, HINTS6,
    NUMBERS6, OWN6, SOURCES6, STICKY6,
};
use super::maps::{
    ALLOWANCES, ANSWER_FRAGMENTS, ANSWERERS, ASKED, ATTACHED, CALLS, CLIENTS, CLOSED, COPYING, COUNTS, EXPRESS,
    EXPRESS_COUNTS, EXPRESS_PLACES, FRAGMENTS, HEARD, HINTS, LEASES, LINK_DROPS, NODE_AT, NODE_AT6, NODES, NODES6,
    POLICIES, SERVERS, SHARED, SHARES, SOURCES, STICKY, THIS_NODE, TRANSLATIONS, TUNNEL_COUNTS, TUNNEL_END, UPLINKS,
    USED, VIPS, VIPS_OF_FEW,
};

/// The objects that the same programs are compiled to. One is loaded: the first that the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Its functions are verified one by one, for which the kernel needs BTF of its own (`CONFIG_DEBUG_INFO_BTF`).
    Full,
    /// All is one function. The verifier walks the question to each replica, so there are fewer.
    WithoutBtf,
}

static FULL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/owner.bpf.o"));
static IPV6: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/owner6.bpf.o"));
static WITHOUT_BTF: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/owner.without-btf.bpf.o"));

impl Variant {
    /// In the order of preference.
    pub const ALL: [Self; 2] = [Self::Full, Self::WithoutBtf];

    /// The one whose maps are pinned there.
    pub fn pinned(dir: &Path) -> Option<Self> {
        Self::ALL.into_iter().find(|variant| dir.join(variant.vips()).exists())
    }

    /// The objects: the programs for packets of IPv6 have one of their own.
    pub(super) fn objects(self) -> Vec<&'static [u8]> {
        match self {
            Self::Full => vec![FULL, IPV6],
            Self::WithoutBtf => vec![WITHOUT_BTF],
        }
    }

    /// Its map of VIPs, whose form differs.
    pub(super) fn vips(self) -> &'static str {
        match self {
            Self::Full => VIPS,
            Self::WithoutBtf => VIPS_OF_FEW,
        }
    }

    /// Whether it reaches other nodes, and knows VIPs of IPv6: the verifier has no room for that where it walks all in one.
    fn has_all(self) -> bool {
        self == Self::Full
    }

    /// The programs that it has.
    pub(super) fn programs(self) -> impl Iterator<Item = &'static ProgramSpec> {
        PROGRAMS.iter().filter(move |spec| self.has_all() || Parts::default().have(spec.hook))
    }

    /// Every map of it, by name, each once.
    pub fn map_names(self) -> Vec<&'static str> {
        let maps = self.programs().flat_map(|program| program.maps).copied();
        let maps = maps.filter(|name| self.has_all() || !OF_TUNNEL.contains(name));
        let mut names: Vec<_> = maps.map(|name| if name == VIPS { self.vips() } else { name }).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// tc egress of every host veth: what the node sends to the pod.
    HostEgress,
    /// tc ingress of every host veth: what the pod sends.
    HostIngress,
    /// The same, of packets of IPv6 alone, where the pod serves VIPs of IPv6.
    HostEgressIpv6,
    /// Likewise.
    HostIngressIpv6,
    /// tc ingress of every uplink: what comes to the node.
    UplinkIngress,
    /// tc egress of every uplink: what leaves the node.
    UplinkEgress,
    /// tc ingress of every uplink, of packets of IPv6 alone, while VIPs have IPv6 addresses.
    UplinkIngressIpv6,
    /// tc egress of every uplink, likewise.
    UplinkEgressIpv6,
    /// tc ingress of the tunnel's device: what other nodes send.
    TunnelIngress,
    /// tc egress of the tunnel's device: what goes to other nodes.
    TunnelEgress,
    /// tc ingress of the tunnel's device, of packets of IPv6 alone.
    TunnelIngressIpv6,
    /// tc egress of the tunnel's device, likewise.
    TunnelEgressIpv6,
    /// tc ingress of a container veth, in its pod: what comes to VIPs.
    ContainerIngress,
    /// tc ingress of a pod's own interface, in the pod.
    InterfaceIngress,
    /// tc egress of a pod's own interface, in the pod.
    InterfaceEgress,
    /// tc ingress of a container veth, of packets of IPv6 alone, where the pod serves VIPs of IPv6.
    ContainerIngressIpv6,
    /// tc ingress of a pod's own interface, likewise.
    InterfaceIngressIpv6,
    /// tc egress of a pod's own interface, likewise.
    InterfaceEgressIpv6,
}

impl Hook {
    /// The hooks of a host veth. A device has at most one program of ours a hook.
    pub const HOST_VETH: [Self; 2] = [Self::HostEgress, Self::HostIngress];
    /// Those of one whose pod serves VIPs of IPv6, beside them.
    pub const HOST_VETH_IPV6: [Self; 2] = [Self::HostEgressIpv6, Self::HostIngressIpv6];
    /// The hooks of an uplink.
    pub const UPLINK: [Self; 2] = [Self::UplinkIngress, Self::UplinkEgress];
    /// Those of it for packets of IPv6, beside them. Earlier builds have none.
    pub const UPLINK_IPV6: [Self; 2] = [Self::UplinkIngressIpv6, Self::UplinkEgressIpv6];
    /// The hooks of the tunnel's device.
    pub const TUNNEL: [Self; 2] = [Self::TunnelIngress, Self::TunnelEgress];
    /// Those of it for packets of IPv6, beside them. Earlier builds have none.
    pub const TUNNEL_IPV6: [Self; 2] = [Self::TunnelIngressIpv6, Self::TunnelEgressIpv6];
    /// The hooks in a pod.
    pub const POD: [Self; 3] = [Self::ContainerIngress, Self::InterfaceIngress, Self::InterfaceEgress];
    /// Those in a pod that serves VIPs of IPv6, beside them. Earlier builds have none.
    pub const POD_IPV6: [Self; 3] = [Self::ContainerIngressIpv6, Self::InterfaceIngressIpv6, Self::InterfaceEgressIpv6];

    fn is_of_tunnel(self) -> bool {
        Self::TUNNEL.contains(&self) || Self::TUNNEL_IPV6.contains(&self)
    }

    /// Whether its program is given packets of IPv6 alone.
    pub fn is_of_ipv6(self) -> bool {
        let pairs = [Self::HOST_VETH_IPV6, Self::UPLINK_IPV6, Self::TUNNEL_IPV6];
        pairs.iter().any(|hooks| hooks.contains(&self)) || Self::POD_IPV6.contains(&self)
    }
}

/// Which programs of a build are wanted beside those for packets of IPv4 between uplinks and pods, which always are. The kernel's verifier
/// takes a tenth of a second for some, so none is loaded before its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Those for packets of IPv6 between uplinks and pods.
    pub ipv6: bool,
    /// Those of the tunnel, of either family.
    pub tunnel: bool,
}

impl Parts {
    /// With those of IPv6, where `wanted`.
    pub const fn ipv6(wanted: bool) -> Self {
        Self { ipv6: wanted, tunnel: false }
    }

    /// Whether the program of that hook is among them.
    pub(super) fn have(self, hook: Hook) -> bool {
        if hook.is_of_tunnel() { self.tunnel } else { self.ipv6 || !hook.is_of_ipv6() }
    }

    /// With the part that the program of that hook belongs to.
    pub(super) fn and(self, hook: Hook) -> Self {
        let tunnel = hook.is_of_tunnel();
        Self { ipv6: self.ipv6 || (hook.is_of_ipv6() && !tunnel), tunnel: self.tunnel || tunnel }
    }
}

/// One program.
#[derive(Debug, PartialEq, Eq)]
pub struct ProgramSpec {
    /// As in the object; its pin is `<name>_<version>`.
    pub name: &'static str,
    /// Where it runs.
    pub hook: Hook,
    /// The maps it uses, by name. All are pinned, so that a program of another build takes over what it can.
    pub maps: &'static [&'static str],
}

/// The programs, in the order in which they are published.
pub const PROGRAMS: [ProgramSpec; 18] = [
    ProgramSpec {
        name: "guard",
        hook: Hook::HostIngress,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            SHARED,
            CALLS,
            VIPS,
            HEARD,
            COUNTS,
            LINK_DROPS,
            ALLOWANCES,
            SHARES,
            EXPRESS,
            LEASES,
            CLOSED,
            EXPRESS_COUNTS,
            EXPRESS_PLACES,
        ],
    },
    ProgramSpec {
        name: "owner",
        hook: Hook::HostEgress,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            SHARED,
            CALLS,
            VIPS,
            HINTS,
            STICKY,
            HEARD,
            FRAGMENTS,
            COUNTS,
            LINK_DROPS,
            USED,
            ALLOWANCES,
            SHARES,
            COPYING,
            EXPRESS,
            LEASES,
            POLICIES,
            SOURCES,
            CLIENTS,
            UPLINKS,
            SERVERS,
            NODES,
            NODES6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec {
        name: "guard6",
        hook: Hook::HostIngressIpv6,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            SHARED,
            CALLS6,
            VIPS,
            ADDRESSES6,
            OWN6,
            HEARD6,
            COUNTS,
            LINK_DROPS,
            ALLOWANCES,
            SHARES,
            EXPRESS,
            EXPRESS6,
            LEASES,
            CLOSED,
            EXPRESS_COUNTS,
            EXPRESS_PLACES,
        ],
    },
    ProgramSpec {
        name: "owner6",
        hook: Hook::HostEgressIpv6,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            SHARED,
            CALLS6,
            VIPS,
            ADDRESSES6,
            OWN6,
            HINTS6,
            STICKY6,
            HEARD6,
            FRAGMENTS6,
            COUNTS,
            LINK_DROPS,
            USED,
            ALLOWANCES,
            SHARES,
            COPYING,
            EXPRESS,
            EXPRESS6,
            LEASES,
            POLICIES,
            SOURCES6,
            CLIENTS6,
            UPLINKS,
            SERVERS,
            NODES,
            NODES6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec {
        name: "express_in",
        hook: Hook::UplinkIngress,
        maps: &[VIPS, COUNTS, CALLS, EXPRESS, LEASES, CLOSED, EXPRESS_COUNTS, EXPRESS_PLACES],
    },
    ProgramSpec { name: "express_seen", hook: Hook::UplinkEgress, maps: &[VIPS, EXPRESS, LEASES] },
    ProgramSpec {
        name: "express_in6",
        hook: Hook::UplinkIngressIpv6,
        maps: &[ADDRESSES6, COUNTS, CALLS6, EXPRESS, EXPRESS6, LEASES, CLOSED, EXPRESS_COUNTS, EXPRESS_PLACES],
    },
    ProgramSpec { name: "express_seen6", hook: Hook::UplinkEgressIpv6, maps: &[ADDRESSES6, EXPRESS, EXPRESS6, LEASES] },
    ProgramSpec {
        name: "inward",
        hook: Hook::TunnelIngress,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            CALLS,
            VIPS,
            HINTS,
            STICKY,
            FRAGMENTS,
            COUNTS,
            ALLOWANCES,
            SHARES,
            COPYING,
            CLIENTS,
            NODES,
            NODES6,
            NODE_AT,
            NODE_AT6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec {
        name: "outward",
        hook: Hook::TunnelEgress,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            CALLS,
            VIPS,
            HINTS,
            STICKY,
            FRAGMENTS,
            COUNTS,
            ALLOWANCES,
            SHARES,
            COPYING,
            POLICIES,
            CLIENTS,
            UPLINKS,
            SERVERS,
            NODES,
            NODES6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec {
        name: "inward6",
        hook: Hook::TunnelIngressIpv6,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            CALLS6,
            VIPS,
            ADDRESSES6,
            HINTS6,
            STICKY6,
            FRAGMENTS6,
            COUNTS,
            ALLOWANCES,
            SHARES,
            COPYING,
            CLIENTS6,
            NODES,
            NODES6,
            NODE_AT,
            NODE_AT6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec {
        name: "outward6",
        hook: Hook::TunnelEgressIpv6,
        maps: &[
            ATTACHED,
            TRANSLATIONS,
            CALLS6,
            VIPS,
            ADDRESSES6,
            HINTS6,
            STICKY6,
            FRAGMENTS6,
            COUNTS,
            ALLOWANCES,
            SHARES,
            COPYING,
            POLICIES,
            CLIENTS6,
            UPLINKS,
            SERVERS,
            NODES,
            NODES6,
            THIS_NODE,
            TUNNEL_END,
            TUNNEL_COUNTS,
        ],
    },
    ProgramSpec { name: "udp_asked", hook: Hook::ContainerIngress, maps: &[ANSWERERS, ASKED, SHARES] },
    ProgramSpec { name: "udp_asked_own", hook: Hook::InterfaceIngress, maps: &[ASKED] },
    ProgramSpec { name: "udp_answer", hook: Hook::InterfaceEgress, maps: &[ANSWERERS, ASKED, ANSWER_FRAGMENTS] },
    ProgramSpec {
        name: "udp_asked6",
        hook: Hook::ContainerIngressIpv6,
        maps: &[ADDRESSES6, OWN6, ANSWERERS6, ASKED6, SHARES],
    },
    ProgramSpec { name: "udp_asked_own6", hook: Hook::InterfaceIngressIpv6, maps: &[ASKED6] },
    ProgramSpec {
        name: "udp_answer6",
        hook: Hook::InterfaceEgressIpv6,
        maps: &[NUMBERS6, ANSWERERS6, ASKED6, ANSWER_FRAGMENTS6],
    },
];

/// The maps that only what reaches other nodes has.
const OF_TUNNEL: [&str; 10] =
    [CLIENTS, UPLINKS, SERVERS, NODES, NODES6, NODE_AT, NODE_AT6, THIS_NODE, TUNNEL_END, TUNNEL_COUNTS];

/// The program of that name.
pub fn of_name(name: &str) -> Option<&'static ProgramSpec> {
    PROGRAMS.iter().find(|spec| spec.name == name)
}

/// Maps that earlier builds had, without their version.
const RETIRED_MAPS: [&str; 1] = ["spoofed"];

/// Every map of this build, whichever object is in use.
pub fn map_names() -> Vec<&'static str> {
    let mut names: Vec<_> = Variant::ALL.into_iter().flat_map(Variant::map_names).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What a pin's name says, where it has the form of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinName<'a> {
    /// A program: which, and of which build (twelve hexadecimal digits, or `new`).
    Program(&'static ProgramSpec, &'a str),
    /// A map of this build or of another.
    Map,
}

/// In the place of a build's version while a program isn't on every device yet.
pub const NEW: &str = "new";

impl<'a> PinName<'a> {
    /// `None`: it isn't ours.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (stem, version) = name.rsplit_once('_')?;
        if let Some(spec) = PROGRAMS.iter().find(|spec| spec.name == stem) {
            let is_hash = version.len() == 12 && version.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            return (is_hash || version == NEW).then_some(Self::Program(spec, version));
        }
        let number = version.strip_prefix('v')?;
        let is_number = !number.is_empty() && number.len() <= 3 && number.bytes().all(|b| b.is_ascii_digit());
        let is_map = |own: &str| own.rsplit_once('_').is_some_and(|(own, _)| own == stem);
        (is_number && (RETIRED_MAPS.contains(&stem) || map_names().into_iter().any(is_map))).then_some(Self::Map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_what_the_objects_have() {
        for variant in Variant::ALL {
            let objects: Vec<_> =
                variant.objects().iter().map(|object| aya_obj::Object::parse(object).unwrap()).collect();
            let programs: BTreeSet<_> = objects.iter().flat_map(|o| o.programs.keys()).map(String::as_str).collect();
            assert_eq!(programs, variant.programs().map(|spec| spec.name).collect());
            let maps = objects.iter().flat_map(|object| object.maps.keys()).map(String::as_str);
            let maps: BTreeSet<_> = maps.filter(|name| !name.starts_with('.')).collect();
            assert_eq!(maps, variant.map_names().into_iter().collect());
        }
        let hooks: BTreeSet<_> = PROGRAMS.iter().map(|spec| spec.hook).collect();
        assert_eq!(hooks.len(), PROGRAMS.len(), "one program a hook");
    }

    #[test]
    fn a_part_has_what_is_of_it_alone() {
        let [base, ipv6, tunnel] = [Parts::default(), Parts::ipv6(true), Parts { tunnel: true, ..Parts::default() }];
        let hooks = |parts: Parts| PROGRAMS.iter().map(|spec| spec.hook).filter(move |hook| parts.have(*hook));
        assert!(hooks(base).all(|hook| !hook.is_of_ipv6() && !hook.is_of_tunnel() && base.and(hook) == base));
        assert_eq!(hooks(base).count(), 7);
        let more = |parts: Parts| hooks(parts).filter(|hook| !base.have(*hook));
        assert_eq!((more(ipv6).count(), more(tunnel).count()), (7, 4), "every program is of one part");
        assert!(more(ipv6).all(|hook| base.and(hook) == ipv6));
        assert!(more(tunnel).all(|hook| base.and(hook) == tunnel), "of either family");
    }

    #[test]
    fn the_objects_hold_nothing_that_only_a_debugger_reads() {
        for (variant, object) in Variant::ALL.into_iter().flat_map(|v| v.objects().into_iter().map(move |o| (v, o))) {
            let holds = |name: &str| object.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(holds(".BTF.ext"), "the names of sections are to be found");
            for section in [".debug_", ".rel.BTF"] {
                assert!(!holds(section), "{variant:?}: {section}");
            }
            assert!(!holds("LBB"), "{variant:?}: labels");
            assert!(!holds("return "), "{variant:?}: lines of the source");
        }
    }

    #[test]
    fn only_names_of_our_form_are_ours() {
        let [guard, owner, _, _, express_in, ..] = &PROGRAMS;
        assert_eq!(PinName::parse("owner_0123456789ab"), Some(PinName::Program(owner, "0123456789ab")));
        assert_eq!(PinName::parse("guard_new"), Some(PinName::Program(guard, NEW)));
        assert_eq!(PinName::parse("express_in_new"), Some(PinName::Program(express_in, NEW)));
        for own in map_names().into_iter().chain(["vips_v0", "spoofed_v1", "allowances_v2", "link_drops_v12"]) {
            assert_eq!(PinName::parse(own), Some(PinName::Map), "{own}");
        }
        for foreign in [
            "owner",
            "owner_",
            "owner_0123456789AB",
            "owner_0123456789abc",
            "owner_v1",
            "express_new",
            "someone_elses",
            "maps.debug",
            "vips",
            "vips_1",
            "vips_v",
            "vips_v1x",
            "cilium_v1",
            "drops_v1",
            "",
            "_",
            "_v1",
        ] {
            assert_eq!(PinName::parse(foreign), None, "{foreign}");
        }
    }
}
