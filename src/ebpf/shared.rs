//! Numbers of a pod's that several ports of its VIP have (`shared.h`). It follows from an attachment's entry, and from what that was before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;
use nix::time::{ClockId, clock_gettime};

use super::attached::{Attached, Place};
use super::maps::{SHARED, found, patiently};
use super::translations::{at_pod, number, value as in_network_order};
use super::{Error, Result, hash};

/// For so long after a second port has come to a number, flows that aren't noted are taken to be of the one that had it alone,
/// nanoseconds: after that TCP takes a client for gone that says nothing (`tcp_keepalive_time` and `_probes`; RFC 1122, 4.2.3.6).
const ALONE_FOR: u64 = 7_875 * 1_000_000_000;

/// `struct shared_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SharedKey {
    pub(super) ifindex: u32,
    pub(super) vip: [u8; 4],
    pub(super) number: u32,
}

/// `struct shared`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) alone_until: u64,
    pub(super) alone: u32,
    pub(super) pad: u32,
}

const _: () = assert!(size_of::<SharedKey>() == 12 && size_of::<Shared>() == 16);

// SAFETY: integers and bytes without padding.
unsafe impl Pod for SharedKey {}
// SAFETY: as above.
unsafe impl Pod for Shared {}

/// The ports of each number that the pod has, protocol << 16 | number both.
fn by_target(value: &Attached) -> BTreeMap<u32, Vec<u32>> {
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (port, target) in value.port.iter().zip(&value.target).take(value.ports.into()) {
        found.entry(at_pod(*port, *target)).or_default().push(*port);
    }
    found
}

/// Numbers that more than one port has.
fn shared(value: &Attached) -> BTreeSet<u32> {
    by_target(value).into_iter().filter(|(_, ports)| ports.len() > 1).map(|(target, _)| target).collect()
}

/// Whether more than one of an entry's ports have one number in the pod.
pub(super) fn has_some(value: &Attached) -> bool {
    !shared(value).is_empty()
}

/// What a number has that comes to be shared: whose it was alone.
fn new(target: u32, before: Option<&Attached>, now: u64) -> Shared {
    match before.and_then(|before| by_target(before).remove(&target)).as_deref() {
        Some([alone]) => {
            let alone_until = now.saturating_add(ALONE_FOR);
            Shared { alone_until, alone: in_network_order(number(*alone)), pad: 0 }
        }
        _ => Shared::default(),
    }
}

fn key((ifindex, vip): Place, number: u32) -> SharedKey {
    SharedKey { ifindex, vip: vip.octets(), number }
}

/// Makes the map have what one entry asks for, in place of what another did. What is there already stays as it is.
pub(super) fn write(dir: &Path, place: Place, before: Option<&Attached>, after: Option<&Attached>) -> Result<()> {
    let wanted = after.map(shared).unwrap_or_default();
    let asked = before.map(shared).unwrap_or_default();
    if wanted.is_empty() && asked.is_empty() && (before.is_some() || after.is_some()) {
        return Ok(());
    }
    let Some(mut map) = hash::map::<SharedKey, Shared>(dir, SHARED)? else { return Ok(()) };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or_default();
    for target in &wanted {
        let key = key(place, *target);
        if found(map.get(&key, 0)).map_err(|e| Error::map("read", SHARED, e))?.is_none() {
            patiently(|| map.insert(key, new(*target, before, now), 0)).map_err(|e| Error::map("write", SHARED, e))?;
        }
    }
    let stale: Vec<SharedKey> = match before {
        Some(_) => asked.difference(&wanted).map(|target| key(place, *target)).collect(),
        None if after.is_some() => Vec::new(),
        // The entry is missing, and what followed from it may be left.
        None => hash::keys(&map, SHARED)?
            .into_iter()
            .filter(|key| (key.ifindex, Ipv4Addr::from(key.vip)) == place)
            .collect(),
    };
    for key in stale {
        found(map.remove(&key)).map_err(|e| Error::map("delete", SHARED, e))?;
    }
    Ok(())
}

/// The host veths, and their pods' VIPs, that the map has something of.
pub(super) fn places(dir: &Path) -> Result<BTreeSet<Place>> {
    let Some(map) = hash::map::<SharedKey, Shared>(dir, SHARED)? else { return Ok(BTreeSet::new()) };
    Ok(hash::keys(&map, SHARED)?.into_iter().map(|key| (key.ifindex, key.vip.into())).collect())
}

/// Whether the map has what an entry asks for.
pub(super) fn are_there(dir: &Path, place: Place, entry: &Attached) -> Result<bool> {
    let wanted = shared(entry);
    if wanted.is_empty() {
        return Ok(true);
    }
    let Some(map) = hash::map::<SharedKey, Shared>(dir, SHARED)? else { return Ok(true) };
    for target in wanted {
        if found(map.get(&key(place, target), 0)).map_err(|e| Error::map("read", SHARED, e))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::translations::tests::entry;
    use super::*;

    const TCP: u32 = 6 << 16;
    const UDP: u32 = 17 << 16;

    #[test]
    fn numbers_are_shared_by_ports_of_one_protocol() {
        let argo = entry(&[(TCP + 80, 8080), (TCP + 443, 8080), (UDP + 443, 8080), (TCP + 22, 22)]);
        assert_eq!(shared(&argo), [TCP + 8080].into());
        assert_eq!(shared(&entry(&[(TCP + 80, 8080), (TCP + 8080, 8080)])), [TCP + 8080].into());
        assert!(!has_some(&entry(&[(TCP + 80, 8080), (TCP + 8080, 9090)])));
    }

    #[test]
    fn a_number_that_comes_to_be_shared_says_whose_it_was() {
        let one = entry(&[(TCP + 443, 8080)]);
        let was = new(TCP + 8080, Some(&one), 5);
        assert_eq!(was, Shared { alone_until: 5 + ALONE_FOR, alone: u32::from(443_u16.to_be()), pad: 0 });
        for before in [None, Some(&entry(&[(TCP + 80, 80)])), Some(&entry(&[(TCP + 80, 8080), (TCP + 443, 8080)]))] {
            assert_eq!(new(TCP + 8080, before, 5), Shared::default());
        }
    }
}
