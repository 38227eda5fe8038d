//! The `DHCPv6` client of this node itself, for a prefix that is delegated to it (`IA_PD`, RFC 8415 section 6.3): of that VIPs have addresses.

use ipnetwork::Ipv6Network;

use crate::dhcp::{self, Acquisition, Engine, Handle, TransportConfig, Turn};
use crate::lease::clock;
use crate::lease::cluster::Cluster;
use crate::lease::store::Delegated;
use crate::model::Family;
use crate::model::address::ipv6;

use super::{Error, Notices, dhcp as vips, identity};

/// The name of the one client that there is.
const KEY: &str = "prefix";
/// What is asked for: as a link's prefixes are, though VIPs take less.
const LENGTH: u8 = 64;

/// Asks for a prefix on the link named `interface`, for `remembered` first. What becomes of it comes by the receiver, until the handle is
/// dropped.
pub fn start(
    cluster: &Cluster,
    interface: Option<&str>,
    remembered: Option<&Delegated>,
) -> Result<(Handle, Notices), Error> {
    let interface = interface.ok_or(Error::NoInterface)?.into();
    let transport = TransportConfig::Link { family: Family::V6, interface };
    let (handle, notices) = Engine::start(dhcp::Settings { transport, servers: Vec::new(), clock: clock::now })?;
    let (identity, remembered) = (identity::of_prefix(&cluster.name, &own_id()), remembered.map(to_engine));
    let acquisition = Acquisition { identity, remembered, wish: None, turn: Turn::Own, prefix: Some(LENGTH) };
    handle.acquire(KEY.to_owned(), acquisition);
    Ok((handle, Some(notices)))
}

/// What tells this machine from others: `machine-id(5)`, and where it has none its name.
fn own_id() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    let name =
        || nix::sys::utsname::uname().map_or_else(|_| String::new(), |of| of.nodename().to_string_lossy().into_owned());
    Some(id).filter(|id| !id.is_empty()).unwrap_or_else(name)
}

/// What is delegated; none: it is no prefix.
pub fn delegated(lease: &dhcp::Lease) -> Option<Delegated> {
    let network = Ipv6Network::new(ipv6(lease.address)?, lease.prefix?).ok()?;
    Some(Delegated { network, lease: vips::from_engine(lease) })
}

fn to_engine(delegated: &Delegated) -> dhcp::Lease {
    vips::to_engine(&delegated.lease, Some(delegated.network.prefix()))
}
