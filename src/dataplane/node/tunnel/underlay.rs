//! The network under the tunnel, and what of it is left for packets.

use std::net::IpAddr;

use crate::model::Family;
use crate::net::{self, NodeNet, address, link};
use crate::registry::{Registry, nodes};

/// On a narrower link the kernel has no IPv6 (RFC 8200, 5), bytes.
pub(super) const LEAST_MTU_OF_IPV6: u32 = 1280;
/// IPv4 and TCP headers without options.
const HEADERS: u32 = 20 + 20;

/// Bytes that the tunnel adds to a packet: Ethernet, VXLAN and UDP headers, and that of IP.
fn overhead(family: Family) -> u32 {
    let outer = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    14 + 8 + 8 + outer
}

/// The network under the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The index of the device that has this node's end of the tunnel.
    pub index: u32,
    /// That device's MTU, bytes.
    pub mtu: u32,
    /// The family of the tunnel's own packets.
    pub family: Family,
}

impl Underlay {
    /// That of this node's end of the tunnel; none: no device has the address.
    pub fn read(node: &NodeNet, tunnel: IpAddr) -> net::Result<Option<Self>> {
        let family = Family::of(tunnel);
        let addresses = address::list(node, family, None)?;
        let Some(found) = addresses.iter().find(|found| found.address == tunnel) else { return Ok(None) };
        let link = link::by_index(node, found.index)?;
        Ok(link.map(|link| Self { index: link.index, mtu: link.mtu, family }))
    }

    /// As the registry has the nodes; none: there is no tunnel.
    pub fn of(node: &NodeNet, registry: &Registry) -> net::Result<Option<Self>> {
        let cluster = nodes::or_alone(nodes::load_others(registry));
        cluster.map_or(Ok(None), |cluster| Self::read(node, cluster.own.tunnel))
    }

    /// The longest packet that goes in one piece, bytes.
    pub fn whole(self) -> u32 {
        self.mtu.saturating_sub(overhead(self.family))
    }

    /// The MTU with which the tunnel carries packets of IPv6, where the network has less.
    pub fn lacks_for_ipv6(self) -> Option<u32> {
        let least = match self.family {
            Family::V4 => LEAST_MTU_OF_IPV6,
            Family::V6 => LEAST_MTU_OF_IPV6 + overhead(self.family),
        };
        (self.mtu < least).then_some(least)
    }

    /// The MTU of the tunnel's device. What is too long with the tunnel's headers goes in fragments of IPv4; of IPv6 the kernel makes none
    /// (`ip6_fragment()` in `net/ipv6/ip6_output.c`: no socket has made the packet), and what is too long must not get so far.
    pub fn device_mtu(self) -> u32 {
        match self.family {
            Family::V4 => self.mtu,
            Family::V6 => self.whole(),
        }
    }
}

/// The longest segment that a pod whose `vip0` has this MTU may offer to receive by IPv4, so that requests go through the tunnel in one
/// piece (`whole`: [`Underlay::whole`]); none: what its own MTU allows is short enough.
pub fn advmss(whole: u32, mtu: u32) -> Option<u32> {
    let is_enough = whole > HEADERS && whole < mtu;
    is_enough.then(|| whole - HEADERS)
}
