//! Names and numbers of our kernel objects: derived, never stored where they can be computed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use crate::model::node::NodeId;
use crate::model::{AttachmentId, Mac};

/// The container veth of every pair.
pub const POD_DEVICE: &str = "vip0";
/// What every host veth's name begins with.
pub const HOST_DEVICE_PREFIX: &str = "vip";
/// The address of every host veth: the pod's gateway for replies, and what makes loose reverse-path checks pass.
pub const HOST_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 118, 1));
/// The host veth's end of a pair that carries IPv6: the pod's gateway for replies, the same on every pair. No address of the device: what
/// is sent there needs its Ethernet address alone.
pub const HOST_LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// The pod's end of it: what its nexthop leads to. It serves VIPs of both families, and the pod needs no address of its own.
pub const POD_LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));
/// The table with the way back, in each pod.
pub const TABLE: u32 = 118;
/// The device that leads to other nodes.
pub const TUNNEL_DEVICE: &str = "viptun0";
/// The UDP port of the tunnel between nodes.
pub const TUNNEL_PORT: u16 = 8118;
/// The TOS by which what comes by the tunnel finds this node's own replicas alone (`INWARD_TOS` in tunnel.h): each VIP has a route
/// for it in table `local`. Rules ask that table first, and routing daemons leave it alone.
pub const INWARD_TOS: u8 = 0x1c;
/// The table that earlier builds had for that, and a rule that led there.
pub const FORMER_TUNNEL_TABLE: u32 = 119;
/// The first of the tables by which unbound UDP sockets answer from a VIP; the VIP's place in its attachment's list is
/// added.
pub const REPLY_TABLE: u32 = 1180;
/// So many VIPs a pod may join.
pub const MAX_VIPS: usize = 8;
/// The priority of the rules that lead there: before `main` (32766) and before most people's own.
pub const RULE_PRIORITY: u32 = 118;

/// First id of single nexthops; the host veth's index is added. Above 200,000,000, where FRR's zebra leaves ids alone.
const NEXTHOPS: u32 = 0x7600_0000;
/// First id of nexthops to other nodes; the peer's number is added.
const PEERS: u32 = 0x7800_0000;
/// First id of groups; the VIP's slot is added.
const GROUPS: u32 = 0x7700_0000;
/// Of a VIP's group of this node's replicas alone.
const LOCAL: u32 = 1 << 23;
/// How many ids each range has.
const RANGE: u32 = 1 << 24;

/// The nexthop of a host veth. `None`: an index beyond the range (16,777,215 devices were made since boot).
pub fn nexthop(ifindex: u32) -> Option<u32> {
    (ifindex < RANGE).then_some(NEXTHOPS | ifindex)
}

/// The host veth of a nexthop; `None`: the id isn't a single nexthop's of ours.
pub fn nexthop_link(id: u32) -> Option<u32> {
    (NEXTHOPS..GROUPS).contains(&id).then_some(id - NEXTHOPS)
}

/// The nexthop to another node. `None`: a number beyond the range.
pub fn peer_nexthop(number: u32) -> Option<u32> {
    (number < RANGE).then_some(PEERS | number)
}

/// What the nexthop to another node leads to where VIPs have addresses of IPv6, on the tunnel's device: `fe80::76` and its id. Both families'
/// packets take it.
pub fn peer_link_local(node: NodeId) -> Ipv6Addr {
    let [a, b, c, d] = node.0.octets();
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x76, high, low)
}

/// Whether a nexthop's id is one to another node.
pub fn is_peer(id: u32) -> bool {
    (PEERS..PEERS + RANGE).contains(&id)
}

/// The group of a VIP.
pub fn group(slot: u32) -> u32 {
    GROUPS | (slot % RANGE)
}

/// The group of a VIP's replicas on this node, which what comes by the tunnel is for.
pub fn local_group(slot: u32) -> u32 {
    GROUPS | LOCAL | (slot % LOCAL)
}

/// The group of the VIP that a group belongs to: itself, or that of which it is the local one.
pub fn main_group(group: u32) -> u32 {
    if (GROUPS..PEERS).contains(&group) { group & !LOCAL } else { group }
}

/// The slot of a group.
pub fn slot(group: u32) -> u32 {
    group % RANGE
}

/// The table by which unbound UDP sockets answer from the VIP at that place of an attachment's list.
pub fn reply_table(place: usize) -> u32 {
    REPLY_TABLE + u32::try_from(place % MAX_VIPS).unwrap_or(0)
}

/// Whether a pod's table is one of ours.
pub fn is_table(table: u32) -> bool {
    table == TABLE || (0..MAX_VIPS).any(|place| table == reply_table(place))
}

/// Whether a nexthop id is in one of our three ranges.
pub fn is_ours(id: u32) -> bool {
    (NEXTHOPS..PEERS + RANGE).contains(&id)
}

/// Whether a device's name is a host veth's: `vip` and 11 hex digits.
pub fn is_host_veth(name: &str) -> bool {
    name.strip_prefix(HOST_DEVICE_PREFIX)
        .is_some_and(|rest| rest.len() == 11 && rest.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The names and Ethernet addresses of an attachment's veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethNames {
    /// The host veth: `vip` and 11 hex digits.
    pub host: String,
    /// The host veth's Ethernet address.
    pub host_mac: Mac,
    /// The container veth's Ethernet address.
    pub pod_mac: Mac,
}

impl VethNames {
    /// From sha256(containerID "/" ifname).
    pub fn of(attachment: &AttachmentId) -> Self {
        let hash = Sha256::digest(format!("{}/{}", attachment.container_id, attachment.ifname));
        let first = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        let mac = |first| Mac([first, 0x76, hash[0], hash[1], hash[2], hash[3]]);
        Self { host: format!("{HOST_DEVICE_PREFIX}{:011x}", first >> 20), host_mac: mac(0x02), pod_mac: mac(0x06) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_hash_of_the_attachment() {
        let attachment = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
        let names = VethNames::of(&attachment);
        // printf c1/eth0 | sha256sum
        assert_eq!(names.host, "vipd72e032fedd");
        assert_eq!(names.host_mac.to_string(), "02:76:d7:2e:03:2f");
        assert_eq!(names.pod_mac.to_string(), "06:76:d7:2e:03:2f");
        assert!(names.host.len() <= 15);
    }

    #[test]
    fn ids_stay_in_their_ranges() {
        assert_eq!(nexthop(5), Some(0x7600_0005));
        assert_eq!(nexthop(1 << 24), None);
        assert_eq!((nexthop_link(0x7600_0005), nexthop_link(0x7700_0005)), (Some(5), None));
        assert_eq!((peer_nexthop(3), peer_nexthop(1 << 24)), (Some(0x7800_0003), None));
        let far = peer_link_local(NodeId(Ipv4Addr::new(192, 0, 2, 2)));
        assert_eq!(far.to_string(), "fe80::76:c000:202");
        assert_eq!((group(1), slot(0x7700_0001)), (0x7700_0001, 1));
        assert_eq!((local_group(1), main_group(0x7780_0001)), (0x7780_0001, 0x7700_0001));
        assert_eq!((main_group(0x7700_0001), main_group(0x7880_0001)), (0x7700_0001, 0x7880_0001));
        assert_eq!((reply_table(0), reply_table(7)), (1180, 1187));
        assert!(is_table(118) && is_table(1187) && !is_table(1188) && !is_table(254));
        assert!(
            is_ours(0x7600_0001)
                && is_ours(0x77ff_ffff)
                && is_ours(0x78ff_ffff)
                && !is_ours(0x7900_0000)
                && !is_ours(2000)
        );
    }
}
