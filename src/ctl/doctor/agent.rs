//! Findings about viprouted: whether it runs, and how its leases are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::allocator::client;
use crate::allocator::config::{Backend, Config};
use crate::allocator::protocol::{LeaseEntry, LeaseState, VipStatus};
use crate::registry::State;
use crate::with_causes;

use super::scene::Scene;
use super::{Finding, advice, command, quoted, restart};

/// viprouted answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &scene.config {
        Some(Err(error)) => {
            let why = "viprouted won't start with it again.";
            let path = scene.places.config.display();
            let what = format!("{path}: {}", with_causes(error));
            findings.push(Finding::error(what, why, advice(format!("Put {path} right."))));
        }
        Some(Ok(config)) => findings.extend(pools(scene, config)),
        None => {}
    }
    match &scene.agent {
        Err(error) => {
            let why = "No pod can join a new VIP, no lease is renewed, and nothing on the node is put right.";
            findings.push(Finding::error(with_causes(error), why, restart()));
            findings.extend(waiting(scene));
        }
        Ok(status) => {
            let socket = &scene.places.allocator;
            let leases = client::leases(socket, TIMEOUT).map(|leases| leases.leases).unwrap_or_default();
            findings.extend(status.problems.iter().map(|problem| of_problem(problem)));
            findings.extend(status.vips.iter().filter_map(of_vip));
            findings.extend(leases.iter().filter_map(|lease| overdue(lease, SystemTime::now())));
        }
    }
    findings
}

fn of_problem(problem: &str) -> Finding {
    Finding::warning(problem, "viprouted says so.", command("journalctl -u viprouted"))
}

/// Replicas that only the agent can bring in.
fn waiting(scene: &Scene<'_>) -> Option<Finding> {
    let waits = |endpoint: &crate::registry::Endpoint| endpoint.health.is_some() && endpoint.state == State::Pending;
    let number = scene.endpoints().filter(|(_, endpoint)| waits(endpoint)).count();
    let what = format!("{number} replicas wait for their health check, and there is nobody to make it");
    (number > 0).then(|| Finding::error(what, "They get no connections.", restart()))
}

/// Each node's pool gives the lowest address that is free on this node.
fn pools(scene: &Scene<'_>, config: &Config) -> Vec<Finding> {
    if !matches!(config.backend, Backend::Pool(_)) || config.peers.len() < 2 {
        return Vec::new();
    }
    let why = "Each node's pool gives out addresses by itself: another node may have another address for this VIP, or this \
               address for another VIP.";
    let unpinned = scene.vips.iter().filter(|vip| !config.pins.contains_key(&vip.key));
    let finding = |vip: &super::scene::Vip| {
        let (key, address) = (&vip.key, vip.record.address);
        let pin = format!(r#"printf '\n[[pin]]\nvip = "{key}"\naddress = "{address}"\n'"#);
        let cure = format!("{pin} >>{} && systemctl restart viprouted", quoted(&scene.places.config));
        let what = format!("{key} has its address from a pool, on one of several nodes, and no pin");
        Finding::warning(what, why, command(cure))
    };
    unpinned.map(finding).collect()
}

fn of_vip(vip: &VipStatus) -> Option<Finding> {
    let VipStatus { vip, state, error, .. } = vip;
    let because = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    let journal = || command("journalctl -u viprouted");
    match state {
        LeaseState::Lost => {
            let why = "Its address may be another host's by now; where dhcp.on_lost is \"withdraw\", it isn't served.";
            Some(Finding::error(format!("the lease of {vip} is lost{because}"), why, journal()))
        }
        LeaseState::Refused => {
            let why = "Pods that name it don't start until there is an address for it.";
            Some(Finding::error(format!("{vip} gets no address{because}"), why, journal()))
        }
        LeaseState::Asking | LeaseState::Checking | LeaseState::Held => {
            let why = "viprouted tries again by itself.";
            error.as_ref().map(|error| Finding::warning(format!("{vip}: {error}"), why, journal()))
        }
    }
}

/// A client has asked everybody for a while by then (RFC 2131 section 4.4.5: T2 is at 7/8 of the lease).
fn overdue(lease: &LeaseEntry, now: SystemTime) -> Option<Finding> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let expires = lease.expires?;
    let whole = expires.saturating_sub(lease.granted);
    let left = expires.saturating_sub(now);
    // Nobody would renew one that isn't used any more.
    if lease.left.is_some() || left * 10 >= whole {
        return None;
    }
    let what = format!("the lease of {} runs out in {left} s and was not renewed", lease.vip);
    let server =
        lease.server.map_or_else(|| "The DHCP server".to_owned(), |server| format!("The DHCP server {server}"));
    let why = format!("{server} doesn't answer. When the lease is over, the VIP may be taken from its replicas.");
    Some(Finding::warning(what, why, command("journalctl -u viprouted")))
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_lease_that_is_lost_is_an_error_and_one_that_is_late_a_warning() {
        let found = |state, error: Option<&str>| {
            let (vip, error) = ("shop/web".to_owned(), error.map(str::to_owned));
            let found = of_vip(&VipStatus { vip, address: None, state, expires: None, error });
            found.map(|found| (found.severity, found.what))
        };
        assert_eq!(found(LeaseState::Held, None), None);
        assert_eq!(found(LeaseState::Asking, None), None);
        let lost = "the lease of shop/web is lost: NAK".to_owned();
        assert_eq!(found(LeaseState::Lost, Some("NAK")), Some((Severity::Error, lost)));
        let late = "shop/web: nobody answers".to_owned();
        assert_eq!(found(LeaseState::Asking, Some("nobody answers")), Some((Severity::Warning, late)));
    }

    #[test]
    fn a_lease_is_overdue_in_its_last_tenth() {
        let lease = |left| LeaseEntry {
            vip: "shop/web".into(),
            address: [10, 118, 0, 1].into(),
            server: None,
            granted: 1000,
            expires: Some(2000),
            left,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(overdue(&lease(None), at(1900)), None);
        let found = overdue(&lease(None), at(1950)).unwrap();
        assert!(found.what.contains("shop/web runs out in 50 s"), "{found:?}");
        assert_eq!(overdue(&lease(Some(1500)), at(1950)), None, "nobody uses it");
        assert_eq!(overdue(&LeaseEntry { expires: None, ..lease(None) }, at(1950)), None, "for ever");
    }
}
