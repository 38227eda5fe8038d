//! Ports that pods have under another number (`ports.h`): what the programs look up for a packet, in each direction. It follows from an
//! attachment's entry, which says what was written before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::Pod;

use super::attached::{Attached, Place, TRANSLATES};
use super::maps::{TRANSLATIONS, found, patiently};
use super::{Error, Result, hash};

/// `struct translation_key`. The address is in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TranslationKey {
    pub(super) ifindex: u32,
    pub(super) vip: [u8; 4],
    pub(super) number: u32,
    pub(super) way: u32,
}

const _: () = assert!(size_of::<TranslationKey>() == 16);

// SAFETY: integers and bytes without padding.
unsafe impl Pod for TranslationKey {}

impl TranslationKey {
    fn place(&self) -> Place {
        (self.ifindex, self.vip.into())
    }

    fn ported(&self) -> Ported {
        let way = if self.way == Way::IntoPod as u32 { Way::IntoPod } else { Way::OutOfPod };
        (way, self.number)
    }
}

/// The way of a packet past a host veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    IntoPod = 0,
    OutOfPod = 1,
}

/// A port, as protocol << 16 | number, on the side that a packet comes from.
type Ported = (Way, u32);
/// What stands in the place of a port on the other side; 0: nothing.
type Translations = BTreeMap<Ported, u16>;

/// All that an entry asks for. A number that one side has in another one's place is none of its own, unless it is listed, too.
fn of(value: &Attached) -> Translations {
    let mut all = Translations::new();
    if value.flags & TRANSLATES == 0 {
        return all;
    }
    let listed = || value.port.iter().zip(&value.target).take(value.ports.into());
    for (port, target) in listed() {
        all.insert((Way::IntoPod, *port), *target);
        all.insert((Way::OutOfPod, at_pod(*port, *target)), number(*port));
    }
    for (port, target) in listed() {
        all.entry((Way::IntoPod, at_pod(*port, *target))).or_insert(0);
        all.entry((Way::OutOfPod, *port)).or_insert(0);
    }
    // Without an entry it is the same on both sides.
    all.retain(|(_, from), to| number(*from) != *to);
    all
}

pub(super) fn number(port: u32) -> u16 {
    u16::try_from(port & 0xffff).unwrap_or_default()
}

/// The same protocol's port of another number.
pub(super) fn at_pod(port: u32, target: u16) -> u32 {
    port & 0xffff_0000 | u32::from(target)
}

fn key((ifindex, vip): Place, (way, number): Ported) -> TranslationKey {
    TranslationKey { ifindex, vip: vip.octets(), number, way: way as u32 }
}

/// As the programs read it: in network order.
pub(super) fn value(port: u16) -> u32 {
    port.to_be().into()
}

/// Makes the map have what one entry asks for, in place of what another did.
pub(super) fn write(dir: &Path, place: Place, before: Option<&Attached>, after: Option<&Attached>) -> Result<()> {
    let wanted = after.map(of).unwrap_or_default();
    let asked = before.map(of).unwrap_or_default();
    // Where there is no entry, before or after, translations may be left all the same.
    if wanted.is_empty() && asked.is_empty() && (before.is_some() || after.is_some()) {
        return Ok(());
    }
    let Some(mut map) = hash::map::<TranslationKey, u32>(dir, TRANSLATIONS)? else { return Ok(()) };
    let stale: Vec<TranslationKey> = match (before, after) {
        // A host veth's index doesn't come again.
        (None, Some(_)) => Vec::new(),
        (Some(_), None) => asked.keys().map(|ported| key(place, *ported)).collect(),
        // A call may have died in between, whose entry was never written.
        _ => hash::keys(&map, TRANSLATIONS)?
            .into_iter()
            .filter(|key| key.place() == place && !wanted.contains_key(&key.ported()))
            .collect(),
    };
    for key in stale {
        found(map.remove(&key)).map_err(|e| Error::map("delete", TRANSLATIONS, e))?;
    }
    for (ported, port) in &wanted {
        let (key, value) = (key(place, *ported), value(*port));
        patiently(|| map.insert(key, value, 0)).map_err(|e| Error::map("write", TRANSLATIONS, e))?;
    }
    Ok(())
}

/// Whose translations the map has.
pub(super) fn places(dir: &Path) -> Result<BTreeSet<Place>> {
    let Some(map) = hash::map::<TranslationKey, u32>(dir, TRANSLATIONS)? else { return Ok(BTreeSet::new()) };
    Ok(hash::keys(&map, TRANSLATIONS)?.iter().map(TranslationKey::place).collect())
}

/// Whether the map has all that an entry asks for.
pub(super) fn are_there(dir: &Path, place: Place, entry: &Attached) -> Result<bool> {
    let wanted = of(entry);
    if wanted.is_empty() {
        return Ok(true);
    }
    let Some(map) = hash::map::<TranslationKey, u32>(dir, TRANSLATIONS)? else { return Ok(true) };
    for (ported, port) in &wanted {
        let have = found(map.get(&key(place, *ported), 0)).map_err(|e| Error::map("read", TRANSLATIONS, e))?;
        if have != Some(value(*port)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const TCP: u32 = 6 << 16;
    const UDP: u32 = 17 << 16;

    pub(in crate::ebpf) fn entry(ports: &[(u32, u16)]) -> Attached {
        let mut entry = Attached::new(1, [0; 6], TRANSLATES);
        entry.ports = u16::try_from(ports.len()).unwrap();
        for (place, (port, target)) in ports.iter().enumerate() {
            (entry.port[place], entry.target[place]) = (*port, *target);
        }
        entry
    }

    fn shown(ports: &[(u32, u16)]) -> Vec<String> {
        let way = |way| if way == Way::IntoPod { "in" } else { "out" };
        let port = |port| format!("{}/{}", port & 0xffff, if port & TCP == TCP { "tcp" } else { "udp" });
        of(&entry(ports)).iter().map(|((to, from), other)| format!("{} {} {other}", way(*to), port(*from))).collect()
    }

    #[test]
    fn each_side_has_its_number_and_not_the_other_sides() {
        let both = ["in 80/tcp 8080", "in 8080/tcp 0", "out 80/tcp 0", "out 8080/tcp 80"];
        assert_eq!(shown(&[(TCP + 80, 8080)]), both);
        assert_eq!(shown(&[(TCP + 80, 8080), (TCP + 443, 443)]), both, "the same on both sides");
        // By another protocol the number is free.
        assert_eq!(shown(&[(UDP + 53, 5353), (TCP + 5353, 5353)]).len(), 4);
    }

    #[test]
    fn numbers_may_change_places() {
        let crossed = ["in 80/tcp 8080", "in 8080/tcp 80", "out 80/tcp 8080", "out 8080/tcp 80"];
        assert_eq!(shown(&[(TCP + 80, 8080), (TCP + 8080, 80)]), crossed);
        let chain = shown(&[(TCP + 80, 8080), (TCP + 8080, 9090)]);
        let expected = [
            "in 80/tcp 8080",
            "in 8080/tcp 9090",
            "in 9090/tcp 0",
            "out 80/tcp 0",
            "out 8080/tcp 80",
            "out 9090/tcp 8080",
        ];
        assert_eq!(chain, expected);
    }

    #[test]
    fn an_entry_without_the_flag_asks_for_nothing() {
        assert_eq!(of(&Attached { flags: 0, ..entry(&[(TCP + 80, 8080)]) }), Translations::new());
    }
}
