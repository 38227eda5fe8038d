//! Which pods' UDP servers answer from their VIPs though they bind no address (`answers.h`). It follows from an attachment's entry. Either
//! family has a map: of a VIP of IPv6 its number stands for it, and `own6` has the pod's addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, MapData};

use crate::model::Transport;

use super::attached::{Attached, Place};
use super::ipv6::{ANSWERERS6, is_number};
use super::maps::{ANSWERERS, found, patiently};
use super::{Error, Result, hash};

/// `struct answerer_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnswererKey {
    pub(super) vip: [u8; 4],
    pub(super) mac: [u8; 6],
    pub(super) pad: u16,
}

/// `struct answerer`. The address is in network order, and none for a VIP of IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answerer {
    pub(super) own: [u8; 4],
    pub(super) ifindex: u32,
}

const _: () = assert!(size_of::<AnswererKey>() == 12 && size_of::<Answerer>() == 8);

// SAFETY: integers and bytes without padding.
unsafe impl Pod for AnswererKey {}
// SAFETY: as above.
unsafe impl Pod for Answerer {}

/// What an entry asks for: nothing where no UDP port is named, or the pod's own address isn't known.
fn of((ifindex, vip): Place, value: &Attached) -> Option<(AnswererKey, Answerer)> {
    let is_udp = |port: &u32| port >> 16 == u32::from(Transport::Udp.protocol());
    let has_udp = value.port.iter().take(value.ports.into()).any(is_udp);
    let key = AnswererKey { vip: vip.octets(), mac: value.mac, pad: 0 };
    let own = if is_number(vip) { [0; 4] } else { value.own };
    (has_udp && (is_number(vip) || own != [0; 4])).then_some((key, Answerer { own, ifindex }))
}

/// The map of a VIP's family.
fn map_of(vip: Ipv4Addr) -> &'static str {
    if is_number(vip) { ANSWERERS6 } else { ANSWERERS }
}

type Kernels = HashMap<MapData, AnswererKey, Answerer>;

/// Makes the map have what one entry asks for, in place of what another did.
pub(super) fn write(dir: &Path, place: Place, before: Option<&Attached>, after: Option<&Attached>) -> Result<()> {
    let wanted = after.and_then(|value| of(place, value));
    let asked = before.and_then(|value| of(place, value));
    if wanted.is_none() && asked.is_none() && (before.is_some() || after.is_some()) {
        return Ok(());
    }
    let name = map_of(place.1);
    let Some(mut map) = hash::map::<AnswererKey, Answerer>(dir, name)? else { return Ok(()) };
    let stale: Vec<AnswererKey> = match (asked, after) {
        (Some((key, _)), _) => vec![key],
        (None, Some(_)) => Vec::new(),
        // The entry is missing, and what followed from it may be left.
        (None, None) => all(&map, name)?.into_iter().filter(|(_, of)| *of == place).map(|(key, _)| key).collect(),
    };
    if let Some((key, value)) = wanted {
        patiently(|| map.insert(key, value, 0)).map_err(|e| Error::map("write", name, e))?;
    }
    for key in stale.into_iter().filter(|key| wanted.is_none_or(|(wanted, _)| wanted != *key)) {
        found(map.remove(&key)).map_err(|e| Error::map("delete", name, e))?;
    }
    Ok(())
}

fn all(map: &Kernels, name: &str) -> Result<Vec<(AnswererKey, Place)>> {
    let entries: std::result::Result<Vec<_>, _> = map.iter().collect();
    let entries = entries.map_err(|e| Error::map("list", name, e))?;
    Ok(entries.into_iter().map(|(key, value)| (key, (value.ifindex, key.vip.into()))).collect())
}

/// The host veths, and their pods' VIPs, that the maps have something of.
pub(super) fn places(dir: &Path) -> Result<BTreeSet<Place>> {
    let mut places = BTreeSet::new();
    for name in [ANSWERERS, ANSWERERS6] {
        let Some(map) = hash::map::<AnswererKey, Answerer>(dir, name)? else { continue };
        places.extend(all(&map, name)?.into_iter().map(|(_, place)| place));
    }
    Ok(places)
}

/// Whether the map has what an entry asks for.
pub(super) fn is_there(dir: &Path, place: Place, entry: &Attached) -> Result<bool> {
    let (Some((key, value)), name) = (of(place, entry), map_of(place.1)) else { return Ok(true) };
    let Some(map) = hash::map::<AnswererKey, Answerer>(dir, name)? else { return Ok(true) };
    let have = found(map.get(&key, 0)).map_err(|e| Error::map("read", name, e))?;
    Ok(have == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (7, Ipv4Addr::new(10, 118, 0, 7));

    fn entry(port: u32) -> Attached {
        let mut entry = Attached::new(1, [6, 0x76, 0, 0, 0, 1], 0);
        entry.ports = 1;
        entry.port[0] = port;
        entry.own = [10, 1, 1, 2];
        entry
    }

    /// Protocol and port, as `attached` has them.
    const UDP_53: u32 = 0x11_0035;
    const TCP_53: u32 = 0x6_0035;

    #[test]
    fn pods_with_a_udp_port_that_is_named_answer_from_their_vips() {
        let (key, value) = of(PLACE, &entry(UDP_53)).unwrap();
        assert_eq!((key.vip, key.mac), ([10, 118, 0, 7], [6, 0x76, 0, 0, 0, 1]));
        assert_eq!((value.own, value.ifindex), ([10, 1, 1, 2], 7));
        assert_eq!(of(PLACE, &entry(TCP_53)), None);
        assert_eq!(of(PLACE, &Attached { ports: 0, ..entry(UDP_53) }), None, "every port");
        assert_eq!(of(PLACE, &Attached { own: [0; 4], ..entry(UDP_53) }), None);
        let of_ipv6 = (7, Ipv4Addr::new(240, 0, 0, 7));
        let (key, value) = of(of_ipv6, &entry(UDP_53)).unwrap();
        assert_eq!((key.vip, value), ([240, 0, 0, 7], Answerer { own: [0; 4], ifindex: 7 }));
        assert_eq!(of(of_ipv6, &entry(TCP_53)), None);
    }
}
