//! IPv4 addresses of a device (`ip address`).

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::AddressMessageBuilder;

type Builder = AddressMessageBuilder<Ipv4Addr>;

use super::{Request, Result, Socket};

/// An address and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's index.
    pub index: u32,
    /// The address itself.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Known beyond this link and host (`scope global`).
    pub global: bool,
}

/// `ip address add ADDRESS/32 dev INDEX`.
pub fn add(index: u32, address: Ipv4Addr) -> Request {
    let message = Builder::new().index(index).address(address, 32).build();
    let object = format!("{address}/32 on link {index}");
    Request::new("add address", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewAddress(message))
}

/// `ip address del ADDRESS/32 dev INDEX`.
pub fn del(index: u32, address: Ipv4Addr) -> Request {
    let message = Builder::new().index(index).address(address, 32).build();
    let object = format!("{address}/32 on link {index}");
    Request::new("delete address", object, 0, &Message::DelAddress(message))
}

/// The IPv4 addresses of one device (`index`), or of all (`None`).
pub fn list(socket: &Socket, index: Option<u32>) -> Result<Vec<Address>> {
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    query.header.index = index.unwrap_or(0);
    socket.dump(("list addresses", "IPv4"), &Message::GetAddress(query), |_, payload| decode(payload))
}

pub(super) fn decode(payload: &[u8]) -> Option<Address> {
    read(&AddressMessage::parse(payload).ok()?)
}

fn read(message: &AddressMessage) -> Option<Address> {
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Some(Address {
        index: message.header.index,
        address,
        prefix: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
    })
}
