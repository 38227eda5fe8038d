//! The settings of leases: which addresses VIPs may have, and where they come from.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::lease::Settings;
use crate::lease::allow::Allow;
use crate::lease::beside::Beside;
use crate::lease::pools::Pools;
use crate::lease::settings::{Backend, Dhcp};

use super::membership::Membership;
use super::table::Reader;
use super::{
    Choice, Error, HOLD, any_network, any_unicast, backend_name, cluster, duration, gateways, ipv6, limits, pins,
    pools, quoted,
};

/// Where VIPs' addresses come from, and which they may be.
pub(super) fn lease(top: &mut Reader, dhcp: Dhcp, membership: Option<&Membership>) -> Result<Settings, Error> {
    let allow: Vec<IpNetwork> = top.list("allow", "a network such as 10.118.0.0/16", any_network)?;
    let allow = Some(allow).filter(|networks| !networks.is_empty()).map(Allow::new);
    let any = allow.clone().unwrap_or_default();
    let (pools, prefixes) = pools::pools(top, &any)?;
    let backend = backend(top, dhcp, pools)?;
    if allow.is_none() && matches!(backend, Backend::Dhcp(Dhcp { relay: Some(_), .. })) {
        let expected =
            "the networks that VIPs come from, such as [\"10.118.0.0/16\"] (with dhcp.relay it has no default)";
        return Err(Error::Missing { key: "allow".into(), expected });
    }
    let peers = peers(top, membership)?;
    let (pins, pins6) = pins(top, &any)?;
    let beside = Beside { prefixes, pins: pins6 };
    ipv6::check_pins(&beside)?;
    Ok(Settings {
        cluster: cluster(top)?,
        hold: top.text("hold", HOLD, duration)?.unwrap_or(Duration::from_secs(600)),
        peers,
        pins,
        beside,
        limits: limits(top)?,
        gateways: gateways(top)?,
        allow,
        backend,
    })
}

/// `backend`, of these two.
fn backend(top: &mut Reader, dhcp: Dhcp, pools: Option<Pools>) -> Result<Backend, Error> {
    let expected = "a network within allow";
    Ok(match top.text("backend", "\"dhcp\" or \"pool\"", backend_name)? {
        None | Some(Choice::Dhcp) => Backend::Dhcp(dhcp),
        Some(Choice::Pool) => Backend::Pool(pools.ok_or(Error::Missing { key: "pool.cidr".into(), expected })?),
    })
}

/// `peers`, and the nodes of `[membership]` that are known before any of them was heard.
fn peers(top: &mut Reader, membership: Option<&Membership>) -> Result<Vec<IpAddr>, Error> {
    let peers = top.list("peers", "a unicast address", any_unicast)?;
    if membership.is_some() && !peers.is_empty() {
        let expected = "none beside [membership]: its nodes find each other (membership.seeds)";
        return Err(top.bad("peers", &format!("[{}, …]", quoted(peers[0])), expected));
    }
    let seeds = membership.into_iter().flat_map(Membership::seed_addresses);
    Ok(peers.into_iter().chain(seeds).collect())
}
