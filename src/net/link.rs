//! Network devices (`ip link`).

use std::fmt::Display;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use crate::model::Mac;

use super::{Module, Netns, Request, Result, Socket};

/// A device as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is something else that the kernel shows
pub struct Link {
    /// Its index, unique in its namespace and not used again there.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of its packets' header (`ARPHRD_…`): [`ETHERNET`], or another.
    pub header: u16,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP`: it has a carrier.
    pub carrier: bool,
    /// The index of the bridge, bond or the like whose port it is: that takes what comes in by it. A VRF does not.
    pub master: Option<u32>,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// The kernel has IPv6 for it.
    pub ipv6: bool,
    /// A VXLAN device's port, where each packet says itself where it goes (`external`).
    pub external_vxlan: Option<u16>,
    /// The namespace its other end is in, as an id of this one's (`link-netnsid`); none where that is this one.
    pub peer_netns: Option<u32>,
    /// Packets sent and received over the device.
    pub packets: Traffic,
    /// The same in bytes.
    pub bytes: Traffic,
    /// The per-device IPv4 settings that matter here (`net.ipv4.conf.<dev>.…`).
    pub settings: Settings,
}

/// `ARPHRD_ETHER` (`linux/if_arp.h`).
pub const ETHERNET: u16 = 1;

/// A counter of a device, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received by the device.
    pub received: u64,
    /// Sent through the device.
    pub sent: u64,
}

/// `net.ipv4.conf.<dev>.…`, as a dump of links carries them (`IFLA_INET_CONF`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `forwarding`
    pub forwarding: i32,
    /// `rp_filter`
    pub rp_filter: i32,
    /// `arp_ignore`
    pub arp_ignore: i32,
    /// `arp_announce`
    pub arp_announce: i32,
    /// `accept_local`
    pub accept_local: i32,
}

/// A setting of [`Settings`] to be written; the numbers are `IPV4_DEVCONF_…` of linux/ip.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Setting {
    /// `forwarding`
    Forwarding = 1,
    /// `rp_filter`
    RpFilter = 8,
    /// `arp_announce`
    ArpAnnounce = 18,
    /// `arp_ignore`
    ArpIgnore = 19,
    /// `accept_local`
    AcceptLocal = 23,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Device name.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: Mac,
}

/// `ip link add HOST address … mtu … type veth peer name POD address … mtu … netns …`: the peer is born in `netns`.
pub fn add_veth(host: End<'_>, pod: End<'_>, mtu: u32, netns: &Netns) -> Request {
    let peer = LinkUnspec::new_with_name(pod.name).address(pod.mac.0.to_vec()).mtu(mtu).setns_by_fd(netns.fd()).build();
    let message = LinkVeth::new(host.name, pod.name)
        .address(host.mac.0.to_vec())
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    let object = format!("{} type veth peer {} netns {}", host.name, pod.name, netns.path().display());
    Request::new("add link", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewLink(message)).of_module(Module::Veth)
}

/// `ip link add NAME address MAC mtu MTU type vxlan external dstport PORT`, without ARP. Of each packet a program says where it
/// goes; without one it is dropped.
pub fn add_vxlan(end: End<'_>, mtu: u32, port: u16) -> Request {
    let message = LinkMessageBuilder::<LinkVxlan>::new(end.name)
        .address(end.mac.0.to_vec())
        .mtu(mtu)
        .arp(false)
        .append_info_data(InfoVxlan::CollectMetadata(true))
        .append_info_data(InfoVxlan::Learning(false))
        .append_info_data(InfoVxlan::Port(port))
        .build();
    let object = format!("{} type vxlan external dstport {port}", end.name);
    Request::new("add link", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewLink(message)).of_module(Module::Vxlan)
}

/// `ip link set dev INDEX mtu MTU`.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
    Request::new("set mtu", format!("{mtu} of link {index}"), 0, &Message::SetLink(message))
}

/// `ip link set dev INDEX up`.
pub fn set_up(index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).up().build();
    Request::new("set up", format!("link {index}"), 0, &Message::SetLink(message))
}

/// `ip link set dev INDEX addrgenmode none`. A kernel without IPv6 has nothing to switch off.
pub fn no_ipv6_addresses(index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).append_extra_attribute(families(vec![no_inet6()])).build();
    Request::new("set addrgenmode none", format!("link {index}"), 0, &Message::SetLink(message))
        .accept(&[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP])
}

/// Writes per-device IPv4 settings by netlink (`inet_set_link_af`): no `/proc` of the right namespace is needed.
pub fn configure(index: u32, settings: &[(Setting, i32)]) -> Request {
    let message = LinkUnspec::new_with_index(index).append_extra_attribute(families(vec![inet(settings)])).build();
    let object = format!("link {index} {settings:?}");
    Request::new("configure", object, 0, &Message::SetLink(message))
}

/// Readies a new device that is down: [`configure`], and [`no_ipv6_addresses`] where it has IPv6, in one request. For each the kernel
/// sends one notification, in which it looks for the id of the other end's namespace among those of a node's thousand pods.
pub fn prepare(device: &Link, settings: &[(Setting, i32)]) -> Request {
    Request::new("configure", format!("link {} {settings:?}", device.index), 0, &preparation(device, settings, false))
}

/// As [`prepare`], and up with the same request. In it the kernel brings a device up before all else, so that it must not get a
/// carrier by that: the other end is down.
pub fn prepare_up(device: &Link, settings: &[(Setting, i32)]) -> Request {
    Request::new("set up", format!("link {} {settings:?}", device.index), 0, &preparation(device, settings, true))
}

fn preparation(device: &Link, settings: &[(Setting, i32)], up: bool) -> Message {
    let mut message = LinkUnspec::new_with_index(device.index);
    let inet = (!settings.is_empty()).then(|| inet(settings));
    let all: Vec<_> = inet.into_iter().chain(device.ipv6.then(no_inet6)).collect();
    if !all.is_empty() {
        message = message.append_extra_attribute(families(all));
    }
    Message::SetLink(if up { message.up() } else { message }.build())
}

/// `IFLA_AF_SPEC`. A family that the device doesn't have makes the kernel refuse all of the request.
fn families(all: Vec<AfSpecUnspec>) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(all)
}

fn no_inet6() -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])
}

fn inet(settings: &[(Setting, i32)]) -> AfSpecUnspec {
    const IFLA_INET_CONF: u16 = 1;
    let mut nested = Vec::new();
    for (setting, value) in settings {
        let nla = DefaultNla::new(*setting as u16, value.to_ne_bytes().to_vec());
        let start = nested.len();
        nested.resize(start + nla.buffer_len(), 0);
        nla.emit(&mut nested[start..]);
    }
    AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, nested))])
}

/// `ip link del NAME`. Takes its pair's other end with it, wherever that is.
pub fn del(name: &str) -> Request {
    let message = LinkUnspec::new_with_name(name).build();
    Request::new("delete link", name.to_owned(), 0, &Message::DelLink(message)).absent_is_ok()
}

/// `ip link del` by index: a name may be another device's by now, an index is never used again.
pub fn del_index(index: u32) -> Request {
    let message = LinkUnspec::new_with_index(index).build();
    Request::new("delete link", format!("link {index}"), 0, &Message::DelLink(message)).absent_is_ok()
}

/// The device of that name, if there is one.
pub fn by_name(socket: &Socket, name: &str) -> Result<Option<Link>> {
    get(socket, name, LinkUnspec::new_with_name(name).build())
}

/// The device of that index, if there is one.
pub fn by_index(socket: &Socket, index: u32) -> Result<Option<Link>> {
    get(socket, format_args!("link {index}"), LinkUnspec::new_with_index(index).build())
}

fn get(socket: &Socket, object: impl Display, mut message: LinkMessage) -> Result<Option<Link>> {
    // As with `list`: the kernel sums up IPv6's own statistics over all processors, and no caller reads them.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    socket.get(("get link", object), &Message::GetLink(message), |_, payload| decode(payload))
}

/// The settings of the device of that name in another namespace, by the id that namespace has here; without entering it.
pub fn settings_in(socket: &Socket, netns: u32, name: &str) -> Result<Option<Settings>> {
    let mut message = LinkUnspec::new_with_name(name).build();
    message.attributes.push(LinkAttribute::IfNetnsId(netns.cast_signed()));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    socket.get(("get link", name), &Message::GetLink(message), |_, payload| Some(decode(payload)?.settings))
}

/// All devices of the namespace.
pub fn list(socket: &Socket) -> Result<Vec<Link>> {
    let mut query = LinkMessage::default();
    // Without it each device also carries its statistics of every address family.
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    socket.dump(("list", "links"), &Message::GetLink(query), |_, payload| decode(payload))
}

/// What matters of a `struct ifinfomsg` and the attributes behind it. By hand: a device has some sixty, the agent reads
/// those of thousands again and again, and a `LinkMessage` makes an object of each.
pub(super) fn decode(payload: &[u8]) -> Option<Link> {
    const HEADER: usize = 16;
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const MASTER: u16 = 10;
    const LINKINFO: u16 = 18;
    const STATS64: u16 = 23;
    const AF_SPEC: u16 = 26;
    const INET6: u16 = 10;
    const LINK_NETNSID: u16 = 37;
    let flags = LinkFlags::from_bits_retain(number(payload, 8)?);
    let mut link = Link {
        index: number(payload, 4)?,
        name: String::new(),
        header: u16::from_ne_bytes(*payload.get(2..4)?.first_chunk()?),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    let mut is_routed = false;
    for (kind, value) in attributes(payload.get(HEADER..)?) {
        match kind {
            NAME => String::from_utf8_lossy(value).trim_end_matches('\0').clone_into(&mut link.name),
            ADDRESS => link.mac = value.try_into().ok().map(Mac),
            MTU => link.mtu = number(value, 0)?,
            MASTER => link.master = number(value, 0),
            LINKINFO => (is_routed, link.external_vxlan) = (is_port_of_vrf(value), external_vxlan(value)),
            LINK_NETNSID => link.peer_netns = number(value, 0).filter(|id| id.cast_signed() >= 0),
            STATS64 => (link.packets, link.bytes) = (traffic(value, 0)?, traffic(value, 16)?),
            AF_SPEC => {
                link.settings = decode_settings(value).unwrap_or_default();
                link.ipv6 = attributes(value).any(|(kind, _)| kind == INET6);
            }
            _ => {}
        }
    }
    link.master = link.master.filter(|_| !is_routed);
    Some(link)
}

/// Of `IFLA_LINKINFO`: `IFLA_INFO_SLAVE_KIND`.
fn is_port_of_vrf(value: &[u8]) -> bool {
    const SLAVE_KIND: u16 = 4;
    attributes(value).any(|(kind, value)| kind == SLAVE_KIND && value.starts_with(b"vrf"))
}

/// Of `IFLA_LINKINFO`: `IFLA_INFO_DATA` of a VXLAN device, in it `IFLA_VXLAN_PORT` and `IFLA_VXLAN_COLLECT_METADATA`.
fn external_vxlan(value: &[u8]) -> Option<u16> {
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    const PORT: u16 = 15;
    const COLLECT_METADATA: u16 = 25;
    let of = |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    of(KIND).filter(|kind| kind.starts_with(b"vxlan"))?;
    let data = of(DATA)?;
    let field = |wanted| attributes(data).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    field(COLLECT_METADATA).filter(|value| value.first() == Some(&1))?;
    Some(u16::from_be_bytes(*field(PORT)?.first_chunk()?))
}

/// Of `IFLA_AF_SPEC`: in it `AF_INET`, in that `IFLA_INET_CONF`, an array by the numbers of [`Setting`], from 1.
fn decode_settings(value: &[u8]) -> Option<Settings> {
    const INET: u16 = 2;
    const CONF: u16 = 1;
    let (_, inet) = attributes(value).find(|(kind, _)| *kind == INET)?;
    let (_, conf) = attributes(inet).find(|(kind, _)| *kind == CONF)?;
    let setting = |setting: Setting| Some(number(conf, 4 * (setting as usize - 1))?.cast_signed());
    Some(Settings {
        forwarding: setting(Setting::Forwarding)?,
        rp_filter: setting(Setting::RpFilter)?,
        arp_ignore: setting(Setting::ArpIgnore)?,
        arp_announce: setting(Setting::ArpAnnounce)?,
        accept_local: setting(Setting::AcceptLocal)?,
    })
}

/// Kinds, without flags, and values. What is cut off ends them.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    NlasIterator::new(bytes).map_while(std::result::Result::ok).filter_map(|nla| {
        let (kind, length) = (nla.kind(), usize::from(nla.length()));
        Some((kind, nla.into_inner().get(HEADER..length)?))
    })
}

/// Of `struct rtnl_link_stats64`: received, then sent.
fn traffic(stats: &[u8], at: usize) -> Option<Traffic> {
    let counter = |at: usize| Some(u64::from_ne_bytes(*stats.get(at..)?.first_chunk()?));
    Some(Traffic { received: counter(at)?, sent: counter(at + 8)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
