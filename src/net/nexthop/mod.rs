//! Nexthop objects and resilient groups (`ip nexthop`).
//!
//! No crate models these messages. [`message`] and [`bucket`] do so in the shape of the netlink-packet crates; here are
//! the few requests and reads this project needs.

pub mod bucket;
pub mod message;

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::route::{RouteNextHopFlags, RouteProtocol};

use crate::net::nexthop::bucket::{BucketAttribute, NexthopBucketAttribute, NexthopBucketMessage};
pub use crate::net::nexthop::message::GroupMember;
use crate::net::nexthop::message::{
    GroupType, NexthopAttribute, NexthopMessage, NexthopNetlinkMessage as Message, RTM_NEWNEXTHOP, ResilientAttribute,
};

use crate::model::Family;

use super::{PROTOCOL, Request, Result, Socket, address_family};

/// A single nexthop: `via GATEWAY dev INDEX onlink`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nexthop {
    /// Its id, unique in the namespace and shared with routing daemons.
    pub id: u32,
    /// `via`.
    pub gateway: IpAddr,
    /// `dev`, as an index.
    pub index: u32,
}

/// A resilient group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its id, unique in the namespace and shared with routing daemons.
    pub id: u32,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// How it spreads.
    pub resilience: Resilience,
}

/// `buckets`, `idle_timer`, `unbalanced_timer` of a resilient group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resilience {
    /// How many buckets flows are hashed to; can't be changed while the group lives.
    pub buckets: u16,
    /// Seconds without a packet after which a bucket may move to an underweight member.
    pub idle_timer: u32,
    /// Seconds of imbalance after which buckets move though in use; 0: never.
    pub unbalanced_timer: u32,
}

/// Any nexthop object as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A single nexthop.
    Single(Nexthop),
    /// A resilient group.
    Group(Group),
    /// Of a kind this project never makes; only its id is known.
    Other(u32),
}

impl Object {
    /// The object's id.
    pub fn id(&self) -> u32 {
        match self {
            Self::Single(nexthop) => nexthop.id,
            Self::Group(group) => group.id,
            Self::Other(id) => *id,
        }
    }
}

/// The kernel counts these timers in `USER_HZ`, a constant of 100 a second.
const CLOCK_TICKS: u32 = 100;

/// `ip nexthop add id ID via GATEWAY dev INDEX onlink proto 118`. Fails where the id is taken: ids of others are
/// never overwritten.
pub fn add(nexthop: Nexthop) -> Request {
    let object = format!("id {} via {} link {}", nexthop.id, nexthop.gateway, nexthop.index);
    let message = Message::New(nexthop_message(nexthop));
    Request::new("add nexthop", object, NLM_F_CREATE | NLM_F_EXCL, &message)
}

/// `ip nexthop replace id ID via GATEWAY dev INDEX onlink proto 118`: for one that is there, of ours, with another gateway. Groups
/// keep it, and their buckets stay.
pub fn replace(nexthop: Nexthop) -> Request {
    let object = format!("id {} via {} link {}", nexthop.id, nexthop.gateway, nexthop.index);
    let message = Message::New(nexthop_message(nexthop));
    Request::new("replace nexthop", object, NLM_F_CREATE | NLM_F_REPLACE, &message)
}

/// `ip nexthop add id ID group …/… type resilient buckets … idle_timer … unbalanced_timer … proto 118`.
pub fn add_group(group: &Group) -> Request {
    let message = group_message(group, Some(group.resilience.buckets));
    let object = format!("group id {} of {}", group.id, group.members.len());
    Request::new("add nexthop", object, NLM_F_CREATE | NLM_F_EXCL, &Message::New(message))
}

/// `ip nexthop replace id ID group …/… type resilient idle_timer … unbalanced_timer … proto 118`, in one step and
/// without touching buckets that needn't move. The number of buckets stays (the kernel can't change it).
pub fn replace_group(group: &Group) -> Request {
    let message = group_message(group, None);
    let object = format!("group id {} of {}", group.id, group.members.len());
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    Request::new("replace nexthop", object, flags, &Message::New(message))
}

/// `ip nexthop del id ID`. The kernel removes a route over it too, without an event: delete that first.
pub fn del(id: u32) -> Request {
    let message = NexthopMessage { attributes: vec![NexthopAttribute::Id(id)], ..NexthopMessage::default() };
    Request::new("delete nexthop", format!("id {id}"), 0, &Message::Del(message)).absent_is_ok()
}

fn ours() -> NexthopMessage {
    let mut message = NexthopMessage::default();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message
}

fn nexthop_message(nexthop: Nexthop) -> NexthopMessage {
    let mut message = ours();
    message.header.family = address_family(Family::of(nexthop.gateway));
    message.header.flags = u32::from(RouteNextHopFlags::Onlink.bits());
    message.attributes = vec![
        NexthopAttribute::Id(nexthop.id),
        NexthopAttribute::Gateway(nexthop.gateway),
        NexthopAttribute::Oif(nexthop.index),
    ];
    message
}

fn group_message(group: &Group, buckets: Option<u16>) -> NexthopMessage {
    let Resilience { idle_timer, unbalanced_timer, .. } = group.resilience;
    let mut resilient: Vec<_> = buckets.into_iter().map(ResilientAttribute::Buckets).collect();
    resilient.extend([
        ResilientAttribute::IdleTimer(idle_timer.saturating_mul(CLOCK_TICKS)),
        ResilientAttribute::UnbalancedTimer(unbalanced_timer.saturating_mul(CLOCK_TICKS)),
    ]);
    let mut message = ours();
    message.attributes = vec![
        NexthopAttribute::Id(group.id),
        NexthopAttribute::Group(group.members.clone()),
        NexthopAttribute::Resilient(resilient),
        NexthopAttribute::GroupType(GroupType::Resilient),
    ];
    message
}

/// The object of that id, if it exists and is of protocol 118.
pub fn get(socket: &Socket, id: u32) -> Result<Option<Object>> {
    Ok(match find(socket, id)? {
        Some(Found::Ours(object)) => Some(object),
        Some(Found::Foreign) | None => None,
    })
}

/// The object that has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One of protocol 118.
    Ours(Object),
    /// One of another protocol.
    Foreign,
}

/// The object of that id, whosever it is.
pub fn find(socket: &Socket, id: u32) -> Result<Option<Found>> {
    let query = NexthopMessage { attributes: vec![NexthopAttribute::Id(id)], ..NexthopMessage::default() };
    socket.get(("get nexthop", format_args!("id {id}")), &Message::Get(query), |kind, payload| {
        decode(kind, payload).map(Found::Ours).or_else(|| {
            let protocol = NexthopMessage::parse(payload).ok()?.header.protocol;
            (protocol != RouteProtocol::Other(PROTOCOL)).then_some(Found::Foreign)
        })
    })
}

/// All nexthop objects of protocol 118.
pub fn list(socket: &Socket) -> Result<Vec<Object>> {
    // The kernel filters nexthops by device, kind and group, not by protocol.
    socket.dump(("list", "nexthops"), &Message::Get(NexthopMessage::default()), decode)
}

/// The devices that each nexthop object leads to, whosever it is: its own, or its members'.
pub fn devices(socket: &Socket) -> Result<BTreeMap<u32, Vec<u32>>> {
    let (mut singles, mut groups) = (BTreeMap::new(), BTreeMap::new());
    socket.dump(("list", "nexthops"), &Message::Get(NexthopMessage::default()), |_, payload| {
        match decode_devices(payload)? {
            (id, Leads::Device(index)) => drop(singles.insert(id, index)),
            (id, Leads::Members(members)) => drop(groups.insert(id, members)),
        }
        None::<()>
    })?;
    let of_group = |members: Vec<u32>| members.iter().filter_map(|member| singles.get(member).copied()).collect();
    let mut devices: BTreeMap<u32, Vec<u32>> =
        groups.into_iter().map(|(id, members)| (id, of_group(members))).collect();
    devices.extend(singles.into_iter().map(|(id, index)| (id, vec![index])));
    Ok(devices)
}

enum Leads {
    Device(u32),
    Members(Vec<u32>),
}

/// Behind struct nhmsg: the id, and the device or the members, each a `struct nexthop_grp` of eight bytes.
fn decode_devices(payload: &[u8]) -> Option<(u32, Leads)> {
    const HEADER: usize = 8;
    const ID: u16 = 1;
    const GROUP: u16 = 2;
    const OIF: u16 = 5;
    let attributes = payload.get(HEADER..)?;
    let number = |bytes: &[u8]| Some(u32::from_ne_bytes(*bytes.first_chunk()?));
    let id = number(super::attribute(attributes, ID)?)?;
    let leads = match super::attribute(attributes, GROUP) {
        Some(members) => Leads::Members(members.chunks_exact(8).filter_map(number).collect()),
        None => Leads::Device(number(super::attribute(attributes, OIF)?)?),
    };
    Some((id, leads))
}

/// The member behind each bucket of a resilient group, by bucket index.
pub fn buckets(socket: &Socket, group: u32) -> Result<Vec<u32>> {
    let query =
        NexthopBucketMessage { attributes: vec![NexthopBucketAttribute::Id(group)], ..NexthopBucketMessage::default() };
    let object = format!("of group {group}");
    socket.dump(("list buckets", &object), &query, |_, payload| decode_bucket(payload))
}

pub(super) fn decode_bucket(payload: &[u8]) -> Option<u32> {
    let message = NexthopBucketMessage::parse(payload).ok()?;
    message.attributes.iter().find_map(|a| match a {
        NexthopBucketAttribute::Bucket(attributes) => attributes.iter().find_map(|a| match a {
            BucketAttribute::NexthopId(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

pub(super) fn decode(kind: u16, payload: &[u8]) -> Option<Object> {
    if kind != RTM_NEWNEXTHOP {
        return None;
    }
    let message = NexthopMessage::parse(payload).ok()?;
    if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let (mut id, mut gateway, mut index) = (None, None, None);
    let (mut members, mut resilience) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NexthopAttribute::Id(value) => id = Some(value),
            NexthopAttribute::Gateway(value) => gateway = Some(value),
            NexthopAttribute::Oif(value) => index = Some(value),
            NexthopAttribute::Group(value) => members = Some(value),
            NexthopAttribute::Resilient(attributes) => resilience = Some(read_resilience(&attributes)),
            _ => {}
        }
    }
    let id = id?;
    Some(match (gateway, index, members, resilience) {
        (Some(gateway), Some(index), None, _) => Object::Single(Nexthop { id, gateway, index }),
        (_, _, Some(members), Some(resilience)) => Object::Group(Group { id, members, resilience }),
        _ => Object::Other(id),
    })
}

fn read_resilience(attributes: &[ResilientAttribute]) -> Resilience {
    let mut resilience = Resilience { buckets: 0, idle_timer: 0, unbalanced_timer: 0 };
    for attribute in attributes {
        match attribute {
            ResilientAttribute::Buckets(value) => resilience.buckets = *value,
            ResilientAttribute::IdleTimer(value) => resilience.idle_timer = value / CLOCK_TICKS,
            ResilientAttribute::UnbalancedTimer(value) => resilience.unbalanced_timer = value / CLOCK_TICKS,
            ResilientAttribute::Other(_) => {}
        }
    }
    resilience
}

#[cfg(test)]
mod tests;
