//! Writes what becomes of VIPs' addresses to the journal, as events for operators.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::protocol::{LeaseState, VipStatus};
use crate::lease::state::{Action, State, Step};
use crate::model::{Family, VipKey};
use crate::node::{Journal, Kind};

/// Records each change once.
#[derive(Debug)]
pub struct LeaseEventLog {
    journal: Journal,
    /// The family, where there are leases of another one too.
    family: Option<Family>,
    told: BTreeMap<VipKey, Told>,
}

/// What was last recorded of a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    state: Option<LeaseState>,
    /// The last one granted.
    address: Option<IpAddr>,
    error: Option<String>,
    /// The last order to its routes, as it was recorded.
    ordered: Option<String>,
}

impl LeaseEventLog {
    /// With nothing recorded.
    pub fn new(journal: Journal, family: Option<Family>) -> Self {
        Self { journal, family, told: BTreeMap::new() }
    }

    /// `steps` were decided on.
    pub fn steps(&mut self, state: &State, steps: &[Step]) {
        for (vip, action) in steps {
            self.look(state, vip);
            match action {
                Action::Serve(address) => self.order(vip, Some(*address)),
                Action::Withdraw => self.order(vip, None),
                _ => {}
            }
        }
    }

    /// Something happened to `vip`.
    pub fn look(&mut self, state: &State, vip: &VipKey) {
        let Some(now) = state.status_of(vip) else {
            if self.told.remove(vip).is_some_and(|told| told.address.is_some()) {
                self.journal.record(Kind::Lease, Some(vip), "its lease is let go: it has no replica here any more");
            }
            return;
        };
        let told = self.told.entry(vip.clone()).or_default();
        for (kind, text) in news(told, &now) {
            self.journal.record(kind, Some(vip), text);
        }
    }

    /// An order is given again until the registry shows that it was carried out.
    fn order(&mut self, vip: &VipKey, address: Option<IpAddr>) {
        let text = if let Some(address) = address {
            format!("its replicas here serve {address} from now on")
        } else {
            let of = self.family.map(|family| format!(" of {}", family.name())).unwrap_or_default();
            format!("withdrawn: its replicas here serve no address{of}")
        };
        let told = self.told.entry(vip.clone()).or_default();
        if told.ordered.replace(text.clone()).as_ref() != Some(&text) {
            self.journal.record(Kind::Lease, Some(vip), text);
        }
    }
}

/// The events to record, now that the VIP's status is `now`; updates `told`.
fn news(told: &mut Told, now: &VipStatus) -> Vec<(Kind, String)> {
    let mut news = Vec::new();
    let came_to = |state| now.state == state && told.state != Some(state);
    let error = now.error.clone().filter(|error| told.error.as_ref() != Some(error));
    if came_to(LeaseState::Bound)
        && let Some(address) = now.address
    {
        let text = match told.address.replace(address) {
            Some(old) if old != address => format!("{address} is granted in place of {old}"),
            Some(_) => format!("{address} is confirmed"),
            None => format!("{address} is granted"),
        };
        news.push((Kind::Lease, text));
    }
    if came_to(LeaseState::Expired) {
        news.push((Kind::Lease, now.error.clone().unwrap_or_else(|| "the lease is lost".to_owned())));
    } else {
        news.extend(error.map(|error| (Kind::Trouble, error)));
    }
    told.state = Some(now.state);
    told.error.clone_from(&now.error);
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: LeaseState, last: u8, error: Option<&str>) -> VipStatus {
        let address = (last > 0).then(|| IpAddr::from([10, 118, 0, last]));
        let error = error.map(Into::into);
        let (expires, held_until, claimed_by, renewer) = (None, None, None, None);
        VipStatus { vip: "a/b".into(), address, state, expires, error, held_until, claimed_by, renewer }
    }

    /// The sentences of one VIP's life.
    fn story(life: &[VipStatus]) -> Vec<String> {
        let mut told = Told::default();
        life.iter()
            .flat_map(|now| news(&mut told, now))
            .map(|(kind, text)| format!("{}: {text}", kind.name()))
            .collect()
    }

    #[test]
    fn each_thing_is_told_once() {
        use LeaseState::{Bound, Expired, Failed, Selecting};
        let life = [
            status(Selecting, 0, None),
            status(Selecting, 0, Some("no server answers")),
            status(Selecting, 0, Some("no server answers")),
            status(Bound, 7, None),
            status(Bound, 7, None),
            status(Expired, 7, Some("the lease is lost: NAK")),
            status(Bound, 8, None),
            status(Failed, 8, Some("no address")),
            status(Bound, 8, None),
        ];
        assert_eq!(
            story(&life),
            [
                "trouble: no server answers",
                "lease: 10.118.0.7 is granted",
                "lease: the lease is lost: NAK",
                "lease: 10.118.0.8 is granted in place of 10.118.0.7",
                "trouble: no address",
                "lease: 10.118.0.8 is confirmed",
            ]
        );
    }
}
