//! What became of packets, as the programs count it.

use aya::Pod;

/// `struct counts`: what became of a VIP's packets, since the program was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Belonged to a connection of the replica the group had chosen.
    pub local_hit: u64,
    /// Steered to another replica, which has their connection.
    pub steered: u64,
    /// Of a connection that no replica has: the chosen replica refuses them.
    pub no_owner: u64,
    /// Dropped because too many were of connections that no replica has.
    pub search_throttled: u64,
    /// To a port that isn't served.
    pub port_denied: u64,
    /// From a replica, with the VIP as the source, and no answer: it would have begun a flow.
    pub egress_denied: u64,
    /// Resets of a replica that had just closed its port, not sent to the client while another replica listens.
    pub reset_withheld: u64,
    /// To a replica, from one of its pod's own addresses.
    pub own_source: u64,
    /// To begin a flow with a port that isn't for that client.
    pub source_denied: u64,
}

/// `struct link_drops`: packets dropped at a host veth that name no VIP of its pod's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkDrops {
    /// From the pod, with a source that isn't its own.
    pub spoofed: u64,
    /// To the pod, and for no VIP of its.
    pub misrouted: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self {
            local_hit: self.local_hit + other.local_hit,
            steered: self.steered + other.steered,
            no_owner: self.no_owner + other.no_owner,
            search_throttled: self.search_throttled + other.search_throttled,
            port_denied: self.port_denied + other.port_denied,
            egress_denied: self.egress_denied + other.egress_denied,
            reset_withheld: self.reset_withheld + other.reset_withheld,
            own_source: self.own_source + other.own_source,
            source_denied: self.source_denied + other.source_denied,
        }
    }
}

impl LinkDrops {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { spoofed: self.spoofed + other.spoofed, misrouted: self.misrouted + other.misrouted }
    }
}

/// As the C structs (`layout` asks the object's BTF).
const _: () = assert!(size_of::<Counts>() == 9 * 8 && size_of::<LinkDrops>() == 2 * 8);

// SAFETY: nine u64.
unsafe impl Pod for Counts {}
// SAFETY: two u64.
unsafe impl Pod for LinkDrops {}
