//! Findings about the kernel and its settings.

use crate::dataplane::node::proxy;
use crate::dataplane::settings::{SETTINGS, SETTINGS_IPV6};
use crate::membership::node::{Node, check_kernel};
use crate::model::Family;
use crate::net::link::Link;
use crate::net::route::{self, DEFAULT, Filter, Kind};
use crate::net::{Module, link, neighbour, sysctl as setting};
use crate::{dataplane, net, with_causes};

use super::scene::Scene;
use super::{Finding, advice, command, sysctl};

/// From about so many replicas on, the routes over a group are too long to be listed with all their hops.
const MANY_REPLICAS: usize = 300;

pub fn look(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Err(error) = check_kernel() {
        let why = "Without resilient groups and hash policy 3 no pod can join a VIP.";
        findings.push(Finding::error(error.to_string(), why, advice("Boot Linux 5.14 or newer.")));
    }
    findings.extend(net::module::missing()?.into_iter().map(|module| without(scene, module)));
    findings.extend(addresses(scene));
    findings.extend(settings(scene)?);
    findings.extend(uplinks(scene)?);
    findings.extend(proxies(scene)?);
    findings.extend(compat_mode(scene));
    Ok(findings)
}

/// The kernel has said that it can't do what the module does.
fn without(scene: &Scene<'_>, module: Module) -> Finding {
    let name = module.name();
    let what = format!("the kernel's module {name} isn't loaded, and the kernel can't load it by itself");
    let cure = command(format!("modprobe {name}"));
    match module {
        Module::SchIngress | Module::ClsBpf if scene.bpf_dir().is_some() => {
            Finding::error(what, "The flow owner's programs can't be attached: no pod can join a VIP.", cure)
        }
        Module::SchIngress | Module::ClsBpf => {
            Finding::hint(what, "The flow owner, which is off, can't be switched on.", cure)
        }
        Module::Veth => Finding::error(what, "No pod can join a VIP.", cure),
        Module::Vxlan => Finding::hint(what, "Nodes can't serve VIPs together.", cure),
        Module::TcpDiag | Module::UdpDiag => {
            let why = "Nobody can see which sockets a pod has: health checks of the kind listen fail, and `viproutectl where` \
                       and `drain --wait` too.";
            Finding::warning(what, why, cure)
        }
    }
}

/// Each VIP's route has the node's address as its source.
fn addresses(scene: &Scene<'_>) -> Option<Finding> {
    let mut configs = scene.networks.iter().filter_map(|network| network.entry()?.config.as_ref().ok());
    let error = configs.find_map(|config| Node::find(&scene.net, &config.network()).err())?;
    let cure =
        advice("Give the node a default route, or name its address: \"nodeIP\" in viproute's entry of the conflist.");
    Some(Finding::error(with_causes(&error), "No pod can join a VIP.", cure))
}

/// The first ADD after a boot sets them: before that, any value is good that can be changed.
fn settings(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let has_ipv6 = scene.vips.iter().any(|vip| vip.record.has_ipv6());
    let of_ipv6 = SETTINGS_IPV6.into_iter().filter(|_| has_ipv6);
    for (name, wanted) in SETTINGS.into_iter().chain(of_ipv6) {
        let have = setting::get(name)?;
        if have == wanted || (scene.vips.is_empty() && setting::is_writable(name)) {
            continue;
        }
        let why = match name {
            "net.ipv4.ip_forward" | "net.ipv6.conf.all.forwarding" => "No packet from outside reaches a pod.",
            _ => "A connection's packets may be sent to another replica than its first.",
        };
        findings.push(Finding::error(format!("{name} is {have}, not {wanted}"), why, sysctl(name, wanted)));
    }
    Ok(findings)
}

/// `net.ipv4.conf.DEVICE.KEY`, as sysctl(8) takes it.
pub fn of_device(device: &str, key: &str) -> String {
    setting::of_device(Family::V4, "conf", device, key)
}

/// The effective value is the greater of `all`'s and the device's (`ip-sysctl.rst`).
fn is_strict(device: i32, all: i64) -> bool {
    i64::from(device).max(all) == 1
}

/// Where the whole node doesn't, that is the finding, and no device of it is another.
pub fn forwards() -> dataplane::Result<bool> {
    Ok(setting::get("net.ipv4.ip_forward")? != 0)
}

/// A strict check drops requests that come in by another uplink than their answers would leave by.
fn uplinks(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let filter = Filter { table: Some(route::MAIN), prefix: Some(DEFAULT), ..Filter::default() };
    let mut defaults = route::list(&scene.net, filter)?;
    defaults.sort_by_key(|route| route.metric);
    let (all, best) = (setting::get("net.ipv4.conf.all.rp_filter")?, defaults.first().map_or(0, |route| route.metric));
    let forwards = forwards()?;
    let mut findings = Vec::new();
    for route in defaults {
        let Kind::Via(hops) = &route.kind else { continue };
        for index in hops.iter().filter_map(|hop| hop.index) {
            let Some(device) = link::by_index(&scene.net, index)? else { continue };
            let name = &device.name;
            if route.metric != best && is_strict(device.settings.rp_filter, all) {
                let what = format!("rp_filter is strict on {name}, whose default route is not the best");
                let why = format!(
                    "Requests to a VIP that come in by {name} are dropped: their answers leave by another uplink."
                );
                findings.push(Finding::warning(what, why, sysctl(&of_device(name, "rp_filter"), 2)));
            }
            if device.settings.forwarding == 0 && forwards && !scene.vips.is_empty() {
                let why = "Requests to a VIP that come in there are not passed on to a pod.";
                let what = format!("forwarding is off on {name}");
                findings.push(Finding::error(what, why, sysctl(&of_device(name, "forwarding"), 1)));
            }
        }
    }
    Ok(findings)
}

/// Where VIPs are answered for on a LAN.
fn proxies(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for device in link::list(&scene.net)?.iter().filter(|link| !link.loopback && link.up) {
        for family in Family::ALL {
            let proxies = neighbour::list_proxies(&scene.net, family, device.index)?;
            let is_vips = |address| scene.vips.iter().any(|vip| vip.record.addresses.contains(address));
            if !proxies.iter().any(|proxy| is_vips(proxy.address)) {
                continue;
            }
            findings.extend(delay(device, family)?);
            if family == Family::V6 {
                findings.extend(proxy::unset(device)?.into_iter().map(unanswered));
            }
        }
    }
    Ok(findings)
}

fn delay(device: &Link, family: Family) -> dataplane::Result<Option<Finding>> {
    let name = proxy::delay_setting(family, device);
    let have = setting::get(&name)?;
    let by = family.resolution();
    let why = format!("The node answers {by} for its VIPs up to a second late: so long a client's first packet waits.");
    Ok((have != 0).then(|| Finding::warning(format!("{name} is {have}, not 0"), why, sysctl(&name, 0))))
}

/// viprouted sets it within seconds; where it can't, neighbours find nobody at the VIPs' addresses.
fn unanswered(proxy::Setting { name, want, found }: proxy::Setting) -> Finding {
    let why = "The node doesn't answer neighbour discovery for its VIPs: hosts of the link don't reach them by IPv6.";
    let cure = sysctl(&name, want);
    Finding::error(format!("{name} is {found}, not {want}"), why, cure)
}

fn compat_mode(scene: &Scene<'_>) -> Option<Finding> {
    const NAME: &str = "net.ipv4.nexthop_compat_mode";
    let largest = scene.vips.iter().max_by_key(|vip| vip.endpoints.len())?;
    let replicas = largest.endpoints.len();
    // A kernel that has no such setting is none of ours.
    if replicas < MANY_REPLICAS || setting::get(NAME).ok()? == 0 || scene.has_bird() {
        return None;
    }
    let what = format!("{} has {replicas} replicas here and {NAME} is 1", largest.key);
    let why = "The kernel repeats all of them in the VIP's route, which `ip route` may then leave out of its list. (BIRD \
               doesn't get along with 0.)";
    Some(Finding::hint(what, why, sysctl(NAME, 0)))
}

#[cfg(test)]
mod tests {
    use super::{is_strict, of_device};

    #[test]
    fn the_greater_value_counts() {
        let strict = |device, all| is_strict(device, all);
        assert!(strict(1, 0) && strict(0, 1) && strict(1, 1));
        assert!(!strict(2, 1) && !strict(1, 2) && !strict(0, 0));
    }

    #[test]
    fn a_vlans_dot_is_no_separator() {
        assert_eq!(of_device("eth0.7", "rp_filter"), "net.ipv4.conf.eth0/7.rp_filter");
    }
}
