//! Whether the namespace's packets are tracked.

use std::net::{Ipv4Addr, UdpSocket};

use super::sysctl;

/// How many connections are known in the calling thread's network namespace; absent without the module.
const COUNT: &str = "net.netfilter.nf_conntrack_count";

/// Whether any packet of the calling thread's network namespace is tracked: its hooks come with the first rule that asks for a
/// connection or translates an address, of whatever firewall, and go with the last. Where no connection is known, a datagram over
/// the loopback device shows whether one would be. False also where rules keep all such packets, and all that came, from being
/// tracked.
pub fn is_tracking() -> bool {
    match sysctl::get(COUNT) {
        Ok(0) => probe().is_ok() && has_connections(),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Whether any connection is known in the calling thread's network namespace.
fn has_connections() -> bool {
    sysctl::get(COUNT).is_ok_and(|count| count > 0)
}

/// To a socket of its own: nobody else gets it, and nothing answers.
fn probe() -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.send_to(&[0], socket.local_addr()?).map(drop)
}
