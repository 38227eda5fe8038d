//! What changes in the kernel's tables, as it notifies its listeners (netlink's multicast groups): by hand, by another
//! program, by itself. Also in namespaces that have an id here, a node's pods say, so that one socket does for all, and
//! no pod's namespace is kept alive by it.

use std::io::IoSliceMut;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use ipnetwork::IpNetwork;
use netlink_packet_core::NLM_F_REPLACE;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

use crate::model::Family;

use super::socket::messages;
use super::{Error, PROTOCOL, Result, attribute};

/// Bytes. The kernel doubles it and counts about 1 KiB a message: several thousand changes may wait.
const RECEIVE_BUFFER: usize = 2 << 20;
/// No message of these groups comes near this.
const MESSAGE: usize = 64 << 10;

/// Message types (linux/rtnetlink.h).
const LINKS: [u16; 2] = [16, 17];
const ADDRESSES: [u16; 2] = [20, 21];
const ROUTES: [u16; 2] = [24, 25];
const NEIGHBOURS: [u16; 2] = [28, 29];
const RULES: [u16; 2] = [32, 33];
const QUEUES: [u16; 2] = [36, 37];
const FILTERS: [u16; 2] = [44, 45];
const SETTINGS: [u16; 2] = [80, 81];
const NEXTHOPS: [u16; 2] = [104, 105];
const BUCKETS: [u16; 2] = [116, 117];

/// `RTNLGRP_…` (linux/rtnetlink.h): links, neighbours, tc, IPv4 addresses, routes, rules and settings, nexthops.
const GROUPS: [u32; 8] = [1, 3, 4, 5, 7, 8, 24, 32];
/// IPv6 addresses, routes and rules: of each pod that starts there are some, so they are heard only where VIPs are of it.
const GROUPS_IPV6: [u32; 3] = [9, 11, 19];

/// Lets through what [`decode`] uses, so that a routing daemon's hundred thousand routes don't wake the reader: of routes
/// those of protocol 118, default routes, and those that take the place of a route to one address (which may have been of
/// protocol 118); of neighbours the IPv4 ones; no moves of buckets, of which each group makes hundreds a second.
const FILTER: [libc::sock_filter; 19] = [
    code(0x28, 0, 0, 4),                  // ldh [4]     the message's type
    code(0x15, 6, 0, swapped(ROUTES[0])), // jeq         to the routes
    code(0x15, 5, 0, swapped(ROUTES[1])),
    code(0x15, 13, 0, swapped(BUCKETS[0])), // jeq       drop
    code(0x15, 12, 0, swapped(BUCKETS[1])),
    code(0x15, 9, 0, swapped(NEIGHBOURS[0])), // jeq     to the neighbours
    code(0x15, 8, 0, swapped(NEIGHBOURS[1])),
    code(0x05, 0, 0, 10),                     // ja  accept
    code(0x30, 0, 0, 21),                     // ldb [21]    rtm_protocol
    code(0x15, 8, 0, PROTOCOL as u32),        // jeq         accept
    code(0x30, 0, 0, 17),                     // ldb [17]    rtm_dst_len
    code(0x15, 6, 0, 0),                      // jeq         accept
    code(0x15, 0, 4, 32),                     // jeq         else drop
    code(0x28, 0, 0, 6),                      // ldh [6]     the message's flags
    code(0x45, 3, 2, swapped(NLM_F_REPLACE)), // jset        accept, else drop
    code(0x30, 0, 0, 16),                     // ldb [16]    ndm_family
    code(0x15, 1, 0, libc::AF_INET as u32),   // jeq         accept
    code(0x06, 0, 0, 0),                      // ret 0
    code(0x06, 0, 0, u32::MAX),               // ret all of it
];

const fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// As the filter's machine sees what the kernel keeps in its own order: that machine loads big-endian.
const fn swapped(number: u16) -> u32 {
    number.to_be() as u32
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where: the id, here, of another namespace; none for this one.
    pub netns: Option<u32>,
    /// What.
    pub change: Change,
}

/// What changed: enough to know where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device came, went or is another.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// An address came or went.
    Address {
        /// The device's index.
        index: u32,
        /// The address.
        address: IpAddr,
    },
    /// Something else on a device: a neighbour, a filter, a setting.
    OnLink(u32),
    /// A route to this prefix in this table.
    Route {
        /// Its destination.
        prefix: IpNetwork,
        /// Its table.
        table: u32,
    },
    /// The rules.
    Rules,
    /// The nexthop, or group, of this id.
    Nexthop(u32),
    /// More than could be kept: anything may have changed.
    Overrun,
}

/// Listens; see the module.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
    hears_others: bool,
    hears_ipv6: bool,
}

impl Monitor {
    /// Listens in the calling thread's namespace from now on.
    pub fn open() -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("open", "netlink monitor", &e);
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        let refused = |errno| Error::new("open", "netlink monitor", errno);
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(refused)?;
        attach_filter(&socket).map_err(refused)?;
        // Takes CAP_NET_BROADCAST.
        let hears_others = match socket.set_listen_all_namespaces(true) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => false,
            Err(e) => return Err(failed(e)),
        };
        for group in GROUPS {
            socket.add_membership(group).map_err(failed)?;
        }
        Ok(Self { socket, hears_others, hears_ipv6: false })
    }

    /// Listens to what changes of IPv6 too, from now on. Once more changes nothing.
    pub fn hear_ipv6(&mut self) -> Result<()> {
        if self.hears_ipv6 {
            return Ok(());
        }
        for group in GROUPS_IPV6 {
            self.socket.add_membership(group).map_err(|e| Error::io("listen", "netlink monitor", &e))?;
        }
        self.hears_ipv6 = true;
        Ok(())
    }

    /// Whether it receives events of other namespaces too: not without `CAP_NET_BROADCAST`.
    pub fn hears_others(&self) -> bool {
        self.hears_others
    }

    /// Returns what has changed since the last call; doesn't wait.
    pub fn read(&self, mut each: impl FnMut(Event)) -> Result<()> {
        let mut buffer = vec![0; MESSAGE];
        loop {
            match self.receive(&mut buffer) {
                Ok((length, netns)) => {
                    for message in messages(&buffer[..length]) {
                        if let Some(change) = decode(message.kind, message.payload) {
                            each(Event { netns, change });
                        }
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => each(Event { netns: None, change: Change::Overrun }),
                Err(errno) => return Err(Error::new("read", "netlink monitor", errno)),
            }
        }
    }

    /// One datagram's length, and the namespace it came from.
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<(usize, Option<u32>)> {
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(buffer)];
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let netns = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(it)
                if (it.cmsg_header.cmsg_level, it.cmsg_header.cmsg_type)
                    == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) =>
            {
                it.data_bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
            }
            _ => None,
        });
        Ok((received.bytes, netns))
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket's descriptor is open for as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

fn attach_filter(socket: &netlink_sys::Socket) -> nix::Result<()> {
    let mut filter = FILTER;
    let program =
        libc::sock_fprog { len: FILTER.len().try_into().map_err(|_| Errno::EINVAL)?, filter: filter.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>().try_into().map_err(|_| Errno::EINVAL)?;
    // SAFETY: the option's value is a sock_fprog of the length given, its pointer and length those of `filter`. The
    // kernel copies both before it returns.
    let result = unsafe {
        let program = ptr::from_ref(&program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, length)
    };
    Errno::result(result).map(drop)
}

/// What a message is about. By its first bytes and an attribute or two: the storm of another's changes costs little.
pub(super) fn decode(kind: u16, payload: &[u8]) -> Option<Change> {
    let is = |kinds: [u16; 2]| kinds.contains(&kind);
    Some(match kind {
        _ if is(LINKS) => Change::Link { index: number(payload.get(4..)?)?, name: link_name(payload)? },
        _ if is(ADDRESSES) => Change::Address { index: number(payload.get(4..)?)?, address: address(payload)? },
        // struct ndmsg and tcmsg have the index there.
        _ if is(NEIGHBOURS) || is(QUEUES) || is(FILTERS) => Change::OnLink(number(payload.get(4..)?)?),
        _ if is(SETTINGS) => {
            const NETCONFA_IFINDEX: u16 = 1;
            Change::OnLink(number(attribute(payload.get(4..)?, NETCONFA_IFINDEX)?)?)
        }
        _ if is(ROUTES) => route(payload)?,
        _ if is(RULES) => Change::Rules,
        _ if is(NEXTHOPS) => {
            const NHA_ID: u16 = 1;
            Change::Nexthop(number(attribute(payload.get(8..)?, NHA_ID)?)?)
        }
        _ => return None,
    })
}

/// Behind struct ifaddrmsg, whose first byte is the family. IPv6 says its own address as that of a link without a peer.
fn address(payload: &[u8]) -> Option<IpAddr> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let attributes = payload.get(8..)?;
    match super::family_of(payload[0]) {
        Some(Family::V6) => Some(IpAddr::from(*attribute(attributes, IFA_ADDRESS)?.first_chunk::<16>()?)),
        _ => Some(IpAddr::from(*attribute(attributes, IFA_LOCAL)?.first_chunk::<4>()?)),
    }
}

/// Behind struct ifinfomsg.
fn link_name(payload: &[u8]) -> Option<String> {
    const IFLA_IFNAME: u16 = 3;
    let name = attribute(payload.get(16..)?, IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name.split(|byte| *byte == 0).next()?).into_owned())
}

/// struct rtmsg: the family is its first byte, the prefix's length its second, the table its fifth, where it is below 256.
fn route(payload: &[u8]) -> Option<Change> {
    const RTA_DST: u16 = 1;
    const RTA_TABLE: u16 = 15;
    let attributes = payload.get(12..)?;
    let family = super::family_of(payload[0])?;
    let destination = match (attribute(attributes, RTA_DST), family) {
        (None, family) => family.unspecified(),
        (Some(value), Family::V4) => IpAddr::from(*value.first_chunk::<4>()?),
        (Some(value), Family::V6) => IpAddr::from(*value.first_chunk::<16>()?),
    };
    let prefix = IpNetwork::new(destination, payload[1]).ok()?;
    let table = attribute(attributes, RTA_TABLE).and_then(number).unwrap_or_else(|| payload[4].into());
    Some(Change::Route { prefix, table })
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nla;

    /// A message of zeros but for the bytes given, and attributes behind it.
    fn message(length: usize, bytes: &[(usize, u8)], attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut message = vec![0; length];
        for (at, byte) in bytes {
            message[*at] = *byte;
        }
        message.extend(attributes.concat());
        message
    }

    #[test]
    fn messages_say_what_they_are_about() {
        let index = 7u32.to_ne_bytes();
        let at_four: Vec<_> = (4..).zip(index).collect();
        let link = message(16, &at_four, &[nla(3, b"vip0\0")]);
        assert_eq!(decode(17, &link), Some(Change::Link { index: 7, name: "vip0".into() }));
        let address = message(8, &at_four, &[nla(2, &[192, 0, 2, 1])]);
        assert_eq!(decode(21, &address), Some(Change::Address { index: 7, address: [192, 0, 2, 1].into() }));
        for kind in [29, 36, 45] {
            assert_eq!(decode(kind, &message(12, &at_four, &[])), Some(Change::OnLink(7)), "{kind}");
        }
        assert_eq!(decode(80, &message(4, &[], &[nla(1, &index)])), Some(Change::OnLink(7)));
        let table = nla(15, &300u32.to_ne_bytes());
        let route = message(12, &[(0, 2), (1, 32), (4, 252)], &[table.clone(), nla(1, &[10, 118, 0, 7])]);
        let prefix = "10.118.0.7/32".parse().unwrap();
        assert_eq!(decode(25, &route), Some(Change::Route { prefix, table: 300 }));
        let v6: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        let route = message(12, &[(0, 10), (1, 128), (4, 252)], &[table, nla(1, &v6.octets())]);
        let prefix = "2001:db8::7/128".parse().unwrap();
        assert_eq!(decode(25, &route), Some(Change::Route { prefix, table: 300 }));
        let default = message(12, &[(0, 2), (4, 118)], &[]);
        assert_eq!(decode(25, &default), Some(Change::Route { prefix: "0.0.0.0/0".parse().unwrap(), table: 118 }));
        assert_eq!(decode(33, &[]), Some(Change::Rules));
        assert_eq!(decode(105, &message(8, &[], &[nla(1, &index)])), Some(Change::Nexthop(7)));
        assert_eq!(decode(116, &message(8, &[], &[nla(1, &index)])), None);
    }

    /// What the kernel runs, as far as [`FILTER`] makes use of it.
    fn passes(message: &[u8]) -> bool {
        let (mut at, mut value) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = FILTER[at];
            at += 1;
            let byte = |offset: u32| u32::from(message[offset as usize]);
            match code {
                0x28 => value = byte(k) << 8 | byte(k + 1),
                0x30 => value = byte(k),
                0x05 => at += k as usize,
                0x15 => at += usize::from(if value == k { jt } else { jf }),
                0x45 => at += usize::from(if value & k != 0 { jt } else { jf }),
                0x06 => return k > 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_filter_drops_what_is_nobodys_business() {
        let datagram = |kind: u16, flags: u16, payload: &[(usize, u8)]| {
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.resize(16, 0);
            bytes.extend(message(12, payload, &[]));
            bytes
        };
        let (length, protocol, replace) = (1, 5, 0x100);
        for kind in ROUTES {
            assert!(passes(&datagram(kind, 0, &[(length, 32), (protocol, 118)])));
            assert!(!passes(&datagram(kind, 0, &[(length, 32), (protocol, 4)])));
            assert!(!passes(&datagram(kind, replace, &[(length, 24), (protocol, 4)])));
            assert!(passes(&datagram(kind, replace, &[(length, 32), (protocol, 4)])));
            assert!(passes(&datagram(kind, 0, &[(length, 0), (protocol, 4)])));
        }
        for kind in NEIGHBOURS {
            assert!(passes(&datagram(kind, 0, &[(0, 2)])));
            assert!(!passes(&datagram(kind, 0, &[(0, 10)])));
        }
        for kind in [LINKS, ADDRESSES, RULES, QUEUES, FILTERS, SETTINGS, NEXTHOPS].concat() {
            assert!(passes(&datagram(kind, 0, &[])), "{kind}");
        }
        for kind in BUCKETS {
            assert!(!passes(&datagram(kind, 0, &[])));
        }
    }
}
