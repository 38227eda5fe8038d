//! The link-local address of a link: while duplicate address detection (RFC 4862 section 5.4) is about it, nothing that is sent to it arrives.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::Family;

use super::{Error, Result, Socket, address_family, packet};

/// `RTMGRP_IPV6_IFADDR` (linux/rtnetlink.h).
const ADDRESSES: u32 = 0x100;
/// No message of the group comes near this.
const MESSAGE: usize = 4096;

/// What there is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLocal {
    /// None, or one that another node of the link has.
    Nothing,
    /// It is being looked for one of the link that has it.
    Tentative,
    /// It may be used.
    Usable(Ipv6Addr),
}

impl LinkLocal {
    fn of(address: Ipv6Addr, flags: AddressFlags) -> Self {
        if flags.contains(AddressFlags::Dadfailed) {
            Self::Nothing
        } else if flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic) {
            Self::Tentative
        } else {
            Self::Usable(address)
        }
    }
}

/// Hears of changes.
#[derive(Debug)]
pub struct Watch {
    events: AsyncFd<OwnedFd>,
}

impl Watch {
    /// In a tokio runtime, of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let failed = |op| move |errno| Error::new(op, "netlink monitor of addresses", errno);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute);
        let socket = socket.map_err(failed("open"))?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES)).map_err(failed("bind"))?;
        let events = packet::register(socket).map_err(|(op, errno)| failed(op)(errno))?;
        Ok(Self { events })
    }

    /// As it is on that device now.
    pub fn read(index: u32) -> Result<LinkLocal> {
        let mut query = AddressMessage::default();
        query.header.family = address_family(Family::V6);
        query.header.index = index;
        let asked = ("list addresses", format_args!("link {index}"));
        let found = Socket::open()?.dump(asked, &Message::GetAddress(query), |_, payload| decode(payload, index))?;
        let rank = |one: &&LinkLocal| match one {
            LinkLocal::Usable(_) => 2,
            LinkLocal::Tentative => 1,
            LinkLocal::Nothing => 0,
        };
        Ok(found.iter().max_by_key(rank).copied().unwrap_or(LinkLocal::Nothing))
    }

    /// Waits until some address of the machine has changed.
    pub async fn changed(&self) {
        let drain = |socket: &OwnedFd| {
            let mut buffer = [0; MESSAGE];
            let mut heard = false;
            loop {
                match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    // What was lost said no more.
                    Ok(_) | Err(Errno::ENOBUFS) => heard = true,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) if heard => return Ok(()),
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        let heard: std::io::Result<()> = self.events.async_io(Interest::READABLE, drain).await;
        if let Err(error) = heard {
            tracing::debug!(%error, "addresses aren't heard of");
            std::future::pending::<()>().await;
        }
    }
}

/// `None`: no link-local address, or another device's.
fn decode(payload: &[u8], index: u32) -> Option<LinkLocal> {
    let message = AddressMessage::parse(payload).ok()?;
    let attribute = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let address = attribute(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let Some(IpAddr::V6(address)) = address else { return None };
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let is_here = message.header.index == index && address.is_unicast_link_local();
    is_here.then(|| LinkLocal::of(address, flags.unwrap_or(AddressFlags::empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_doubt_is_told_from_one_that_another_has() {
        let address: Ipv6Addr = "fe80::1".parse().unwrap();
        let of = |flags| LinkLocal::of(address, flags);
        let tentative = AddressFlags::Tentative;
        assert_eq!(of(AddressFlags::Permanent), LinkLocal::Usable(address));
        assert_eq!(of(AddressFlags::Permanent | tentative), LinkLocal::Tentative);
        assert_eq!(of(tentative | AddressFlags::Optimistic), LinkLocal::Usable(address), "RFC 4429");
        assert_eq!(of(tentative | AddressFlags::Dadfailed), LinkLocal::Nothing);
    }
}
