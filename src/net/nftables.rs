//! Whether anybody has changed the namespace's nftables rules.

use netlink_packet_core::{NetlinkSerializable, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{Error, Result, Socket};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
/// Bytes of `struct nfgenmsg`: family, version, resource id.
const HEADER: usize = 4;
const NFTA_GEN_ID: u16 = 1;

/// The counter that the kernel raises with every change of its nftables rules, whoever makes it.
#[derive(Debug)]
pub struct Generation(Socket);

impl Generation {
    /// Opens the calling thread's network namespace's. An error also where the kernel has no nftables.
    pub fn open() -> Result<Self> {
        let generation = Self(Socket::of_protocol(NETLINK_NETFILTER)?);
        generation.get()?;
        Ok(generation)
    }

    /// What it stands at.
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

#[cfg(test)]
mod tests {
    use super::read;

    /// `strace -e trace=recvmsg -x nft list table ip x`
    #[test]
    fn the_generation_is_read() {
        let payload = b"\0\0\0\x02\x08\0\x01\0\0\0\0\x02\x08\0\x02\0\0\0\x3e\x02\x08\0\x03\0nft\0";
        assert_eq!(read(payload), Some(2));
        assert_eq!(read(b"\x00\x00"), None);
    }
}
