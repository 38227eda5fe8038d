//! How long to wait: retransmission, renewal, and the times of a lease.

use std::time::{Duration, SystemTime};

use rand::RngExt;
use rand::rngs::StdRng;

use super::Lease;
use super::message::Grant;

/// The longest wait between two DISCOVERs (RFC 2131 section 4.1).
const BACKOFF_MAX: u32 = 64;

/// Renewals are tried this far apart at least (RFC 2131 section 4.4.5), unless the lease is short.
const RENEWAL_MIN: Duration = Duration::from_secs(60);
/// And at most, so that a server that comes back is found soon. The RFC has no such limit.
const RENEWAL_MAX: Duration = Duration::from_secs(600);

/// `wait`, give or take a fifth, so that nodes and identities don't stay in step.
pub fn about(wait: Duration, rng: &mut StdRng) -> Duration {
    wait.mul_f64(rng.random_range(0.8..1.2))
}

/// The wait after the `tries`th message without an answer: 1 s, 1 s, 2 s, 4 s … 64 s. It starts shorter than the 4 s of
/// RFC 2131 section 4.1, since a pod waits for the address: what the third shows, silence or an empty pool, is known after 5 s
/// at most, and half of an ADD's time is left to act on it. A server that pings before it offers takes 3 s.
pub fn backoff(tries: u32, rng: &mut StdRng) -> Duration {
    let seconds = 1u32.checked_shl(tries.saturating_sub(2)).unwrap_or(BACKOFF_MAX).min(BACKOFF_MAX);
    about(Duration::from_secs(seconds.into()), rng)
}

/// The wait before an unanswered renewal is tried again: half of what is left to T2, then to the end (RFC 2131
/// section 4.4.5). Never past either, and never zero before the end.
pub fn renewal_wait(lease: &Lease, now: SystemTime, rng: &mut StdRng) -> Duration {
    let next = [lease.rebind, lease.expires].into_iter().flatten().find(|&at| at > now);
    let Some(left) = next.and_then(|at| at.duration_since(now).ok()) else {
        return about(RENEWAL_MAX, rng);
    };
    let whole = lease.expires.and_then(|end| end.duration_since(lease.granted).ok());
    let shortest = whole.map_or(RENEWAL_MIN, |whole| RENEWAL_MIN.min(whole / 8));
    about((left / 2).clamp(shortest, RENEWAL_MAX), rng).min(left)
}

/// The lease a grant amounts to, `asked` being when its REQUEST was sent. T1 and T2 are the server's if they are in
/// order, else half and seven eighths of the lease; T1 comes up to a tenth earlier, so that identities bound at the
/// same time aren't renewed at the same time for ever.
pub fn lease(grant: &Grant, asked: SystemTime, rng: &mut StdRng) -> Lease {
    let after = |part: f64| asked + Duration::from_secs(grant.lease.into()).mul_f64(part);
    let whole = f64::from(grant.lease);
    let (t1, t2) = [(grant.t1, grant.t2), (None, None)]
        .map(|(t1, t2)| (t1.map_or(0.5, |t1| f64::from(t1) / whole), t2.map_or(0.875, |t2| f64::from(t2) / whole)))
        .into_iter()
        .find(|&(t1, t2)| 0.0 < t1 && t1 < t2 && t2 < 1.0)
        .unwrap_or((0.5, 0.875));
    let finite = grant.lease != u32::MAX;
    Lease {
        address: grant.address,
        server: Some(grant.server),
        granted: asked,
        renew: finite.then(|| after(t1 * rng.random_range(0.9..1.0))),
        rebind: finite.then(|| after(t2)),
        expires: finite.then(|| after(1.0)),
        infrastructure: grant.infrastructure.clone(),
        told: false,
        prefix: grant.prefix,
    }
}

/// When a lease is renewed by a client that isn't to do so, because it hasn't heard that another one has: about half way from T1 to
/// T2, and not at the same time as others that wait. `None` for an infinite lease.
pub fn late(lease: &Lease, rng: &mut StdRng) -> Option<SystemTime> {
    let (renew, rebind) = (lease.renew?, lease.rebind?);
    let between = rebind.duration_since(renew).unwrap_or_default();
    Some(renew + between.mul_f64(rng.random_range(0.4..0.6)))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::dhcp::Server;

    fn granted(lease: u32, t1: Option<u32>, t2: Option<u32>) -> Lease {
        let address = IpAddr::from([10, 77, 0, 100]);
        let server = Server::at(IpAddr::from([10, 77, 0, 1]));
        let grant = Grant { address, server, lease, t1, t2, infrastructure: Vec::new(), prefix: None };
        super::lease(&grant, SystemTime::UNIX_EPOCH, &mut StdRng::seed_from_u64(1))
    }

    fn seconds(at: Option<SystemTime>) -> f64 {
        at.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
    }

    #[test]
    fn a_servers_times_count_if_they_are_in_order() {
        let t2 = |t1, t2| seconds(granted(600, t1, t2).rebind);
        assert!((t2(Some(20), Some(40)) - 40.0).abs() < 1e-6);
        for (t1, t2_sent) in [(40, 20), (0, 40), (20, 600), (20, 9999), (50, 50)] {
            assert!((t2(Some(t1), Some(t2_sent)) - 525.0).abs() < 1e-6, "{t1} {t2_sent}");
        }
        assert!((t2(Some(20), None) - 525.0).abs() < 1e-6);
        let t1 = seconds(granted(600, None, None).renew);
        assert!((270.0..=300.0).contains(&t1), "{t1}");
    }

    #[test]
    fn an_infinite_lease_has_no_times() {
        let lease = granted(u32::MAX, Some(20), Some(40));
        assert_eq!((lease.renew, lease.rebind, lease.expires), (None, None, None));
    }

    #[test]
    fn the_wait_doubles_to_a_minute() {
        let mut rng = StdRng::seed_from_u64(1);
        for (tries, about) in [(1, 1.0), (2, 1.0), (3, 2.0), (4, 4.0), (8, 64.0), (9, 64.0), (40, 64.0)] {
            let wait = backoff(tries, &mut rng).as_secs_f64();
            assert!((0.8 * about..1.2 * about).contains(&wait), "{tries}: {wait}");
        }
    }

    proptest! {
        #[test]
        fn times_are_ordered(seconds: u32, t1: Option<u32>, t2: Option<u32>, late in 0.0..1.0) {
            prop_assume!(seconds > 0 && seconds < u32::MAX);
            let lease = granted(seconds, t1, t2);
            let (renew, rebind) = (lease.renew.unwrap(), lease.rebind.unwrap());
            let end = lease.expires.unwrap();
            prop_assert!(lease.granted < renew && renew < rebind && rebind < end);
            let now = lease.granted + Duration::from_secs(seconds.into()).mul_f64(late);
            let wait = renewal_wait(&lease, now, &mut StdRng::seed_from_u64(u64::from(seconds)));
            prop_assert!(wait > Duration::ZERO && now + wait <= end);
        }
    }
}
