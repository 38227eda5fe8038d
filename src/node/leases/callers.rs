//! Who waits for a VIP's addresses. Where those of IPv6 are leased by themselves, the answer waits for both; without the IPv6 address, if that
//! isn't to be had in time: it follows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::api::protocol::{Grant, Refusal};
use crate::lease::state::Caller;
use crate::model::Family;

/// What a caller is told.
pub type Answer = Result<Grant, Refusal>;

/// Where a caller's answer goes.
pub type Reply = oneshot::Sender<Vec<u8>>;

#[derive(Debug)]
struct Waiting {
    reply: Reply,
    granted: Option<Grant>,
    beside: Beside,
}

/// The IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Beside {
    /// Not decided yet.
    Open,
    /// It isn't leased.
    Nothing,
    /// There is none in time, or none at all.
    Refused(Refusal),
    Leased(IpAddr),
}

/// All of them.
#[derive(Debug, Default)]
pub struct Callers(BTreeMap<Caller, Waiting>);

impl Callers {
    /// `is_alone`: there is one answer, that of IPv4.
    pub fn add(&mut self, caller: Caller, reply: Reply, is_alone: bool) {
        let beside = if is_alone { Beside::Nothing } else { Beside::Open };
        self.0.insert(caller, Waiting { reply, granted: None, beside });
    }

    /// What is decided for a caller. Returns where to send what, once all is known.
    pub fn hear(&mut self, family: Family, caller: Caller, answer: Answer) -> Option<(Reply, Answer)> {
        let waiting = self.0.get_mut(&caller)?;
        match (family, answer) {
            (Family::V4, Err(refusal)) => return Some((self.0.remove(&caller)?.reply, Err(refusal))),
            (Family::V4, Ok(grant)) => waiting.granted = Some(grant),
            (Family::V6, Ok(grant)) => waiting.beside = Beside::Leased(grant.address),
            (Family::V6, Err(refusal)) => waiting.beside = Beside::Refused(refusal),
        }
        if waiting.granted.is_none() || waiting.beside == Beside::Open {
            return None;
        }
        let Waiting { reply, granted, beside } = self.0.remove(&caller)?;
        let grant = granted?;
        let (others, no_ipv6) = match beside {
            Beside::Leased(address) => (vec![address], None),
            Beside::Refused(refusal) => (Vec::new(), Some(refusal)),
            Beside::Open | Beside::Nothing => (Vec::new(), None),
        };
        Some((reply, Ok(Grant { others, no_ipv6, ..grant })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(address: &str, others: &[&str]) -> Grant {
        let others = others.iter().map(|address| address.parse().unwrap()).collect();
        Grant { address: address.parse().unwrap(), others, expires: None, registry: None, policy: None, no_ipv6: None }
    }

    fn no_server() -> Refusal {
        Refusal { code: 11, msg: "no server".into() }
    }

    fn refusal() -> Answer {
        Err(no_server())
    }

    /// What the caller is told after these answers, and after how many.
    fn told(is_alone: bool, answers: &[(Family, Answer)]) -> Option<(usize, Answer)> {
        let mut callers = Callers::default();
        callers.add(Caller(1), oneshot::channel().0, is_alone);
        let mut heard = answers.iter().zip(1..).filter_map(|((family, answer), at)| {
            let (_, told) = callers.hear(*family, Caller(1), answer.clone())?;
            Some((at, told))
        });
        heard.next()
    }

    #[test]
    fn a_caller_hears_of_both_families_together() {
        use Family::{V4, V6};
        let (four, six) = ("192.0.2.100", "2001:db8::100");
        let [a, b] = [four, six].map(|address| Ok(grant(address, &[])));
        let with = |others: &[&str]| Ok(grant(four, others));
        assert_eq!(told(true, &[(V4, a.clone())]), Some((1, with(&[]))));
        assert_eq!(told(false, &[(V4, a.clone())]), None);
        assert_eq!(told(false, &[(V4, a.clone()), (V6, b.clone())]), Some((2, with(&[six]))));
        assert_eq!(told(false, &[(V6, b.clone()), (V4, a.clone())]), Some((2, with(&[six]))));
        let without = Ok(Grant { no_ipv6: Some(no_server()), ..grant(four, &[]) });
        assert_eq!(told(false, &[(V6, refusal()), (V4, a.clone())]), Some((2, without)), "it follows");
        assert_eq!(told(false, &[(V4, refusal()), (V6, b.clone())]), Some((1, refusal())));
    }
}
