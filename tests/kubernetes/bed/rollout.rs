//! What a rolling update does to who calls meanwhile.

use std::fmt::{Display, Formatter, Result};
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use crate::harness::{Netns, Storm};

/// New connections to a VIP and, beside it, to the same pods by kube-proxy.
pub struct Rollout {
    vip: Storm,
    beside: Storm,
}

/// How connections ended that had no answer.
pub struct Outcome {
    pub answered: usize,
    pub failed: Vec<String>,
}

impl Rollout {
    /// `rate` connections a second to each of the two, which are an address and a port.
    pub fn watch(client: &Netns, vip: (Ipv4Addr, u16), beside: (Ipv4Addr, u16), rate: u32) -> Self {
        let rollout = Self { vip: Storm::on(client, vip, rate), beside: Storm::on(client, beside, rate) };
        // What was wrong before is not the rollout's.
        let both = [&rollout.vip, &rollout.beside];
        for storm in both {
            let before = storm.next(50);
            assert!(before.failed.is_empty(), "before the rollout: {:?}", before.failed);
        }
        rollout
    }

    /// Of the VIP, and of kube-proxy, some seconds after the rollout has ended.
    pub fn end(self) -> (Outcome, Outcome) {
        sleep(Duration::from_secs(4));
        let outcome = |storm: &Storm| {
            let seen = storm.seen();
            Outcome { answered: seen.answers(), failed: seen.failed }
        };
        (outcome(&self.vip), outcome(&self.beside))
    }
}

impl Display for Outcome {
    fn fmt(&self, formatter: &mut Formatter) -> Result {
        let (failed, all) = (self.failed.len(), self.answered + self.failed.len());
        let mut ends: Vec<_> = self.failed.clone();
        ends.sort();
        ends.dedup();
        write!(formatter, "{failed} of {all} failed {ends:?}")
    }
}
