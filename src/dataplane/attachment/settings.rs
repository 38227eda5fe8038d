//! The settings of a pod's own interface, and of all its devices.

use crate::dataplane::ids::POD_DEVICE;
use crate::net::link::{self, Link, Setting};
use crate::net::netconf::{self, Devices};
use crate::net::{self, PodNet, sysctl};
use crate::registry::record::SavedSysctls;

use super::ipv6;

/// Answer ARP only for addresses of the interface asked on (`arp_ignore`).
const OWN_ADDRESSES_ONLY: i32 = 1;
/// The values of `arp_ignore` that do so: 2 and 8 ask for still more (`arp_ignore()` in net/ipv4/arp.c).
const OWN_ADDRESSES_AT_MOST: [i32; 3] = [OWN_ADDRESSES_ONLY, 2, 8];
/// Ask by ARP with the best address of the interface used (`arp_announce`).
const BEST_ADDRESS: i32 = 2;

/// Whether a pod's own interface never answers ARP for its VIPs.
pub fn has_arp_settings(settings: &link::Settings) -> bool {
    OWN_ADDRESSES_AT_MOST.contains(&settings.arp_ignore) && settings.arp_announce >= BEST_ADDRESS
}

/// `arp_ignore` and `arp_announce` that an interface with these is to have: what is strict enough already stays.
pub(super) fn wanted_settings(arp_ignore: i32, arp_announce: i32) -> (i32, i32) {
    let is_strict = OWN_ADDRESSES_AT_MOST.contains(&arp_ignore);
    (if is_strict { arp_ignore } else { OWN_ADDRESSES_ONLY }, arp_announce.max(BEST_ADDRESS))
}

/// What is to be put back: the settings that still are as an ADD made them. Another value is another's (the plugin
/// `tuning` behind us in the chain, a person).
pub(super) fn restored(saved: SavedSysctls, settings: &link::Settings) -> Vec<(Setting, i32)> {
    let made = wanted_settings(saved.arp_ignore, saved.arp_announce);
    let all = [
        (Setting::ArpIgnore, saved.arp_ignore, made.0, settings.arp_ignore),
        (Setting::ArpAnnounce, saved.arp_announce, made.1, settings.arp_announce),
    ];
    let ours = all.into_iter().filter(|(_, saved, made, now)| now == made && now != saved);
    ours.map(|(setting, saved, ..)| (setting, saved)).collect()
}

/// The kernel takes the greater one of this and the device's.
const ALL_RP_FILTER: &str = "net.ipv4.conf.all.rp_filter";

/// A pod's `all.rp_filter` where it makes `vip0` check sources and nothing else: each other device is as strict by itself, and so are
/// those to come.
pub(super) fn strict_for_all(pod: &PodNet) -> net::Result<Option<i32>> {
    let read = |devices| netconf::rp_filter(pod, devices).unwrap_or_default();
    let Some(all) = read(Devices::All).filter(|all| *all != 0) else { return Ok(None) };
    if read(Devices::Default).is_none_or(|default| default < all) {
        return Ok(None);
    }
    let is_strict = |link: &Link| link.loopback || link.name == POD_DEVICE || link.settings.rp_filter >= all;
    Ok(link::list(pod)?.iter().all(is_strict).then_some(all))
}

/// By it a socket may be bound to an address that the pod's table `local` doesn't have: to a VIP. It may not send from an address that
/// no device has (`ip_route_output_key_hash_rcu()` in net/ipv4/route.c).
const NONLOCAL_BIND: &str = "net.ipv4.ip_nonlocal_bind";

/// As the pod has it; where it can't be read, the kernel's default.
pub(super) fn nonlocal_bind(pod: &PodNet) -> net::Result<i32> {
    read(pod, NONLOCAL_BIND)
}

/// By it what is sent out of an interface has one of that interface's addresses as its source, as RFC 6724 (section 4) recommends: of all
/// the pod's a VIP that is called would be preferred (rule 1), and the call be one from the VIP to itself.
pub(super) const OWN_SOURCES_ONLY: (&str, i64) = ("use_oif_addrs_only", 1);

/// As the pod has it for its own interface; where it can't be read, the kernel's default.
pub(super) fn own_sources_only(pod: &PodNet, ifname: &str) -> net::Result<i32> {
    read(pod, &ipv6::name(ifname, OWN_SOURCES_ONLY.0))
}

fn read(pod: &PodNet, name: &str) -> net::Result<i32> {
    let value = pod.netns().run(|| sysctl::get(name).ok())?;
    Ok(value.and_then(|value| i32::try_from(value).ok()).unwrap_or_default())
}

/// Lets the pod's servers bind its VIPs, whatever its table `local` has. False: they can't be let, and what the pod sends to its VIPs
/// has to stay in it.
pub fn allow_binding(pod: &PodNet) -> net::Result<bool> {
    let set = pod.netns().run(|| sysctl::ensure(NONLOCAL_BIND, 1))?;
    if let Err(error) = &set {
        tracing::warn!("{error}: a replica that calls its own VIP reaches itself");
    }
    Ok(set.is_ok())
}

/// Lowers a pod's `all.rp_filter` that was saved: `vip0` alone changes. Where it can't be written, packets are looked up as before.
pub fn relax_all(pod: &PodNet, saved: SavedSysctls) -> net::Result<()> {
    if saved.all_rp_filter.is_none() {
        return Ok(());
    }
    if let Err(error) = pod.netns().run(|| sysctl::ensure(ALL_RP_FILTER, 0))? {
        tracing::warn!("{error}: a pod's packets take longer");
    }
    Ok(())
}

/// Puts those back that are not another's by now.
pub(super) fn restore_all(pod: &PodNet, ifname: &str, saved: SavedSysctls) -> net::Result<()> {
    let own_sources = ipv6::name(ifname, OWN_SOURCES_ONLY.0);
    // A pod without IPv6 has none.
    let is_set = own_sources_only(pod, ifname)? == 1;
    let settings = [
        (ALL_RP_FILTER, saved.all_rp_filter, 0),
        (NONLOCAL_BIND, Some(saved.nonlocal_bind), 1),
        (own_sources.as_str(), is_set.then_some(saved.use_oif_addrs_only), 1),
    ];
    let changed = settings.into_iter().filter_map(|(name, saved, ours)| Some((name, saved?, ours)));
    let changed: Vec<_> = changed.filter(|(_, saved, ours)| saved != ours).collect();
    if changed.is_empty() {
        return Ok(());
    }
    pod.netns().run(|| {
        changed.into_iter().try_for_each(|(name, saved, ours)| match sysctl::get(name)? {
            now if now == i64::from(ours) => sysctl::ensure(name, saved.into()),
            _ => Ok(()),
        })
    })?
}
