//! What a node that has VIPs must be set to.

use crate::model::Family;
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, NodeNet, link, sysctl};

/// Hash policy 3 with these fields (addresses, protocol, ports) computes a flow's hash from the packet itself; with policy
/// 1 the kernel may take the sender's, which TCP changes after a time-out.
pub const SETTINGS: [(&str, i64); 3] = [
    ("net.ipv4.fib_multipath_hash_policy", 3),
    ("net.ipv4.fib_multipath_hash_fields", 0x37),
    ("net.ipv4.ip_forward", 1),
];

/// The same where VIPs have addresses of IPv6. Policy 0, which is the kernel's own, hashes the flow label, which TCP changes after a time-out.
pub const SETTINGS_IPV6: [(&str, i64); 3] = [
    ("net.ipv6.fib_multipath_hash_policy", 3),
    ("net.ipv6.fib_multipath_hash_fields", 0x37),
    ("net.ipv6.conf.all.forwarding", 1),
];

/// On the link to the gateways, and on another one of IPv6 addresses, the node sends no ICMP redirects: who calls a VIP that isn't here yet
/// would be sent to the gateway, and would ask that for minutes, also once the VIP is here. The kernel sends none where neither says so: that device nor `all` (`IN_DEV_TX_REDIRECTS`).
pub const NO_REDIRECTS: (&str, i64) = ("net.ipv4.conf.all.send_redirects", 0);

/// [`NO_REDIRECTS`] and the same of that device.
pub fn without_redirects(device: &str) -> [(String, i64); 2] {
    let (all, want) = NO_REDIRECTS;
    [all.to_owned(), sysctl::of_device(Family::V4, "conf", device, "send_redirects")].map(|name| (name, want))
}

/// `accept_ra` of a device that takes router advertisements while the node doesn't forward (`ip-sysctl.rst`): what the kernel has by itself.
pub(super) const UNLESS_FORWARDING: i64 = 1;
/// `accept_ra` of a device whose default route a node that forwards keeps (`ip-sysctl.rst`).
pub(super) const EVEN_IF_FORWARDING: i64 = 2;
/// `RTPROT_RA` of linux/rtnetlink.h: a route by router advertisement.
const BY_ADVERTISEMENT: u8 = 9;

/// A setting that has another value than it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    name: String,
    want: i64,
    found: i64,
}

/// What `name` must be changed by; none: it has the value wanted.
pub fn difference(name: &str, want: i64, found: i64) -> Option<Change> {
    (want != found).then(|| Change { name: name.to_owned(), want, found })
}

impl Change {
    /// A sentence for CHECK.
    pub fn finding(&self) -> String {
        let Self { name, want, found } = self;
        format!("sysctl {name} is {found}, not {want}")
    }

    /// Writes it.
    pub fn apply(&self) -> net::Result<()> {
        sysctl::ensure(&self.name, self.want)
    }
}

/// Reads one and compares.
pub fn read((name, want): (&str, i64)) -> net::Result<Option<Change>> {
    Ok(difference(name, want, sysctl::get(name)?))
}

/// Whether the kernel has IPv6 at all (`ipv6.disable=1` on its command line: it hasn't).
pub fn has_ipv6() -> bool {
    SETTINGS_IPV6.iter().any(|(name, _)| sysctl::exists(name))
}

/// Sets the node up for VIPs.
pub fn configure() -> net::Result<()> {
    for setting in SETTINGS {
        read(setting)?.map_or(Ok(()), |change| change.apply())?;
    }
    Ok(())
}

/// Sets the node up for VIPs of IPv6. Before it forwards, each device with a default route by router advertisement is told to keep that: the
/// kernel deletes it otherwise, and takes none again (`rt6_purge_dflt_routers`).
pub fn configure_ipv6(node: &NodeNet) -> net::Result<()> {
    keep_default_routes(node)?;
    for setting in SETTINGS_IPV6 {
        read(setting)?.map_or(Ok(()), |change| change.apply())?;
    }
    Ok(())
}

/// Where the node forwards already, those that were to go are gone.
fn keep_default_routes(node: &NodeNet) -> net::Result<()> {
    let filter = Filter {
        family: Family::V6,
        table: Some(route::MAIN),
        protocol: Some(BY_ADVERTISEMENT),
        prefix: Some(route::DEFAULT6),
    };
    for route in route::list(node, filter)? {
        let Kind::Via(hops) = route.kind else { continue };
        for index in hops.iter().filter_map(|hop| hop.index) {
            let Some(device) = link::by_index(node, index)? else { continue };
            let name = sysctl::of_device(Family::V6, "conf", &device.name, "accept_ra");
            // With 0 the kernel takes none: another program reads advertisements, and the route is its own.
            if sysctl::get(&name)? == UNLESS_FORWARDING {
                sysctl::ensure(&name, EVEN_IF_FORWARDING)?;
            }
        }
    }
    Ok(())
}

/// The first setting that isn't right: a word for CHECK. `has_ipv6`: VIPs have addresses of it.
pub fn finding(has_ipv6: bool) -> net::Result<Option<String>> {
    for setting in SETTINGS.into_iter().chain(SETTINGS_IPV6.into_iter().filter(|_| has_ipv6)) {
        if let Some(change) = read(setting)? {
            return Ok(Some(change.finding()));
        }
    }
    Ok(None)
}
