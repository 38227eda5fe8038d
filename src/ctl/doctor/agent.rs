//! Findings about viprouted: whether it runs, and how its leases are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;

use crate::VERSION;
use crate::api::client;
use crate::api::protocol::{LeaseEntry, LeaseState, Status, VipStatus};
use crate::chain::all_set_aside;
use crate::ctl::ANSWER;
use crate::lease::allow::Allow;
use crate::lease::pools::Range;
use crate::lease::settings::{Backend, has_several};
use crate::node::config::Config;
use crate::registry::State;
use crate::with_causes;

use super::plugin;
use super::scene::Scene;
use super::{Finding, advice, command, quoted, restart, vips};

/// What the state machine says of an address that another host has.
const IN_CONFLICT: &str = "in conflict";

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &scene.config {
        Some(Err(error)) => {
            let why = "viprouted won't start with it again.";
            let path = scene.places.config.display();
            let what = format!("{path}: {}", with_causes(error));
            findings.push(Finding::error(what, why, advice(format!("Put {path} right."))));
        }
        Some(Ok(config)) => {
            findings.extend(pools(scene, config));
            findings.extend(pods_ranges(scene, config));
        }
        None => {}
    }
    match &scene.agent {
        Err(error) => {
            let why = "No pod can join a new VIP, no lease is renewed, and nothing on the node is repaired.";
            findings.push(Finding::error(with_causes(error), why, restart()));
            findings.extend(waiting(scene));
        }
        Ok(status) => {
            findings.extend(version(scene, status));
            let socket = &scene.places.allocator;
            let leases = client::leases(socket, ANSWER).map(|leases| leases.leases).unwrap_or_default();
            // A network that was set aside is reported with the networks.
            let aside = all_set_aside(&scene.places.conf_dir);
            let is_network = |problem: &str| aside.iter().any(|path| problem.contains(&path.display().to_string()));
            findings.extend(
                status.problems.iter().filter(|problem| !is_network(problem)).map(|problem| of_problem(problem)),
            );
            // What one VIP lacks is reported with that VIP.
            let reported =
                |why: &str| status.vips.iter().filter_map(|vip| vip.error.as_deref()).any(|error| why.contains(error));
            findings.extend(status.readiness_errors.iter().filter(|why| !reported(why)).map(|why| no_new_vip(why)));
            findings.extend(of_vips(&status.vips));
            findings.extend(scene.good_config().and_then(|config| in_lock_step(config, &status.vips)));
            findings.extend(status.vips.iter().filter_map(claimed));
            findings.extend(overdue(&leases, SystemTime::now()));
        }
    }
    findings
}

/// The program that runs, which may be another than the file.
fn version(scene: &Scene<'_>, status: &Status) -> Option<Finding> {
    let what = match &status.version {
        Some(version) if version == VERSION => return None,
        Some(version) => format!("the viprouted that runs is of version {version}, viproutectl of {VERSION}"),
        None => format!("the viprouted that runs is older than viproutectl, which is of version {VERSION}"),
    };
    let file = std::env::current_exe().map(|own| own.with_file_name("viprouted"));
    let is_ours = file.and_then(|file| plugin::version_of(&file, "viprouted")).is_ok_and(|version| version == VERSION);
    let cure = if is_ours { restart() } else { scene.installed.again() };
    Some(Finding::warning(what, plugin::TWO_VERSIONS, cure))
}

fn of_problem(problem: &str) -> Finding {
    Finding::warning(problem, "viprouted says so.", command("journalctl -u viprouted"))
}

/// Replicas that get no connections before the agent has checked them.
fn waiting(scene: &Scene<'_>) -> Option<Finding> {
    let waits = |endpoint: &crate::registry::Endpoint| endpoint.health.is_some() && endpoint.state == State::Pending;
    let number = scene.endpoints().filter(|(_, endpoint)| waits(endpoint)).count();
    let what = format!("{number} replicas wait for their health check, and no viprouted runs to make it");
    (number > 0).then(|| Finding::error(what, "They get no connections.", restart()))
}

/// Each node's pool gives the lowest address that is free on this node, unless nodes know each other and one decides for all.
fn pools(scene: &Scene<'_>, config: &Config) -> Vec<Finding> {
    let one_decides = config.membership.is_some() || config.kubernetes.is_some();
    if one_decides || !matches!(config.lease.backend, Backend::Pool(_)) || !has_several(&config.lease.peers) {
        return Vec::new();
    }
    let why = "Each node's pool gives out addresses by itself: another node may have another address for this VIP, or this \
               address for another VIP.";
    let unpinned: Vec<_> = scene.vips.iter().filter(|vip| !config.lease.pins.contains_key(&vip.key)).collect();
    if unpinned.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = unpinned.iter().map(|vip| vip.key.to_string()).collect();
    // printf repeats its format for all that follows.
    let pins: Vec<String> = unpinned.iter().map(|vip| format!("{} {}", vip.key, vip.record.address())).collect();
    let pin = format!(r#"printf '\n[[pin]]\nvip = "%s"\naddress = "%s"\n' {}"#, pins.join(" "));
    let cure = format!("{pin} >>{} && systemctl restart viprouted", quoted(&scene.places.config));
    let what = match &names[..] {
        [name] => format!("{name} has its address from a pool, on one of several nodes, and no pin"),
        names => format!("{} have their addresses from a pool, on one of several nodes, and no pins", vips(names)),
    };
    vec![Finding::warning(what, why, command(cure))]
}

/// Nodes that don't know each other and have one pool probe the same addresses at the same time.
fn in_lock_step(config: &Config, all: &[VipStatus]) -> Option<Finding> {
    let is_alone = config.membership.is_none() && config.kubernetes.is_none();
    let Backend::Pool(pools) = &config.lease.backend else { return None };
    let met = |status: &&VipStatus| status.error.as_ref().is_some_and(|error| error.contains(IN_CONFLICT));
    let names: Vec<String> = all.iter().filter(met).map(|status| status.vip.clone()).collect();
    if !is_alone || names.is_empty() {
        return None;
    }
    let what = format!("other hosts have addresses of {pools} that were to be given to {}", vips(&names));
    let why =
        "If those are nodes with viproute and the same pool, each takes what the other probes for taken, in lock step.";
    let cure = "Let nodes of one pool know each other ([membership]), so that one gives out its addresses for all, or give each node addresses of its \
                own.";
    Some(Finding::hint(what, why, advice(cure)))
}

/// Addresses that the pods' own plugins give out, too: the kernel delivers such a one to whichever was there first.
fn pods_ranges(scene: &Scene<'_>, config: &Config) -> Vec<Finding> {
    let path = scene.places.config.display();
    let pools = match &config.lease.backend {
        Backend::Pool(pools) => Some(pools),
        Backend::Dhcp(_) => None,
    };
    let ranges =
        || pools.iter().flat_map(|pools| pools.iter()).flat_map(|pool| pool.ranges.iter().map(move |at| (pool, at)));
    let allowed = config.lease.allow.iter().flat_map(Allow::networks).filter_map(|network| match network {
        IpNetwork::V4(network) => Some(*network),
        IpNetwork::V6(_) => None,
    });
    let mut findings = Vec::new();
    for (network, range) in
        scene.networks.iter().flat_map(|network| network.ranges().into_iter().map(move |r| (network, r)))
    {
        let from = network.path.display();
        if let Some((pool, at)) = ranges().find(|(_, at)| at.overlaps(Range::Network(range))) {
            let name = &pool.name;
            let what = format!("{at} of pool {name} overlaps {range}, from which {from} gives pods their addresses");
            let why = "A pod's own address may become a VIP, and a VIP a pod's address: one of them is cut off.";
            let cure =
                format!("In {path}, let cidr of pool {name} be what is not in use otherwise, and restart viprouted.");
            findings.push(Finding::error(what, why, advice(cure)));
        } else if let Some(allowed) = allowed.clone().find(|allowed| allowed.overlaps(range)) {
            let what =
                format!("allow holds {allowed}, which overlaps {range}, from which {from} gives pods their addresses");
            let why = "An address that a pod has, or will have, may be taken for a VIP's.";
            let cure = format!("In {path}, name in allow only networks that VIPs come from, and restart viprouted.");
            findings.push(Finding::warning(what, why, advice(cure)));
        }
    }
    findings
}

/// What is amiss with a lease, in the order of how much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Expired,
    Failed,
    Late,
}

/// One finding for all VIPs in the same trouble for the same reason.
fn of_vips(all: &[VipStatus]) -> Vec<Finding> {
    let mut causes: BTreeMap<(Trouble, Option<&str>), Vec<String>> = BTreeMap::new();
    for VipStatus { vip, state, error, .. } in all {
        let trouble = match state {
            LeaseState::Expired => Trouble::Expired,
            LeaseState::Failed => Trouble::Failed,
            LeaseState::Selecting | LeaseState::Probing | LeaseState::Bound if error.is_some() => Trouble::Late,
            LeaseState::Selecting | LeaseState::Probing | LeaseState::Bound => continue,
        };
        causes.entry((trouble, error.as_deref())).or_default().push(vip.clone());
    }
    causes.into_iter().map(|((trouble, error), names)| of_cause(trouble, error, &names)).collect()
}

fn of_cause(trouble: Trouble, error: Option<&str>, names: &[String]) -> Finding {
    let because = error.map_or_else(String::new, |error| format!(": {error}"));
    let (shown, one) = (vips(names), names.len() == 1);
    let journal = command("journalctl -u viprouted");
    match trouble {
        Trouble::Expired => {
            let why = "Its address may be another host's by now; where dhcp.on_lost is \"withdraw\", it isn't served.";
            let what =
                if one { format!("the lease of {shown} is lost") } else { format!("the leases of {shown} are lost") };
            Finding::error(what + &because, why, journal)
        }
        Trouble::Failed => {
            let why = "Pods that name it don't start until there is an address for it.";
            let gets = if one { "gets no address" } else { "get no addresses" };
            Finding::error(format!("{shown} {gets}{because}"), why, journal)
        }
        Trouble::Late => Finding::warning(shown + &because, "viprouted tries again by itself.", journal),
    }
}

fn no_new_vip(why: &str) -> Finding {
    let matters = "Pods that name a VIP which has no address yet don't start.";
    let cure = advice("Put that right; viprouted goes on asking by itself.");
    Finding::error(format!("a new VIP would get no address now: {why}"), matters, cure)
}

fn claimed(status: &VipStatus) -> Option<Finding> {
    let VipStatus { vip, address, claimed_by, .. } = status;
    let (mac, address) = (claimed_by.as_ref()?, (*address)?);
    let what = format!("{mac} says that {address}, the address of {vip}, is its own");
    let why = "Clients of the link reach that host or this node, whichever spoke last.";
    let cure = format!(
        "Find that host (`ip neigh | grep {mac}`, the switch's table) and take {address} from it, or keep {address} out of the \
         DHCP server's pool. If it is another node with viproute, give both the same `cluster` and `peers`, or each a `cluster` \
         of its own."
    );
    Some(Finding::error(what, why, advice(cure)))
}

/// By then a client has broadcast to all servers for a while (RFC 2131 section 4.4.5: T2 is at 7/8 of the lease). One finding
/// for a server.
fn overdue(leases: &[LeaseEntry], now: SystemTime) -> Vec<Finding> {
    let Ok(now) = now.duration_since(UNIX_EPOCH) else { return Vec::new() };
    let mut servers: BTreeMap<Option<IpAddr>, Vec<(String, u64)>> = BTreeMap::new();
    for lease in leases {
        let Some(expires) = lease.expires else { continue };
        let whole = expires.saturating_sub(lease.granted);
        let left = expires.saturating_sub(now.as_secs());
        // viprouted renews no lease that is out of use.
        if lease.left.is_none() && left * 10 < whole {
            servers.entry(lease.server).or_default().push((lease.vip.clone(), left));
        }
    }
    servers.into_iter().map(|(server, late)| silent(server, &late)).collect()
}

fn silent(server: Option<IpAddr>, late: &[(String, u64)]) -> Finding {
    let names: Vec<String> = late.iter().map(|(vip, _)| vip.clone()).collect();
    let shown = vips(&names);
    let what = match late {
        [(_, left)] => format!("the lease of {shown} runs out in {left} s and was not renewed"),
        late => {
            let last = late.iter().map(|(_, left)| *left).max().unwrap_or_default();
            format!("the leases of {shown} run out within {last} s and were not renewed")
        }
    };
    let server = server.map_or_else(|| "The DHCP server".to_owned(), |server| format!("The DHCP server {server}"));
    let why = format!("{server} doesn't answer. When the lease is over, the VIP may be taken from its replicas.");
    Finding::warning(what, why, command("journalctl -u viprouted"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ctl::doctor::Severity;

    fn vip_status(vip: String, state: LeaseState) -> VipStatus {
        let (address, expires, error, held_until) = (None, None, None, None);
        VipStatus { vip, address, state, expires, error, held_until, claimed_by: None, renewer: None }
    }

    #[test]
    fn a_lease_that_is_lost_is_an_error_and_one_that_is_late_a_warning() {
        let found = |state, error: Option<&str>| {
            let (vip, error) = ("shop/web".to_owned(), error.map(str::to_owned));
            let found = of_vips(&[VipStatus { error, ..vip_status(vip, state) }]);
            found.into_iter().next().map(|found| (found.severity, found.what))
        };
        assert_eq!(found(LeaseState::Bound, None), None);
        assert_eq!(found(LeaseState::Selecting, None), None);
        let lost = "the lease of shop/web is lost: NAK".to_owned();
        assert_eq!(found(LeaseState::Expired, Some("NAK")), Some((Severity::Error, lost)));
        let late = "shop/web: no server answers".to_owned();
        assert_eq!(found(LeaseState::Selecting, Some("no server answers")), Some((Severity::Warning, late)));
    }

    #[test]
    fn nodes_in_lock_step_are_guessed_where_addresses_are_in_conflict() {
        let met = |settings: &str, error: &str| {
            let status =
                VipStatus { error: Some(error.into()), ..vip_status("shop/web".into(), LeaseState::Selecting) };
            in_lock_step(&Config::parse(settings).unwrap(), &[status]).map(|found| found.what)
        };
        let error = "in conflict, asking for another: 10.118.0.1: 02:00:00:00:00:02 answers ARP for it";
        let what = "other hosts have addresses of pool default (10.118.0.0/24) that were to be given to shop/web";
        assert_eq!(met("backend = \"pool\"", error).as_deref(), Some(what));
        assert_eq!(met("backend = \"pool\"", "no address of pool default (10.118.0.0/24) is free"), None);
        assert_eq!(met("backend = \"pool\"\n[membership]", error), None);
        assert_eq!(met("", error), None, "by DHCP a server decides");
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
            renewer: None,
        };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(overdue(&[lease(None)], at(1900)), []);
        let found = overdue(&[lease(None)], at(1950));
        assert!(found[0].what.contains("shop/web runs out in 50 s"), "{found:?}");
        assert_eq!(overdue(&[lease(Some(1500))], at(1950)), [], "out of use");
        assert_eq!(overdue(&[LeaseEntry { expires: None, ..lease(None) }], at(1950)), [], "for ever");
        let many: Vec<_> = (0..150).map(|number| LeaseEntry { vip: format!("shop/{number}"), ..lease(None) }).collect();
        let found = overdue(&many, at(1950));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].what.contains("150 VIPs (shop/0, shop/1, shop/10 and 147 more) run out within 50 s"),
            "{found:?}"
        );
    }

    #[test]
    fn many_vips_with_one_cause_are_one_finding() {
        let vip = |number: usize, error: &str| VipStatus {
            error: Some(error.to_owned()),
            ..vip_status(format!("shop/{number:03}"), LeaseState::Failed)
        };
        let mut all: Vec<_> = (0..150).map(|number| vip(number, "no answer")).collect();
        all.push(vip(150, "the pool is empty"));
        let what: Vec<_> = of_vips(&all).into_iter().map(|found| found.what).collect();
        let many = "150 VIPs (shop/000, shop/001, shop/002 and 147 more) get no addresses: no answer";
        assert_eq!(what, [many, "shop/150 gets no address: the pool is empty"]);
    }
}
