//! When announcements (gratuitous ARPs, unsolicited neighbour advertisements) are due: three when an address comes to this node or its link is another one, and one now and then
//! afterwards, since switches forget where a MAC address is sooner than routers forget the address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// So many at first, and the time between them.
const FIRST: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two later ones: switches forget after 300 s by default (IEEE 802.1D).
const REPEAT: Duration = Duration::from_secs(120);

/// The addresses announced.
#[derive(Debug, Default)]
pub struct Announcements(BTreeMap<IpAddr, (u32, Instant)>);

impl Announcements {
    /// These are announced from now on, and no others.
    pub fn set(&mut self, wanted: &BTreeSet<IpAddr>, now: Instant) {
        self.0.retain(|address, _| wanted.contains(address));
        for address in wanted {
            self.0.entry(*address).or_insert((FIRST, now));
        }
    }

    /// All of them as at first: the link is another one, or was down.
    pub fn restart(&mut self, now: Instant) {
        self.0.values_mut().for_each(|due| *due = (FIRST, now));
    }

    /// Those that are due, each returned once.
    pub fn take_due(&mut self, now: Instant) -> Vec<IpAddr> {
        let due = self.0.iter_mut().filter(|(_, (_, at))| *at <= now);
        due.map(|(address, (left, at))| {
            *left = left.saturating_sub(1);
            *at = now + if *left > 0 { INTERVAL } else { REPEAT };
            *address
        })
        .collect()
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|(_, at)| *at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_at_first_and_one_now_and_then() {
        let (begun, vip) = (Instant::now(), IpAddr::from([10, 118, 0, 7]));
        let mut announcements = Announcements::default();
        announcements.set(&[vip].into(), begun);
        let mut times = Vec::new();
        for _ in 0..5 {
            let now = announcements.next().unwrap();
            assert_eq!(announcements.take_due(now), [vip]);
            assert_eq!(announcements.take_due(now), [] as [IpAddr; 0]);
            times.push((now - begun).as_secs());
        }
        assert_eq!(times, [0, 1, 2, 122, 242]);
        announcements.set(&[vip].into(), begun);
        assert_eq!(announcements.next(), Some(begun + Duration::from_secs(362)), "it goes on");
        announcements.restart(begun);
        assert_eq!(announcements.next(), Some(begun));
        announcements.set(&BTreeSet::new(), begun);
        assert_eq!(announcements.next(), None);
    }
}
