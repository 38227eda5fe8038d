//! VIPs of IPv6 in the maps (`ipv6.h`): each has a number in the place of its address, of the block 240.0.0.0/4 that no packet has, so that
//! IPv4's maps of VIPs have room for both. The maps themselves say whose a number is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use aya::Pod;
use aya::maps::MapError;
use nix::errno::Errno;

use super::attached::{AttachedKey, Place};
use super::maps::{Maps, found, patiently};
use super::{Error, Result, errno_of, hash};

pub(super) const ADDRESSES6: &str = "addresses6_v1";
pub(super) const NUMBERS6: &str = "numbers6_v1";
pub(super) const OWN6: &str = "own6_v1";
pub(super) const HINTS6: &str = "hints6_v1";
pub(super) const STICKY6: &str = "sticky6_v1";
pub(super) const HEARD6: &str = "heard6_v1";
pub(super) const FRAGMENTS6: &str = "fragments6_v1";
pub(super) const SOURCES6: &str = "sources6_v1";
pub(super) const CLIENTS6: &str = "clients6_v1";
pub(super) const EXPRESS6: &str = "express6_v1";
pub(super) const ANSWERERS6: &str = "answerers6_v1";
pub(super) const ASKED6: &str = "asked6_v1";
pub(super) const ANSWER_FRAGMENTS6: &str = "answer_fragments6_v1";

/// So many of a pod's own addresses are known.
pub const OWN: usize = 4;
pub(super) const CALLS6: &str = "calls6_v1";
/// 240.0.0.0/4, reserved (RFC 1112).
const RESERVED: u32 = 0xf000_0000;
/// `BPF_NOEXIST` of linux/bpf.h.
const NEW: u64 = 1;
/// So many numbers are tried before it is said that none is free.
const TRIES: u32 = 64;

/// `struct own6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Own6 {
    address: [[u8; 16]; OWN],
}

const _: () = assert!(size_of::<Own6>() == 16 * OWN);

// SAFETY: bytes.
unsafe impl Pod for Own6 {}

/// The addresses of a pod's own that the programs know, those of IPv6 among these; of more the first ones.
pub fn own(addresses: impl Iterator<Item = IpAddr>) -> Vec<Ipv6Addr> {
    let of_ipv6 = addresses.filter_map(|address| match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    });
    of_ipv6.take(OWN).collect()
}

impl Own6 {
    fn of(addresses: &[Ipv6Addr]) -> Self {
        let mut own = Self::default();
        for (place, address) in own.address.iter_mut().zip(addresses) {
            *place = address.octets();
        }
        own
    }
}

/// Whether it stands for an address of IPv6.
pub(super) fn is_number(vip: Ipv4Addr) -> bool {
    vip.to_bits() & RESERVED == RESERVED
}

/// The `nth` number that a VIP of that slot may have.
fn number(slot: u32, nth: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(RESERVED | (slot.wrapping_mul(8).wrapping_add(nth) & !RESERVED))
}

impl Maps {
    /// What the maps have in an address' place: itself, or the number of one of IPv6. `None`: it has none.
    pub fn key(&self, address: IpAddr) -> Result<Option<Ipv4Addr>> {
        let address = match address {
            IpAddr::V4(address) => return Ok(Some(address)),
            IpAddr::V6(address) => address,
        };
        let Some(map) = hash::map::<[u8; 16], [u8; 4]>(self.dir(), ADDRESSES6)? else { return Ok(None) };
        let number = found(map.get(&address.octets(), 0)).map_err(|e| Error::map("read", address, e))?;
        Ok(number.map(Ipv4Addr::from))
    }

    /// Whose number it is; `None`: nobody's. What is none is an address itself.
    pub fn address(&self, key: Ipv4Addr) -> Result<Option<IpAddr>> {
        if !is_number(key) {
            return Ok(Some(key.into()));
        }
        let Some(map) = hash::map::<[u8; 4], [u8; 16]>(self.dir(), NUMBERS6)? else { return Ok(None) };
        let address = found(map.get(&key.octets(), 0)).map_err(|e| Error::map("read", key, e))?;
        Ok(address.map(|address| Ipv6Addr::from(address).into()))
    }

    /// Whether these programs know VIPs of IPv6.
    pub fn knows_ipv6(&self) -> Result<bool> {
        Ok(hash::map::<[u8; 16], [u8; 4]>(self.dir(), ADDRESSES6)?.is_some())
    }

    /// Gives an address a number, by its VIP's slot, unless it has one.
    pub fn name(&self, address: Ipv6Addr, slot: u32) -> Result<Ipv4Addr> {
        if let Some(number) = self.key(address.into())? {
            return Ok(number);
        }
        let missing = || Error::Load("the programs that run know no IPv6".into());
        let mut addresses = hash::map::<[u8; 16], [u8; 4]>(self.dir(), ADDRESSES6)?.ok_or_else(missing)?;
        let mut numbers = hash::map::<[u8; 4], [u8; 16]>(self.dir(), NUMBERS6)?.ok_or_else(missing)?;
        for nth in 0..TRIES {
            let number = number(slot, nth);
            match numbers.insert(number.octets(), address.octets(), NEW) {
                // A crash came between the two.
                Err(e) if is_taken(&e) && self.address(number)? == Some(address.into()) => {}
                Err(e) if is_taken(&e) => continue,
                done => done.map_err(|e| Error::map("write", address, e))?,
            }
            let written = patiently(|| addresses.insert(address.octets(), number.octets(), 0));
            written.map_err(|e| Error::map("write", address, e))?;
            return Ok(number);
        }
        Err(Error::Load(format!("no number is free for {address}").into()))
    }

    /// Takes a number back. What is none is left alone.
    pub(super) fn unname(&self, key: Ipv4Addr) -> Result<()> {
        let Some(IpAddr::V6(address)) = self.address(key)? else { return Ok(()) };
        if let Some(mut addresses) = hash::map::<[u8; 16], [u8; 4]>(self.dir(), ADDRESSES6)? {
            found(addresses.remove(&address.octets())).map_err(|e| Error::map("delete", address, e))?;
        }
        let Some(mut numbers) = hash::map::<[u8; 4], [u8; 16]>(self.dir(), NUMBERS6)? else { return Ok(()) };
        found(numbers.remove(&key.octets())).map(drop).map_err(|e| Error::map("delete", address, e))
    }

    /// All numbers. What else is known of their VIPs may be missing.
    pub fn all_numbers(&self) -> Result<Vec<Ipv4Addr>> {
        let Some(map) = hash::map::<[u8; 4], [u8; 16]>(self.dir(), NUMBERS6)? else { return Ok(Vec::new()) };
        Ok(hash::keys(&map, NUMBERS6)?.into_iter().map(Ipv4Addr::from).collect())
    }

    /// The host veths, and their pods' VIPs, that a pod's own addresses are known of. Their entries may be missing.
    pub fn all_own(&self) -> Result<Vec<Place>> {
        let Some(map) = hash::map::<AttachedKey, Own6>(self.dir(), OWN6)? else { return Ok(Vec::new()) };
        Ok(hash::keys(&map, OWN6)?.into_iter().map(|key| (key.ifindex, key.vip.into())).collect())
    }

    /// Whether a pod's own addresses are known as these, beside its entry of a VIP. Of a VIP of IPv4: yes.
    pub fn is_own(&self, ifindex: u32, vip: Ipv4Addr, addresses: &[Ipv6Addr]) -> Result<bool> {
        if !is_number(vip) {
            return Ok(true);
        }
        let Some(map) = hash::map::<AttachedKey, Own6>(self.dir(), OWN6)? else { return Ok(false) };
        let key = AttachedKey::new(ifindex, vip);
        let own = found(map.get(&key, 0)).map_err(|e| Error::map("read", OWN6, e))?;
        Ok(own == Some(Own6::of(addresses)))
    }

    /// Writes a pod's own addresses, before its entry of a VIP of IPv6.
    pub fn set_own(&self, ifindex: u32, vip: Ipv4Addr, addresses: &[Ipv6Addr]) -> Result<()> {
        if !is_number(vip) {
            return Ok(());
        }
        let Some(mut map) = hash::map::<AttachedKey, Own6>(self.dir(), OWN6)? else { return Ok(()) };
        let (key, value) = (AttachedKey::new(ifindex, vip), Own6::of(addresses));
        patiently(|| map.insert(key, value, 0)).map_err(|e| Error::map("write", OWN6, e))
    }
}

/// Removes what is known of a pod's own addresses with its entry of a VIP.
pub(super) fn forget_own(dir: &Path, (ifindex, vip): Place) -> Result<()> {
    if !is_number(vip) {
        return Ok(());
    }
    let Some(mut map) = hash::map::<AttachedKey, Own6>(dir, OWN6)? else { return Ok(()) };
    found(map.remove(&AttachedKey::new(ifindex, vip))).map(drop).map_err(|e| Error::map("delete", OWN6, e))
}

fn is_taken(error: &MapError) -> bool {
    errno_of(error) == Some(Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_of_the_reserved_block_and_of_one_slot_each() {
        let mut all = std::collections::BTreeSet::new();
        for slot in [0, 1, 2, (1 << 23) - 1] {
            for nth in 0..8 {
                let number = number(slot, nth);
                assert!(is_number(number) && all.insert(number), "{number}");
            }
        }
        assert!(!is_number(Ipv4Addr::new(10, 118, 0, 7)) && !is_number(Ipv4Addr::new(239, 1, 1, 1)));
    }

    #[test]
    fn of_a_pods_addresses_those_of_ipv6_are_its_own_here() {
        let all = ["10.1.1.2", "fd00::1", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(own(all.into_iter()).len(), 2);
        let many = (0..9).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]));
        assert_eq!(own(many).len(), OWN);
    }
}
