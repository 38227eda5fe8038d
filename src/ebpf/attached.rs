//! A VIP of an attachment, and a replica that is asked for flows, as the programs have them.

use std::mem::offset_of;
use std::net::Ipv4Addr;

use aya::Pod;

use super::shared;

/// How many ports a VIP may be limited to.
pub const PORTS: usize = 64;
/// `struct attached_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttachedKey {
    pub(super) ifindex: u32,
    pub(super) vip: [u8; 4],
}

impl AttachedKey {
    pub(super) fn new(ifindex: u32, vip: Ipv4Addr) -> Self {
        Self { ifindex, vip: vip.octets() }
    }
}

/// A host veth, and a VIP of its pod's: by its address, or by the number of one of IPv6 ([`Maps::key`](super::Maps::key)).
pub(super) type Place = (u32, Ipv4Addr);

/// Only the ports listed are served.
pub const GUARDED: u32 = 1;
/// UDP flows stay with their replica.
pub const STICKY_UDP: u32 = 2;
/// The VIP has more replicas than are asked ([`Maps::limit`](super::Maps::limit)).
pub const OVER_MEMBER_LIMIT: u32 = 4;
/// Flows may begin in the pod: with the VIP as their source it does more than answer.
pub const ANY_EGRESS: u32 = 8;
/// The replica gets no new flows.
pub const DRAINING: u32 = 16;
/// Of some of its ports the pod has another number.
pub const TRANSLATES: u32 = 32;
/// Of several of its ports the pod has one number.
pub const SHARES_NUMBERS: u32 = 64;

/// Of some ports of the VIP Services ask something ([`Maps::policies`](super::Maps::policies)).
pub const POLICED: u32 = 128;

/// `struct attached`: a VIP of an attachment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The program's own: until when a SYN for this replica may have been handed to another one, nanoseconds of
    /// `CLOCK_MONOTONIC`. 0 when it is read here.
    pub syn_search_until: u64,
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// [`GUARDED`], [`STICKY_UDP`], [`OVER_MEMBER_LIMIT`], [`ANY_EGRESS`], [`DRAINING`], [`TRANSLATES`],
    /// [`SHARES_NUMBERS`], [`POLICED`].
    pub flags: u32,
    /// The container veth's Ethernet address.
    pub mac: [u8; 6],
    /// How many ports are listed.
    pub ports: u16,
    /// IP protocol << 16 | port.
    pub port: [u32; PORTS],
    /// What the pod has in the place of each. The programs read what follows from it ([`super::translations`]).
    pub target: [u16; PORTS],
    /// The pod's own address, in network order.
    pub own: [u8; 4],
    /// How many shares of the VIP's new flows it gets beside others here.
    pub weight: u32,
}

impl Attached {
    /// Of a replica that serves everything, gets one share, and whose own address isn't known.
    pub fn new(netns: u32, mac: [u8; 6], flags: u32) -> Self {
        Self {
            syn_search_until: 0,
            netns,
            flags,
            mac,
            ports: 0,
            port: [0; PORTS],
            target: [0; PORTS],
            own: [0; 4],
            weight: 1,
        }
    }

    /// Whether several of its ports have one number in the pod.
    pub fn shares(&self) -> bool {
        shared::has_some(self)
    }
}

/// `struct member`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The host veth.
    pub ifindex: u32,
    /// The pod's namespace, as an id of the node's.
    pub netns: u32,
    /// The container veth's Ethernet address.
    pub mac: [u8; 6],
    /// [`DRAINING`], [`TRANSLATES`], [`SHARES_NUMBERS`].
    pub flags: u8,
    /// As its entry's.
    pub weight: u8,
}

impl Member {
    /// It gets no new flows.
    pub fn is_draining(&self) -> bool {
        u32::from(self.flags) & DRAINING != 0
    }

    /// A replica to be asked, by its host veth and what is known of it.
    pub fn new(ifindex: u32, Attached { netns, mac, flags, weight, .. }: &Attached) -> Self {
        // Both fit.
        let flags = u8::try_from(flags & (DRAINING | TRANSLATES | SHARES_NUMBERS)).unwrap_or_default();
        Self { ifindex, netns: *netns, mac: *mac, flags, weight: u8::try_from(*weight).unwrap_or(u8::MAX) }
    }
}

/// As the C structs, field by field (`layout` asks the object's BTF).
const _: () = {
    assert!(size_of::<AttachedKey>() == 8);
    assert!(size_of::<Attached>() == 32 + 6 * PORTS && offset_of!(Attached, port) == 24);
    assert!(size_of::<Member>() == 16 && offset_of!(Member, mac) == 8);
};

// SAFETY: integers and arrays of them without padding between or behind them.
unsafe impl Pod for AttachedKey {}
// SAFETY: as above: 8 + 4 + 4 + 6 + 2 + 64 × 4 + 64 × 2 + 4 + 4 bytes.
unsafe impl Pod for Attached {}
