//! How many datagrams a source may send before any of them is looked at: authentication costs processor time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Datagrams a second. Three rounds of gossip of the largest message, cut into parts, and answers to as many.
const RATE: f64 = 2000.0;
/// At once.
const BURST: f64 = 1000.0;
/// Nodes that are told apart; there are no more sessions than that.
const MAX_NODES: usize = 1024;

/// The allowances. A node that was heard has one of its own. All others have one together, so that no number of forged sources
/// costs more than one does, or takes anything from a node.
#[derive(Debug, Default)]
pub struct Limiter {
    nodes: HashMap<IpAddr, Bucket>,
    strangers: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        (self.left, self.at) = ((self.left + gained).min(BURST), now);
        let fine = self.left >= 1.0;
        if fine {
            self.left -= 1.0;
        }
        fine
    }
}

impl Limiter {
    /// Whether a datagram of that source may be looked at. `known`: a node that was heard sends from there.
    pub fn allows(&mut self, source: IpAddr, known: bool, now: Instant) -> bool {
        let new = || Bucket::new(now);
        if !known || (self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&source)) {
            return self.strangers.get_or_insert_with(new).take(now);
        }
        self.nodes.entry(source).or_insert_with(new).take(now)
    }

    /// A node is no longer known.
    pub fn forget(&mut self, source: IpAddr) {
        self.nodes.remove(&source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_source_has_its_allowance_and_strangers_one_together() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let passed = |limiter: &mut Limiter, known, at, source: fn(u32) -> u32| {
            (0..5000).filter(|n| limiter.allows(IpAddr::V4(source(*n).into()), known, at)).count()
        };
        assert_eq!(passed(&mut limiter, false, now, |n| 0x0a00_0000 + n), 1000, "forged sources");
        assert_eq!(passed(&mut limiter, true, now, |_| 0xc000_0201), 1000, "a node");
        assert_eq!(passed(&mut limiter, true, now, |_| 0xc000_0202), 1000, "another");
        assert_eq!(limiter.nodes.len(), 2);
        let later = now + Duration::from_millis(100);
        assert_eq!(passed(&mut limiter, true, later, |_| 0xc000_0201), 200, "with time it may send more");
    }
}
