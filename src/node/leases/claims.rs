//! Other hosts of the link that say a VIP's address is their own (RFC 5227 section 2.4): a machine set up by hand, another
//! cluster. The address is defended, and the operator, who has to decide which of the two goes, gets an event.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::api::protocol::VipStatus;
use crate::model::{Family, Mac, VipKey};
use crate::net::acd::Claim;
use crate::node::journal::Kind;

use super::Daemon;

/// The address is announced again at a claim, unless there was one within this time: two hosts that both insist would flood
/// the link (RFC 5227 section 1.1, `DEFEND_INTERVAL`).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// So long a claim is shown after its last packet.
const KEPT: Duration = Duration::from_secs(600);

/// The latest claims.
#[derive(Debug)]
pub struct Claims {
    by_address: BTreeMap<IpAddr, (Mac, Instant)>,
    /// Whose that are turns out here.
    strangers: UnboundedSender<Claim>,
}

/// What a claim is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Worth {
    /// Whether to log it.
    news: bool,
    /// Whether the address is to be defended.
    defend: bool,
}

impl Claims {
    /// None yet; claims of hosts that are no peers go to `strangers`.
    pub fn new(strangers: UnboundedSender<Claim>) -> Self {
        Self { by_address: BTreeMap::new(), strangers }
    }

    fn heard(&mut self, claim: Claim, now: Instant) -> Worth {
        self.by_address.retain(|_, (_, at)| now.saturating_duration_since(*at) < KEPT);
        let before = self.by_address.insert(claim.address, (claim.mac, now));
        Worth {
            news: before.is_none_or(|(mac, _)| mac != claim.mac),
            defend: before.is_none_or(|(_, at)| now.saturating_duration_since(at) >= DEFEND_INTERVAL),
        }
    }

    /// Who claims the address, if a host has done so lately.
    pub fn on(&self, address: IpAddr) -> Option<String> {
        let (mac, at) = self.by_address.get(&address)?;
        (at.elapsed() < KEPT).then(|| mac.to_string())
    }
}

impl Daemon {
    /// Adds to each VIP's status the host that claims one of its addresses.
    pub(super) fn show_claims(&self, vips: &mut [VipStatus]) {
        for vip in vips {
            let others = vip.vip.parse().ok().and_then(|key: VipKey| self.beside.get(&key));
            let mut addresses = vip.address.into_iter().chain(others.into_iter().flatten().copied());
            vip.claimed_by = addresses.find_map(|address| self.claims.on(address));
        }
    }

    /// A host claims an address; it may be a peer, which may serve the same VIP.
    pub(super) fn claimed(&mut self, claim: Claim) {
        let search = self.v4.executor.search().clone();
        let strangers = self.claims.strangers.clone();
        tokio::spawn(async move {
            match search.is_peer(Family::of(claim.address), claim.mac).await {
                // Its reader is gone only while viprouted ends.
                Ok(false) => drop(strangers.send(claim)),
                Ok(true) => {}
                Err(error) => {
                    tracing::warn!(address = %claim.address, error = &error as &dyn std::error::Error, "claim not looked into");
                }
            }
        });
    }

    pub(super) fn claimed_by_a_stranger(&mut self, claim: Claim) {
        let Some(vip) = self.served_at(claim.address) else { return };
        self.agent.counters.address_claimed(&vip);
        let Worth { news, defend } = self.claims.heard(claim, Instant::now());
        if defend && let Some(acd) = self.links.of(Family::of(claim.address)).acd.clone() {
            tokio::spawn(async move {
                if let Err(error) = acd.announce(claim.address).await {
                    tracing::warn!(address = %claim.address, error = &error as &dyn std::error::Error, "not defended");
                }
            });
        }
        if news {
            let (address, mac) = (claim.address, claim.mac);
            let text =
                format!("{mac} says that {address} is its own; this node says so once more and goes on serving it");
            tracing::warn!(%vip, "{text}");
            self.agent.journal.record(Kind::Trouble, Some(&vip), text);
        }
    }

    fn served_at(&self, address: IpAddr) -> Option<VipKey> {
        self.announced().find(|(at, _)| *at == address).map(|(_, vip)| vip.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_once_and_defended_against_now_and_then() {
        let mut claims = Claims::new(tokio::sync::mpsc::unbounded_channel().0);
        let start = Instant::now();
        let claim = Claim { address: IpAddr::from([192, 0, 2, 100]), mac: Mac([2, 0, 0, 0, 0, 9]) };
        let mut at = |seconds, claim| {
            let Worth { news, defend } = claims.heard(claim, start + Duration::from_secs(seconds));
            (news, defend)
        };
        assert_eq!(at(0, claim), (true, true));
        assert_eq!(at(1, claim), (false, false), "who goes on is not answered again");
        assert_eq!(at(10, claim), (false, false), "nor while it does");
        assert_eq!(at(20, claim), (false, true));
        assert_eq!(at(21, Claim { mac: Mac([2, 0, 0, 0, 0, 8]), ..claim }), (true, false), "another one");
        assert_eq!(at(700, claim), (true, true), "forgotten meanwhile");
    }
}
