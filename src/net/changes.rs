//! That something has changed by which a packet of the node may be judged or sent another way, and nothing of what: rules
//! of nftables, routes, policy rules, nexthops, devices, addresses, filters, settings, neighbours.
//!
//! Changes that decide nothing are left out, for some of them come hundreds a second: moves of buckets, a neighbour that is asked again and
//! answers as before.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::{Error, Result};

/// `RTNLGRP_…` (linux/rtnetlink.h): links, neighbours, tc, nexthops; addresses, routes, policy rules and settings of IPv4; the same of IPv6.
const ROUTING: [u32; 12] = [1, 3, 4, 32, 5, 7, 8, 24, 9, 12, 19, 25];
/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 7;
/// Message types.
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_NEIGHBOUR: u16 = 28;
const DEL_NEIGHBOUR: u16 = 29;
const BUCKETS: [u16; 2] = [116, 117];
const LINKS: [u16; 2] = [16, 17];
/// No message is read beyond this; what is behind doesn't matter.
const MESSAGE: usize = 4096;
/// More neighbours, and addresses, than a node knows, unless its limits were raised.
const NEIGHBOURS: usize = 8192;

/// Listens.
#[derive(Debug)]
pub struct Changes {
    routing: netlink_sys::Socket,
    /// None where the kernel has no nftables.
    nftables: Option<netlink_sys::Socket>,
    known: Known,
}

impl Changes {
    /// Listens in the calling thread's namespace from now on.
    pub fn open() -> Result<Self> {
        let routing = listen(NETLINK_ROUTE, &ROUTING)?;
        let nftables = match listen(NETLINK_NETFILTER, &[NFTABLES]) {
            Ok(socket) => Some(socket),
            Err(error) if error.errno == Errno::EPROTONOSUPPORT => None,
            Err(error) => return Err(error),
        };
        Ok(Self { routing, nftables, known: Known::default() })
    }

    /// Readable where something may have changed.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.routing), self.nftables.as_ref()].into_iter().flatten().map(as_fd)
    }

    /// Reads what there is; true: something has changed. What was lost counts as a change.
    pub fn take(&mut self) -> Result<bool> {
        let mut changed = false;
        let mut buffer = vec![0; MESSAGE];
        let Self { routing, nftables, known } = self;
        drain(routing, &mut buffer, |message| changed |= message.is_none_or(|message| matters(message, known)))?;
        if let Some(nftables) = nftables {
            drain(nftables, &mut buffer, |_| changed = true)?;
        }
        Ok(changed)
    }
}

fn as_fd(socket: &netlink_sys::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket's descriptor is open for as long as the reference lives.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

fn listen(protocol: isize, groups: &[u32]) -> Result<netlink_sys::Socket> {
    let failed = |e: std::io::Error| Error::io("listen for", "changes", &e);
    let mut socket = netlink_sys::Socket::new(protocol).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    socket.set_non_blocking(true).map_err(failed)?;
    for group in groups {
        socket.add_membership(*group).map_err(failed)?;
    }
    Ok(socket)
}

/// Each message that waits, its first bytes; none: some found no room.
fn drain(socket: &netlink_sys::Socket, buffer: &mut [u8], mut each: impl FnMut(Option<&[u8]>)) -> Result<()> {
    loop {
        match recv(as_fd(socket).as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => each(Some(&buffer[..length])),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => each(None),
            Err(errno) => return Err(Error::new("read", "changes", errno)),
        }
    }
}

/// Whether it may change what becomes of a packet. What isn't understood may.
fn matters(datagram: &[u8], known: &mut Known) -> bool {
    const HEADER: usize = 16;
    let (Some(kind), Some(payload)) = (datagram.get(4..6), datagram.get(HEADER..)) else { return true };
    let kind = u16::from_ne_bytes([kind[0], kind[1]]);
    if BUCKETS.contains(&kind) {
        return false;
    }
    if LINKS.contains(&kind) {
        return true;
    }
    // Each form begins with the family.
    match payload.first().copied().map(i32::from) {
        Some(libc::AF_BRIDGE) => false,
        Some(libc::AF_INET | libc::AF_INET6) if kind == NEW_NEIGHBOUR || kind == DEL_NEIGHBOUR => {
            known.neighbours.is_another(kind == NEW_NEIGHBOUR, payload)
        }
        Some(libc::AF_INET6) if kind == NEW_ADDRESS || kind == DEL_ADDRESS => {
            known.addresses.is_another(kind == NEW_ADDRESS, payload)
        }
        _ => true,
    }
}

/// What was heard before.
#[derive(Debug, Default)]
struct Known {
    neighbours: Neighbours,
    addresses: Addresses,
}

/// The node's IPv6 addresses, by device and as they were heard last: the kernel says each of them again whenever a router advertises its
/// prefix (`addrconf_prefix_rcv()` in `net/ipv6/addrconf.c`).
#[derive(Debug, Default)]
struct Addresses(HashMap<(u32, Vec<u8>), [u8; 2]>);

impl Addresses {
    /// It is new, gone, or has another prefix length or other flags than before.
    fn is_another(&mut self, is_there: bool, payload: &[u8]) -> bool {
        const ADDRESS: u16 = 1;
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let form = payload.get(1..3).and_then(|form| form.first_chunk().copied());
        let index = payload.get(4..8).and_then(|index| index.first_chunk().copied()).map(u32::from_ne_bytes);
        let address = super::attribute(payload.get(8..).unwrap_or_default(), ADDRESS).map(<[u8]>::to_vec);
        let (Some(form), Some(index), Some(address)) = (form, index, address) else { return true };
        if self.0.len() >= NEIGHBOURS {
            self.0.clear();
        }
        if is_there {
            self.0.insert((index, address), form) != Some(form)
        } else {
            self.0.remove(&(index, address));
            true
        }
    }
}

/// The neighbours' Ethernet addresses as they were heard last: only who had one can have another.
#[derive(Debug, Default)]
struct Neighbours(HashMap<(u32, Vec<u8>), Vec<u8>>);

impl Neighbours {
    /// A neighbour has another address than before, or none any more. One that the kernel drops for want of use is asked for
    /// again when it is needed.
    fn is_another(&mut self, is_there: bool, payload: &[u8]) -> bool {
        const FAILED: u16 = 0x20;
        const DESTINATION: u16 = 1;
        const ADDRESS: u16 = 2;
        // struct ndmsg: family, padding, index, state, flags, type.
        let state = payload.get(8..10).map_or(FAILED, |state| u16::from_ne_bytes([state[0], state[1]]));
        let index = payload.get(4..8).and_then(|index| index.first_chunk().copied()).map(u32::from_ne_bytes);
        let attributes = payload.get(12..).unwrap_or_default();
        let destination = super::attribute(attributes, DESTINATION).map(<[u8]>::to_vec);
        let (Some(index), Some(destination)) = (index, destination) else { return true };
        if self.0.len() >= NEIGHBOURS {
            self.0.clear();
            return true;
        }
        let address = super::attribute(attributes, ADDRESS).filter(|_| is_there && state != FAILED);
        let before = match address {
            Some(address) => self.0.insert((index, destination), address.to_vec()),
            None => self.0.remove(&(index, destination)),
        };
        let is_dropped = !is_there && state != FAILED;
        before.is_some_and(|before| !is_dropped && Some(before.as_slice()) != address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nla;

    fn message(kind: u16, family: i32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(16, 0);
        bytes.extend([u8::try_from(family).unwrap(), 0, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    fn neighbour(family: i32, kind: u16, state: u16, address: Option<u8>) -> Vec<u8> {
        let mut payload = 2_u32.to_ne_bytes().to_vec();
        payload.extend(state.to_ne_bytes());
        payload.extend([0, 0]);
        payload.extend(if family == libc::AF_INET { nla(1, &[192, 0, 2, 7]) } else { nla(1, &[0xfd; 16]) });
        payload.extend(address.map(|last| nla(2, &[2, 0, 0, 0, 0, last])).unwrap_or_default());
        message(kind, family, &payload)
    }

    #[test]
    fn a_neighbour_counts_when_its_address_is_another_one() {
        const REACHABLE: u16 = 2;
        const STALE: u16 = 4;
        const FAILED: u16 = 0x20;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut known = Known::default();
            let mut heard = |kind, state, address| matters(&neighbour(family, kind, state, address), &mut known);
            assert!(!heard(NEW_NEIGHBOUR, REACHABLE, Some(1)), "nobody has a lease by it yet");
            assert!(!heard(NEW_NEIGHBOUR, STALE, Some(1)));
            assert!(heard(NEW_NEIGHBOUR, REACHABLE, Some(2)));
            assert!(heard(NEW_NEIGHBOUR, FAILED, None), "it is gone");
            assert!(!heard(NEW_NEIGHBOUR, FAILED, None), "it wasn't there");
            assert!(!heard(NEW_NEIGHBOUR, REACHABLE, Some(2)));
            assert!(!heard(DEL_NEIGHBOUR, STALE, Some(2)), "dropped for want of use");
            assert!(!heard(NEW_NEIGHBOUR, REACHABLE, Some(3)));
        }
    }

    #[test]
    fn an_address_of_ipv6_that_is_as_before_changes_nothing() {
        const DEPRECATED: u8 = 0x20;
        let mut known = Known::default();
        let mut heard = |kind, flags, last| {
            let mut address = [0xfd; 16];
            address[15] = last;
            let payload = [&2_u32.to_ne_bytes()[..], &nla(1, &address)].concat();
            let mut datagram = message(kind, libc::AF_INET6, &payload);
            datagram[17] = 64;
            datagram[18] = flags;
            matters(&datagram, &mut known)
        };
        assert!(heard(NEW_ADDRESS, 0, 1));
        assert!(!heard(NEW_ADDRESS, 0, 1), "a router has advertised its prefix again");
        assert!(heard(NEW_ADDRESS, 0, 2));
        assert!(heard(NEW_ADDRESS, DEPRECATED, 1));
        assert!(heard(DEL_ADDRESS, 0, 1) && heard(NEW_ADDRESS, 0, 1));
        assert!(!heard(NEW_ADDRESS, 0, 2));
    }

    #[test]
    fn moves_of_buckets_and_a_bridges_neighbours_are_left_out() {
        let mut known = Known::default();
        let mut heard = |kind, family| matters(&message(kind, family, &[0; 8]), &mut known);
        for kind in [20, 24, 25, 32, 33, 36, 44, 80, 104] {
            assert!(heard(kind, libc::AF_INET) && heard(kind, libc::AF_INET6), "{kind}");
        }
        assert!(heard(LINKS[0], 0) && heard(LINKS[0], libc::AF_BRIDGE));
        assert!(!heard(NEW_NEIGHBOUR, libc::AF_BRIDGE), "a bridge's own table");
        assert!(!heard(BUCKETS[0], 0));
        assert!(matters(&[], &mut Known::default()), "what isn't understood");
    }
}
