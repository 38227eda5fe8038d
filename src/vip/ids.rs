//! Names and numbers of our kernel objects: derived, never stored where they can be computed.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use crate::cni::env::Attachment;
use crate::net::link::Mac;

/// The pod end of every pair.
pub const POD_DEVICE: &str = "vip0";
/// What every host end's name begins with.
pub const HOST_DEVICE_PREFIX: &str = "vip";
/// The address of every host end: the pod's gateway for replies, and what makes loose reverse-path checks pass.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 118, 1);
/// The table with the way back, in each pod.
pub const TABLE: u32 = 118;
/// The first of the tables by which unbound UDP sockets answer from a VIP; the VIP's place in its attachment's list is
/// added.
pub const REPLY_TABLE: u32 = 1180;
/// So many VIPs a pod may join.
pub const MAX_VIPS: usize = 8;
/// The priority of the rules that lead there: before `main` (32766) and before most people's own.
pub const RULE_PRIORITY: u32 = 118;

/// First id of single nexthops; the host end's index is added. Above 200,000,000, where FRR's zebra leaves ids alone.
const NEXTHOPS: u32 = 0x7600_0000;
/// First id of groups; the VIP's slot is added.
const GROUPS: u32 = 0x7700_0000;
/// How many ids each range has.
const RANGE: u32 = 1 << 24;

/// The nexthop of a host end. `None`: an index beyond the range (16,777,215 devices were made since boot).
pub fn nexthop(ifindex: u32) -> Option<u32> {
    (ifindex < RANGE).then_some(NEXTHOPS | ifindex)
}

/// The host end of a nexthop; `None`: the id isn't a single nexthop's of ours.
pub fn nexthop_link(id: u32) -> Option<u32> {
    (NEXTHOPS..GROUPS).contains(&id).then_some(id - NEXTHOPS)
}

/// The group of a VIP.
pub fn group(slot: u32) -> u32 {
    GROUPS | (slot % RANGE)
}

/// The table by which unbound UDP sockets answer from the VIP at that place of an attachment's list.
pub fn reply_table(place: usize) -> u32 {
    REPLY_TABLE + u32::try_from(place % MAX_VIPS).unwrap_or(0)
}

/// Whether a pod's table is one of ours.
pub fn is_table(table: u32) -> bool {
    table == TABLE || (0..MAX_VIPS).any(|place| table == reply_table(place))
}

/// Whether a nexthop id is in one of our two ranges.
pub fn is_ours(id: u32) -> bool {
    (NEXTHOPS..GROUPS + RANGE).contains(&id)
}

/// Whether a device's name is a host end's: `vip` and 11 hex digits.
pub fn is_host_end(name: &str) -> bool {
    name.strip_prefix(HOST_DEVICE_PREFIX)
        .is_some_and(|rest| rest.len() == 11 && rest.chars().all(|c| c.is_ascii_hexdigit()))
}

/// What an attachment's pair is called and addressed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairNames {
    /// The host end: `vip` and 11 hex digits.
    pub host: String,
    /// The host end's Ethernet address.
    pub host_mac: Mac,
    /// The pod end's Ethernet address.
    pub pod_mac: Mac,
}

impl PairNames {
    /// From sha256(containerID "/" ifname).
    pub fn of(attachment: &Attachment) -> Self {
        let hash = Sha256::digest(format!("{}/{}", attachment.container_id, attachment.ifname));
        let first = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        let mac = |first| [first, 0x76, hash[0], hash[1], hash[2], hash[3]];
        Self { host: format!("{HOST_DEVICE_PREFIX}{:011x}", first >> 20), host_mac: mac(0x02), pod_mac: mac(0x06) }
    }
}

/// An Ethernet address as people write it.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The reverse of [`mac_text`].
pub fn mac_of(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_hash_of_the_attachment() {
        let attachment = Attachment { container_id: "c1".into(), ifname: "eth0".into() };
        let names = PairNames::of(&attachment);
        // printf c1/eth0 | sha256sum
        assert_eq!(names.host, "vipd72e032fedd");
        assert_eq!(mac_text(names.host_mac), "02:76:d7:2e:03:2f");
        assert_eq!(mac_text(names.pod_mac), "06:76:d7:2e:03:2f");
        assert!(names.host.len() <= 15);
    }

    #[test]
    fn ids_stay_in_their_ranges() {
        assert_eq!(nexthop(5), Some(0x7600_0005));
        assert_eq!(nexthop(1 << 24), None);
        assert_eq!((nexthop_link(0x7600_0005), nexthop_link(0x7700_0005)), (Some(5), None));
        assert_eq!(group(1), 0x7700_0001);
        assert_eq!((reply_table(0), reply_table(7)), (1180, 1187));
        assert!(is_table(118) && is_table(1187) && !is_table(1188) && !is_table(254));
        assert!(is_ours(0x7600_0001) && is_ours(0x77ff_ffff) && !is_ours(0x7800_0000) && !is_ours(2000));
    }
}
