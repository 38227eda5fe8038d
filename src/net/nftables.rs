//! Whether the namespace's nftables rules have changed, and what a named counter of them has counted.

use netlink_packet_core::{NetlinkSerializable, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::model::Family;

use super::{Error, Result, Socket};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
/// Bytes of `struct nfgenmsg`: family, version, resource id.
const HEADER: usize = 4;
const NFTA_GEN_ID: u16 = 1;

/// The counter that the kernel raises with every change of its nftables rules by any program.
#[derive(Debug)]
pub struct Generation(Socket);

impl Generation {
    /// Opens the calling thread's network namespace's. An error also where the kernel has no nftables.
    pub fn open() -> Result<Self> {
        let generation = Self(Socket::of_protocol(NETLINK_NETFILTER)?);
        generation.get()?;
        Ok(generation)
    }

    /// The counter now.
    pub fn get(&self) -> Result<u32> {
        let (op, object) = ("get", "generation of nftables rules");
        let found = self.0.get((op, object), &GetGeneration, |_, payload| read(payload))?;
        found.ok_or_else(|| Error::new(op, object, Errno::EPROTO))
    }
}

struct GetGeneration;

impl NetlinkSerializable for GetGeneration {
    fn message_type(&self) -> u16 {
        GET_GENERATION
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    /// Of no family, version 0, no resource.
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

fn read(payload: &[u8]) -> Option<u32> {
    let attributes = NlasIterator::new(payload.get(HEADER..)?);
    let id = attributes.filter_map(std::result::Result::ok).find(|nla| nla.kind() == NFTA_GEN_ID)?;
    Some(u32::from_be_bytes(id.value().try_into().ok()?))
}

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ`.
const GET_OBJECT: u16 = 10 << 8 | 0x13;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const PROTOCOLS: [u8; 2] = [2, 10];
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
/// The type's highest bits say that attributes are inside, and in which byte order.
const KIND: u16 = 0x3fff;

/// Reads named counters of tables.
#[derive(Debug)]
pub struct Counters(Socket);

impl Counters {
    /// Of the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self(Socket::of_protocol(NETLINK_NETFILTER)?))
    }

    /// The packets that this counter of that family's table has counted since it was made; none where there is none.
    pub fn packets(&self, family: Family, table: &str, name: &str) -> Result<Option<u64>> {
        let object = format!("nftables counter {name} of table {table}, {family:?}");
        self.0.get(("get", object), &GetCounter::new(family, table, name), |_, payload| read_packets(payload))
    }
}

/// The family, and attributes as they are sent.
struct GetCounter(u8, Vec<u8>);

impl GetCounter {
    fn new(family: Family, table: &str, name: &str) -> Self {
        let [ipv4, ipv6] = PROTOCOLS;
        let protocol = if family == Family::V4 { ipv4 } else { ipv6 };
        let text = |text: &str| [text.as_bytes(), b"\0"].concat();
        let attributes =
            [(NFTA_OBJ_TABLE, text(table)), (NFTA_OBJ_NAME, text(name)), (NFTA_OBJ_TYPE, COUNTER.to_be_bytes().into())];
        let mut bytes = Vec::new();
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
            bytes.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Self(protocol, bytes)
    }
}

impl NetlinkSerializable for GetCounter {
    fn message_type(&self) -> u16 {
        GET_OBJECT
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.1.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.0, 0, 0, 0]);
        buffer[HEADER..].copy_from_slice(&self.1);
    }
}

fn read_packets(payload: &[u8]) -> Option<u64> {
    let find = |bytes: &[u8], kind| {
        let mut attributes = NlasIterator::new(bytes).filter_map(std::result::Result::ok);
        attributes.find(|nla| nla.kind() & KIND == kind).map(|nla| nla.value().to_vec())
    };
    let data = find(payload.get(HEADER..)?, NFTA_OBJ_DATA)?;
    Some(u64::from_be_bytes(find(&data, NFTA_COUNTER_PACKETS)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `strace -e trace=sendmsg,sendto,recvmsg -x nft list counter ip t c`, shortened.
    #[test]
    fn a_counter_is_asked_for_and_read() {
        let ask = GetCounter::new(Family::V4, "t", "c");
        let mut bytes = vec![0xff; ask.buffer_len()];
        ask.serialize(&mut bytes);
        assert_eq!(bytes, b"\x02\0\0\0\x06\0\x01\0t\0\0\0\x06\0\x02\0c\0\0\0\x08\0\x03\0\0\0\0\x01");
        let data = b"\x1c\0\x04\x80\x0c\0\x01\0\0\0\0\0\0\0\0\x54\x0c\0\x02\0\0\0\0\0\0\0\0\x03";
        let payload = [b"\x02\0\0\x02\x06\0\x02\0c\0\0\0".as_slice(), data].concat();
        assert_eq!(read_packets(&payload), Some(3));
        assert_eq!((read_packets(&payload[..12]), read_packets(b"\x02\0")), (None, None));
    }

    /// `strace -e trace=recvmsg -x nft list table ip x`
    #[test]
    fn the_generation_is_read() {
        let payload = b"\0\0\0\x02\x08\0\x01\0\0\0\0\x02\x08\0\x02\0\0\0\x3e\x02\x08\0\x03\0nft\0";
        assert_eq!(read(payload), Some(2));
        assert_eq!(read(b"\x00\x00"), None);
    }
}
