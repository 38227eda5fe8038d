//! A `DHCPv4` client (RFC 2131) for addresses that are not an interface's own: many identities over one socket,
//! each with its own state machine. Knows nothing of VIPs.

use std::net::Ipv4Addr;
use std::time::SystemTime;

/// Who asks: one identity is one DHCP client, wherever it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Option 61, the whole value with its type octet (RFC 4361: 255, IAID, DUID).
    pub client_id: Vec<u8>,
    /// `chaddr`: a locally administered unicast MAC address.
    pub chaddr: [u8; 6],
    /// Option 12.
    pub hostname: String,
}

/// An address lent to an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The server that granted it (option 54).
    pub server: Ipv4Addr,
    /// When it was granted: the instant the REQUEST was sent (RFC 2131 section 4.4.1).
    pub granted: SystemTime,
    /// T1, T2 and expiry, as instants. `None` expiry: an infinite lease.
    pub renew: Option<SystemTime>,
    /// See [`Lease::renew`].
    pub rebind: Option<SystemTime>,
    /// See [`Lease::renew`].
    pub expires: Option<SystemTime>,
}
