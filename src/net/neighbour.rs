//! Neighbour entries (`ip neigh`).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter};
use netlink_packet_route::route::RouteProtocol;

use crate::model::{Family, Mac};

use super::{PROTOCOL, Request, Result, Socket, address_family};

/// An entry of the neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The device it is behind.
    pub index: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address, where known.
    pub mac: Option<Mac>,
    /// Permanent (`nud permanent`).
    pub permanent: bool,
    /// Who made it (`proto`); ours is [`PROTOCOL`].
    pub protocol: u8,
}

/// `ip neigh replace ADDRESS lladdr MAC dev INDEX nud permanent proto 118`.
pub fn replace(index: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = message(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let object = format!("{address} on link {index}");
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Request::new("add neighbour", object, flags, &Message::NewNeighbour(message))
}

/// `ip neigh replace proxy ADDRESS dev INDEX proto 118`: the node answers for the address on that link, by
/// ARP or neighbour discovery.
pub fn replace_proxy(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    message.header.flags = NeighbourFlags::Proxy;
    let object = format!("{address} on link {index}");
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Request::new("add proxy neighbour", object, flags, &Message::NewNeighbour(message))
}

/// `ip neigh del proxy ADDRESS dev INDEX`.
pub fn del_proxy(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    message.header.flags = NeighbourFlags::Proxy;
    let object = format!("{address} on link {index}");
    Request::new("delete proxy neighbour", object, 0, &Message::DelNeighbour(message)).absent_is_ok()
}

/// `ip ntable change name arp_cache|ndisc_cache dev NAME proxy_delay 0`: proxy entries are answered for at once (the kernel's default
/// waits up to 0.8 s, for hosts that move about). By netlink, since `/proc/sys` is read-only in a container.
pub fn no_proxy_delay(family: Family, index: u32) -> Request {
    let mut message = NeighbourTableMessage::default();
    message.header.family = address_family(family);
    let table = match family {
        Family::V4 => "arp_cache",
        Family::V6 => "ndisc_cache",
    };
    message.attributes = vec![
        NeighbourTableAttribute::Name(table.to_owned()),
        NeighbourTableAttribute::Parms(vec![
            NeighbourTableParameter::Ifindex(index),
            NeighbourTableParameter::ProxyDelay(0),
        ]),
    ];
    let object = format!("0 in {table} on link {index}");
    Request::new("set proxy_delay", object, NLM_F_REPLACE, &Message::SetNeighbourTable(message))
}

/// The entry of that address on one device. Asked for alone: a dump goes through the entries of all namespaces of the machine
/// (`neigh_dump_table`).
pub fn get(socket: &Socket, index: u32, address: IpAddr) -> Result<Option<Neighbour>> {
    // `neigh_valid_get_req` takes nothing but device and address.
    let query = bare(index, address);
    let object = format!("{address} on link {index}");
    socket.get(("get neighbour", &object), &Message::GetNeighbour(query), |_, payload| decode(payload))
}

/// A family's entries of one device.
pub fn list(socket: &Socket, family: Family, index: u32) -> Result<Vec<Neighbour>> {
    dump(socket, family, index, NeighbourFlags::empty())
}

/// A family's addresses that the node answers for, on all devices.
pub fn list_all_proxies(socket: &Socket, family: Family) -> Result<Vec<Neighbour>> {
    let mut query = NeighbourMessage::default();
    query.header.family = address_family(family);
    query.header.flags = NeighbourFlags::Proxy;
    let object = format_args!("{family:?}");
    // A kernel without that family lists those of all (`rtnetlink_rcv_msg`).
    socket.dump(("list proxy neighbours", object), &Message::GetNeighbour(query), |_, payload| {
        decode(payload).filter(|found| Family::of(found.address) == family)
    })
}

/// The same on one device.
pub fn list_proxies(socket: &Socket, family: Family, index: u32) -> Result<Vec<Neighbour>> {
    dump(socket, family, index, NeighbourFlags::Proxy)
}

fn dump(socket: &Socket, family: Family, index: u32, flags: NeighbourFlags) -> Result<Vec<Neighbour>> {
    let mut query = NeighbourMessage::default();
    query.header.family = address_family(family);
    query.header.flags = flags;
    query.attributes.push(NeighbourAttribute::IfIndex(index));
    let object = format!("on link {index}");
    let found =
        socket.dump(("list neighbours", &object), &Message::GetNeighbour(query), |_, payload| decode(payload))?;
    Ok(found.into_iter().filter(|n| n.index == index && Family::of(n.address) == family).collect())
}

pub(super) fn decode(payload: &[u8]) -> Option<Neighbour> {
    read(&NeighbourMessage::parse(payload).ok()?)
}

fn bare(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = bare(index, address);
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    message
}

fn read(message: &NeighbourMessage) -> Option<Neighbour> {
    let mut address = None;
    let mut neighbour = Neighbour {
        index: message.header.ifindex,
        address: Family::V4.unspecified(),
        mac: None,
        permanent: message.header.state == NeighbourState::Permanent,
        protocol: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::V4(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::V6(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbour.mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Protocol(protocol) => neighbour.protocol = u8::from(*protocol),
            _ => {}
        }
    }
    neighbour.address = address?;
    Some(neighbour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_both_families_are_read_as_they_are_written() {
        for address in ["10.118.0.7", "2001:db8::7"] {
            let address = address.parse().unwrap();
            let expected = Neighbour { index: 3, address, mac: None, permanent: false, protocol: PROTOCOL };
            assert_eq!(read(&message(3, address)), Some(expected));
        }
    }
}
