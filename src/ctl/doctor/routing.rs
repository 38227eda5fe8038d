//! Findings about the routing daemons of `[[gateway]]`: whether they are witnesses of what gateways announce, and whether
//! this node's own announce its VIPs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ctl::way::is_served;
use crate::lease::gateway::{self, Error, Known};
use crate::lease::settings::{Gateway, RoutingDaemon};
use crate::model::Family;
use crate::net::sysctl as setting;
use crate::node::config::Config;
use crate::with_causes;

use super::scene::{Scene, Vip};
use super::{Finding, advice, sysctl, vips};

/// A daemon is asked of so many VIPs: what ails one mostly ails all.
const ASKED: usize = 100;

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let gateways = scene.good_config().map(|config| config.lease.gateways.as_slice()).unwrap_or_default();
    if gateways.is_empty() {
        return Vec::new();
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => gateways.iter().flat_map(|gateway| runtime.block_on(of_gateway(scene, gateway))).collect(),
        Err(error) => {
            let why = "Whether it is a witness of what gateways announce is not known.";
            vec![Finding::error(format!("no routing daemon can be asked: {error}"), why, advice("Ask again."))]
        }
    }
}

async fn of_gateway(scene: &Scene<'_>, gateway: &Gateway) -> Vec<Finding> {
    for family in families(scene) {
        // Any address will do: whether it can be answered for doesn't depend on it.
        if let Err(error) = gateway::ask(gateway, any_of(family)).await {
            return vec![no_witness(&error)];
        }
    }
    match gateway::is_here(gateway).await {
        Ok(true) => match announced(scene, gateway).await {
            Ok(findings) => findings,
            Err(error) => vec![no_witness(&error)],
        },
        // A gateway's own daemon has no route of this node's but those that are announced to it.
        Ok(false) => Vec::new(),
        Err(error) => vec![no_witness(&error)],
    }
}

/// Those of VIPs' addresses.
fn families(scene: &Scene<'_>) -> BTreeSet<Family> {
    let has_ipv6 =
        |config: &Config| config.lease6.is_some() || config.delegate.is_some() || !config.lease.beside.is_nothing();
    let six = scene.good_config().is_some_and(has_ipv6).then_some(Family::V6);
    std::iter::once(Family::V4).chain(six).collect()
}

/// Of a network for documentation.
fn any_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

fn no_witness(error: &Error) -> Finding {
    let why = "Nothing is known of what gateways announce: no VIP that is new on this node gets an address.";
    let cure = match error {
        Error::NotKept { setting, .. } => {
            format!(
                "Put `{setting}` into its configuration, as `viproutectl announce` writes it, and restart its sessions."
            )
        }
        Error::NoSession(_) => {
            "Let the daemon's own commands say why: `birdc show protocols all`, `vtysh -c \"show bgp summary\"`.".into()
        }
        Error::Forbidden(_) => {
            "systemctl edit viprouted: under [Service], SupplementaryGroups= with the socket's group.".into()
        }
        Error::Unreachable { .. } | Error::Slow(_) | Error::Answer { .. } => {
            "Start the daemon, or take its [[gateway]] out of viprouted's configuration.".into()
        }
    };
    Finding::error(with_causes(error), why, advice(cure))
}

/// What this node's daemon has of each VIP that has a ready replica.
async fn announced(scene: &Scene<'_>, gateway: &Gateway) -> Result<Vec<Finding>, Error> {
    let local = |vip: &&Vip| {
        let local = vip.endpoints.iter().map(|(_, endpoint)| endpoint).filter(|endpoint| endpoint.backend.is_local());
        !vip.record.withdrawn && is_served(local)
    };
    let mut known = Vec::new();
    // Routers may be told of IPv4 addresses alone.
    let exchanges_ipv6 = gateway::exchanges(gateway, Family::V6).await?;
    for vip in scene.vips.iter().filter(local).take(ASKED) {
        for address in vip.record.addresses.iter().filter(|address| address.is_ipv4() || exchanges_ipv6) {
            known.push((vip.key.to_string(), gateway::known(gateway, address).await?));
        }
    }
    let mut findings = Vec::new();
    let missing: BTreeSet<_> = known.iter().filter(|(_, known)| !known.learned).map(|(name, _)| name.clone()).collect();
    let missing: Vec<_> = missing.into_iter().collect();
    if !missing.is_empty() {
        findings.push(not_learned(gateway.daemon, &missing));
    }
    findings.extend(taken(&known));
    Ok(findings)
}

fn not_learned(daemon: RoutingDaemon, missing: &[String]) -> Finding {
    const COMPAT: &str = "net.ipv4.nexthop_compat_mode";
    let why = "Routers are told of no replica of this node.";
    match daemon {
        RoutingDaemon::Bird if setting::get(COMPAT).is_ok_and(|mode| mode == 0) => {
            let what = format!(
                "{COMPAT} is 0, and BIRD, which doesn't understand routes then, doesn't have {}",
                vips(missing)
            );
            Finding::error(what, why, sysctl(COMPAT, 1))
        }
        RoutingDaemon::Bird => {
            let what = format!("BIRD doesn't have the route of {}", vips(missing));
            let cure = "A kernel protocol with `learn` must import routes of krt_source 118, as `viproutectl announce bird` writes it.";
            Finding::error(what, why, advice(cure))
        }
        RoutingDaemon::Frr => {
            let what = format!("FRR's bgpd doesn't have the route of {}", vips(missing));
            let cure = "`redistribute kernel` must permit it, as `viproutectl announce frr` writes it, and zebra run.";
            Finding::error(what, why, advice(cure))
        }
    }
}

/// BIRD prefers BGP's to what it has learned; FRR puts it in as soon as this node has none.
fn taken(known: &[(String, Known)]) -> Option<Finding> {
    let (mut names, from): (Vec<_>, Vec<_>) =
        known.iter().filter_map(|(name, known)| Some((name.clone(), known.taken.first()?))).unzip();
    names.dedup();
    let first = from.first()?;
    let what = format!("{first} takes another node's route to {}", vips(&names));
    let why = "BIRD announces that in place of this node's own, and FRR puts it in once this node has no replica that is ready.";
    let cure = "Refuse VIPs on import, as `viproutectl announce` writes it.";
    Some(Finding::error(what, why, advice(cure)))
}
