//! Routes of the table `local`, which the kernel makes itself for each address of a device (`fib_add_ifaddr()` in
//! `net/ipv4/fib_frontend.c`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use nix::errno::Errno;

use crate::model::Family;
use crate::net::{Request, Result, Socket};

use super::{Filter, Kind, LOCAL, host, is_host, list, ours};

/// Makes a route one that the namespace takes, by way of that device.
pub(super) fn fill(message: &mut RouteMessage, index: u32) {
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.attributes.push(RouteAttribute::Oif(index));
}

/// The addresses of a device to which the table `local` leads, so that what the namespace itself sends there never leaves it.
pub fn locals(socket: &Socket, family: Family, index: u32) -> Result<BTreeSet<IpAddr>> {
    let routes = list(socket, Filter { family, table: Some(LOCAL), ..Filter::default() })?;
    let of_device = routes.iter().filter(|route| route.kind == Kind::Local(Some(index)) && is_host(route.prefix));
    Ok(of_device.map(|route| route.prefix.ip()).collect())
}

/// `ip route add local ADDRESS dev INDEX table local proto kernel scope host src ADDRESS`, as the kernel makes it.
pub fn add_local(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    message.header.protocol = RouteProtocol::Kernel;
    message.attributes.push(RouteAttribute::PrefSource(address.into()));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add route", object(address), flags, &Message::NewRoute(message)).accept(&[Errno::EEXIST])
}

/// `ip route del local ADDRESS dev INDEX table local`, whoever made it.
pub fn del_local(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    message.header.protocol = RouteProtocol::Unspec;
    message.header.scope = RouteScope::NoWhere; // whatever scope it has
    Request::new("delete route", object(address), 0, &Message::DelRoute(message)).absent_is_ok()
}

fn object(address: IpAddr) -> String {
    format!("local {address} table local")
}

fn message(index: u32, address: IpAddr) -> RouteMessage {
    let mut message = ours(host(address), LOCAL);
    fill(&mut message, index);
    message
}
