//! The kernel: one file per kind of object, each with its requests (made here, sent by [`Socket::apply`]) and its
//! reads. Nothing above this module knows netlink; nothing in it knows VIPs.
//!
//! A socket belongs to one network namespace for life. [`NodeNet`] and [`PodNet`] are distinct types, so that the two
//! can't be swapped.

#[cfg(feature = "node")]
pub mod acd;
pub mod address;
#[cfg(feature = "node")]
pub mod changes;
#[cfg(feature = "node")]
pub mod checksum;
pub mod conntrack;
#[cfg(feature = "node")]
pub mod echo;
pub mod error;
pub mod filter;
#[cfg(feature = "node")]
pub mod ipv6;
pub mod link;
#[cfg(feature = "node")]
pub mod link_local;
pub mod module;
pub mod monitor;
pub mod neighbour;
pub mod netconf;
pub mod netns;
pub mod nexthop;
pub mod nftables;
#[cfg(feature = "node")]
pub mod packet;
pub mod removed_links;
pub mod route;
pub mod rule;
pub mod socket;
#[cfg(feature = "node")]
pub mod sockets;
pub mod sysctl;
#[cfg(feature = "node")]
pub mod tcx;
pub mod unix;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::AddressFamily;

use crate::model::Family;

pub use error::Error;
pub use module::Module;
#[cfg(feature = "node")]
pub use netns::Visitor;
pub use netns::{Netns, NodeNet, PodNet};
pub use socket::{Request, Socket};

/// The mark of ownership on every route, rule, nexthop and neighbour of ours (`rtm_protocol`, `/etc/iproute2/rt_protos`).
pub const PROTOCOL: u8 = 118;

/// What a call on the kernel gives.
pub type Result<T> = std::result::Result<T, Error>;

/// A family as netlink's headers have it.
fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family that a header's first byte says; `None`: neither of the two (the multicast tables have families of their own).
fn family_of(byte: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| u8::from(address_family(*family)) == byte)
}

/// The value of the first attribute of a kind, where there is one.
fn attribute(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut nlas = NlasIterator::new(attributes).map_while(std::result::Result::ok);
    let nla = nlas.find(|nla| nla.kind() == wanted)?;
    let length = usize::from(nla.length());
    nla.into_inner().get(4..length)
}

/// An attribute as [`attribute`] reads it.
#[cfg(test)]
fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a short value");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
