//! The host veth, and everything on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;

use crate::dataplane::ids::{self, HOST_ADDRESS, VethNames};
use crate::ebpf::{self, Hook, Parts, Programs};
use crate::model::Family;
use crate::net::address::{self, Address};
use crate::net::filter;
use crate::net::link::{self, Link, Setting};
use crate::net::neighbour::{self, Neighbour};
use crate::net::nexthop::Nexthop;
use crate::net::{self, NodeNet};

use super::{Fix, RP_FILTER_LOOSE, fix, ipv6, is_neighbour, set, side};

/// The host veth, and what is on it.
#[derive(Debug)]
pub struct HostVeth {
    /// The device.
    pub link: Link,
    addresses: Vec<Address>,
    neighbour: Option<Neighbour>,
    /// The ids of the programs on it.
    programs: BTreeMap<Hook, u32>,
    /// The pair carries IPv6.
    carries_ipv6: bool,
    /// Settings of IPv6 that differ.
    wrong: ipv6::Wrong,
}

impl HostVeth {
    /// A host veth that was just made: nothing is on it. `gateway`: what the pod's nexthop is to lead to.
    pub fn new(node: &NodeNet, names: &VethNames, gateway: IpAddr) -> net::Result<Option<Self>> {
        let carries_ipv6 = gateway.is_ipv6();
        let wrong = if carries_ipv6 { ipv6::of_new_host(&names.host) } else { ipv6::Wrong::new() };
        let bare = |link| Self {
            link,
            addresses: Vec::new(),
            neighbour: None,
            programs: BTreeMap::new(),
            carries_ipv6,
            wrong,
        };
        Ok(link::by_name(node, &names.host)?.map(bare))
    }

    /// Reads the host veth. Only [`HostVeth::fixes`] needs the gateway. Without it the pair carries IPv6 if programs for that are on it.
    pub fn read(node: &NodeNet, names: &VethNames, gateway: Option<IpAddr>) -> net::Result<Option<Self>> {
        let Some(link) = link::by_name(node, &names.host)? else { return Ok(None) };
        let addresses = address::list(node, Family::V4, Some(link.index))?;
        let neighbour = gateway.map(|address| neighbour::get(node, link.index, address)).transpose()?.flatten();
        let mut programs = BTreeMap::new();
        let of_ipv6 = Hook::HOST_VETH_IPV6.into_iter().filter(|_| gateway.is_none_or(|gateway| gateway.is_ipv6()));
        for hook in Hook::HOST_VETH.into_iter().chain(of_ipv6) {
            programs.extend(filter::program(node, link.index, side(hook))?.map(|id| (hook, id)));
        }
        let has_programs = || Hook::HOST_VETH_IPV6.iter().any(|hook| programs.contains_key(hook));
        let carries_ipv6 = gateway.map_or_else(has_programs, |gateway| gateway.is_ipv6());
        let wrong = if carries_ipv6 { ipv6::of_host(&link.name) } else { ipv6::Wrong::new() };
        Ok(Some(Self { link, addresses, neighbour, programs, carries_ipv6, wrong }))
    }

    /// Whether the kernel has IPv6 for it.
    pub fn can_carry_ipv6(&self) -> bool {
        self.link.ipv6
    }

    /// Programs of ours run on it, of whatever build.
    pub fn has_programs(&self) -> bool {
        !self.programs.is_empty()
    }

    /// The programs that it has need of.
    pub fn parts(&self) -> Parts {
        Parts::ipv6(self.carries_ipv6)
    }

    /// What must still be done for these programs to run on it.
    pub fn filter_fixes(&self, programs: &Programs) -> ebpf::Result<Vec<Fix>> {
        let Link { index, name, .. } = &self.link;
        let mut fixes = Vec::new();
        let is_on_it =
            |hook: &Hook| Hook::HOST_VETH.contains(hook) || (self.carries_ipv6 && Hook::HOST_VETH_IPV6.contains(hook));
        for program in programs.iter().filter(|program| is_on_it(&program.spec.hook)) {
            let (side, found) = (side(program.spec.hook), self.programs.get(&program.spec.hook));
            if found != Some(&program.id()) {
                let (wanted, id) = (program.spec.name, program.id());
                let found = found.map_or_else(|| "none".to_owned(), |id| format!("program {id}"));
                let finding =
                    format!("the flow owner's filter on {name}, {side}: want {wanted} (program {id}), found {found}");
                fixes.push(fix(finding, filter::replace(*index, side, program.fd()?)));
            }
        }
        if !fixes.is_empty() {
            fixes.insert(0, fix(format!("clsact on {name} is missing"), filter::add_clsact(*index)));
        }
        Ok(fixes)
    }

    /// What must still be done for a pod whose nexthop leads to this gateway: its address, or its end of the pair.
    pub fn fixes(&self, names: &VethNames, gateway: IpAddr) -> Vec<Fix> {
        let Link { index, name, settings, up, .. } = &self.link;
        let index = *index;
        let mut fixes = Vec::new();
        let wanted = [(Setting::RpFilter, RP_FILTER_LOOSE), (Setting::Forwarding, 1)];
        let is_configured = settings.rp_filter == RP_FILTER_LOOSE && settings.forwarding == 1;
        let finding = if is_configured {
            format!("{name} may take IPv6 addresses")
        } else {
            format!("{name} has rp_filter {}, forwarding {}", settings.rp_filter, settings.forwarding)
        };
        // Up later: the container veth may be up, and the carrier be there at once.
        if !up {
            fixes.push(fix(finding, link::prepare(&self.link, &wanted)));
        } else if !is_configured {
            fixes.push(fix(finding, link::configure(index, &wanted)));
        }
        if !self.addresses.iter().any(|a| a.address == HOST_ADDRESS) {
            fixes.push(fix(format!("address {HOST_ADDRESS} on {name} is missing"), address::add(index, HOST_ADDRESS)));
        }
        fixes.extend(set(&self.wrong));
        if !up {
            fixes.push(fix(format!("{name} is down"), link::set_up(index)));
        }
        if !is_neighbour(self.neighbour.as_ref(), gateway, names.pod_mac) {
            let finding = format!("neighbour {gateway} on {name} is missing");
            fixes.push(fix(finding, neighbour::replace(index, gateway, names.pod_mac)));
        }
        fixes
    }

    /// Whether what comes for the pod from one of its own addresses is dropped: by this build's programs. `None`: they should be
    /// on it and aren't, so that it can't be told.
    pub fn checks_sources(&self, programs: Option<&Path>) -> ebpf::Result<Option<bool>> {
        let Some(dir) = programs else { return Ok(Some(false)) };
        let Some(programs) = Programs::open(dir, self.parts())? else { return Ok(None) };
        Ok(self.filter_fixes(&programs)?.is_empty().then_some(true))
    }

    /// The way to the pod: what its VIPs' groups are made of.
    pub fn nexthop(&self, gateway: IpAddr) -> net::Result<Nexthop> {
        let index = self.link.index;
        let out_of_range = || net::Error::new("add nexthop", format!("for link {index}"), Errno::ERANGE);
        Ok(Nexthop { id: ids::nexthop(index).ok_or_else(out_of_range)?, gateway, index })
    }
}
