//! Replicas of other nodes, as those say: a record per VIP and node. The only writer of such records.
//!
//! A VIP of which this node has no replica is recorded with the first of them, and goes with the last.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::dataplane::node::settings;
use crate::dataplane::node::tunnel::Device;
use crate::dataplane::{self, address, ids, reconcile_vip, reconcile_without};
use crate::model::node::NodeId;
use crate::model::{
    Addresses, Backend, DEFAULT_BPF_DIR, Family, FamilyChoice, GroupSpec, Peer, Recorded, Served, Source, VipKey,
    VipPolicy,
};
use crate::net::NodeNet;
use crate::net::nexthop;
use crate::registry::record::{Pod, SCHEMA};
use crate::registry::{Endpoint, LockedVip, Registry, State, VipRecord, is_peer_endpoint, peer_endpoint};

/// The field of a record that says how many replicas are ready, 0 included, whatever its weight.
const READY: &str = "peer_ready";
/// The same of how many there are.
const REPLICAS: &str = "peer_replicas";

/// Another node's share of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The node.
    pub id: NodeId,
    /// The weights of its ready replicas together.
    pub ready: u32,
    /// How many replicas it has.
    pub replicas: u32,
    /// Whether it gets new connections.
    pub state: State,
    /// UDP flows stay, by the word of one of its replicas.
    pub udp_sticky: bool,
    /// How much of `ready` serves which port; `None`: all of it every port.
    pub served: Option<Served>,
    /// It serves the VIP's address of IPv6 too.
    pub serves_ipv6: bool,
    /// The family that all of its replicas ask for and no other.
    pub family: Option<Family>,
}

/// What is recorded of another node's share of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The weights of its ready replicas together.
    pub ready: u32,
    /// How many replicas it has.
    pub replicas: u32,
    /// UDP flows stay.
    pub udp_sticky: bool,
    /// How much of `ready` serves which port.
    pub served: Option<Served>,
    /// It serves the VIP's address of IPv6 too.
    pub serves_ipv6: bool,
    /// The family that all of its replicas ask for and no other.
    pub family: Option<Family>,
}

/// What records are written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// This node's own address.
    pub node: IpAddr,
    /// The tunnel's device; none: it isn't there, and nothing can be recorded that leads there.
    pub tunnel: Option<Device>,
    /// Where the node's programs are pinned ([`flow_owner`]).
    pub flow_owner: Option<PathBuf>,
    /// What Services ask of the VIP; none: that isn't known, and what is recorded stays.
    pub policy: Option<VipPolicy>,
}

/// What is recorded of other nodes for a VIP: its addresses, and their shares by their numbers.
pub type Shares = (Addresses, BTreeMap<u32, Known>);

/// Makes the VIP's records of other nodes these; none: it has none any more. A VIP that has replicas here keeps its address:
/// legs of another one are not recorded. Returns whether anything was changed.
pub fn set(
    (net, registry): (&NodeNet, &Registry),
    key: &VipKey,
    want: Option<(&Addresses, &BTreeMap<u32, Leg>)>,
    here: &Here,
) -> dataplane::Result<bool> {
    match want.filter(|(_, legs)| !legs.is_empty()) {
        None => clear(net, registry, key),
        Some((addresses, legs)) => record((net, registry), key, (addresses, legs), here),
    }
}

fn clear(net: &NodeNet, registry: &Registry, key: &VipKey) -> dataplane::Result<bool> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(false) };
    let names: Vec<String> = recorded(&vip)?.into_keys().collect();
    if names.is_empty() {
        return Ok(false);
    }
    for name in &names {
        vip.remove_endpoint(name)?;
    }
    reconcile_without(net, vip)?;
    Ok(true)
}

fn record(
    (net, registry): (&NodeNet, &Registry),
    key: &VipKey,
    (addresses, legs): (&Addresses, &BTreeMap<u32, Leg>),
    here: &Here,
) -> dataplane::Result<bool> {
    let addresses = &served_here(addresses, settings::has_ipv6());
    if addresses.ipv6().is_some() {
        settings::configure_ipv6(net)?;
    }
    let (locked, mut moved) = follow((net, registry), key, addresses)?;
    let mut vip = locked.map_or_else(|| registry.vip(key), Ok)?;
    let is_theirs = vip.is_unused_here()?;
    if vip.record.is_none() || vip.is_unused()? {
        let is_free = |slot| Ok::<_, dataplane::Error>(nexthop::find(net, ids::group(slot))?.is_none());
        let before = vip.record.clone();
        vip.record_in_slot(is_free, |slot| new_vip((key, addresses), slot, before.as_ref(), here))?;
    } else if let Some(record) = vip.record.clone().filter(|record| is_theirs && record.flow_owner != here.flow_owner) {
        // No pod said so when the first of them was recorded.
        vip.write_record(VipRecord { flow_owner: here.flow_owner.clone(), ..record })?;
        moved = true;
    }
    let Some(known) =
        vip.record.as_ref().map(|record| &record.addresses).filter(|one| one.first() == addresses.first())
    else {
        // A replica has joined here meanwhile, with another address.
        return Ok(moved);
    };
    let is_same6 = known.ipv6().is_some() && known.ipv6() == addresses.ipv6();
    let mut before = recorded(&vip)?;
    let mut changed = false;
    for (number, leg) in legs {
        let name = peer_endpoint(*number);
        let leg = Leg { serves_ipv6: leg.serves_ipv6 && is_same6, ..leg.clone() };
        let Some(endpoint) = endpoint(*number, &leg, here) else { continue };
        if before.remove(&name).flatten().as_ref() != Some(&endpoint) {
            vip.write_endpoint(&name, &endpoint)?;
            changed = true;
        }
    }
    for name in before.into_keys() {
        vip.remove_endpoint(&name)?;
        changed = true;
    }
    if changed || moved {
        reconcile_vip(net, vip, None)?;
    }
    Ok(changed || moved)
}

/// The other nodes' shares of VIPs that are recorded, by VIP and number, with the VIP's address.
pub fn shares(registry: &Registry) -> crate::registry::Result<BTreeMap<VipKey, Shares>> {
    let mut found = BTreeMap::new();
    for key in registry.vips()? {
        let Ok(Some(record)) = registry.vip_record(&key) else { continue };
        let endpoints = registry.endpoints(&key)?.into_iter().filter_map(|(_, endpoint)| endpoint.ok());
        let number = |endpoint: &Endpoint, field: &str| {
            let number = endpoint.other.get(field).and_then(serde_json::Value::as_u64);
            number.and_then(|number| u32::try_from(number).ok())
        };
        let share = |endpoint: Endpoint| match endpoint.backend {
            Backend::Remote(peer) if endpoint.source == Source::Peer => {
                let ready = number(&endpoint, READY).unwrap_or(u32::from(endpoint.weight));
                let replicas = number(&endpoint, REPLICAS).unwrap_or(ready).max(1);
                let served = endpoint.served.as_ref().and_then(Recorded::known).cloned();
                let serves_ipv6 = endpoint.addresses.ipv6().is_some();
                let family = endpoint.families.as_ref().and_then(|families| families.known()?.only());
                let udp_sticky = endpoint.udp_sticky;
                Some((peer.number, Known { ready, replicas, udp_sticky, served, serves_ipv6, family }))
            }
            _ => None,
        };
        let shares: BTreeMap<_, _> = endpoints.filter_map(share).collect();
        if !shares.is_empty() {
            found.insert(key, (record.addresses, shares));
        }
    }
    Ok(found)
}

/// A VIP that other nodes alone have replicas of has the addresses that they say. Returns whether it had others, and the VIP where its lock
/// was taken for that.
fn follow(
    (net, registry): (&NodeNet, &Registry),
    key: &VipKey,
    addresses: &Addresses,
) -> dataplane::Result<(Option<LockedVip>, bool)> {
    let has_others = registry.vip_record(key)?.is_some_and(|record| record.addresses != *addresses);
    if !has_others || !is_known_by_others_alone(registry, key)? {
        return Ok((None, false));
    }
    address::serve_for_others(net, registry, key, addresses)
}

/// As far as can be read without its lock.
fn is_known_by_others_alone(registry: &Registry, key: &VipKey) -> crate::registry::Result<bool> {
    let names = registry.endpoint_names(key)?;
    Ok(!names.is_empty() && names.iter().all(|name| is_peer_endpoint(name)))
}

/// The records of other nodes, by name; one that can't be read is to be written anew, or removed.
fn recorded(vip: &LockedVip) -> crate::registry::Result<BTreeMap<String, Option<Endpoint>>> {
    let mut found = BTreeMap::new();
    for name in vip.names()?.into_iter().filter(|name| is_peer_endpoint(name)) {
        let endpoint = vip.endpoint(&name).unwrap_or_default();
        if endpoint.as_ref().is_none_or(|endpoint| endpoint.source == Source::Peer) {
            found.insert(name, endpoint);
        }
    }
    Ok(found)
}

/// Where the programs of the node's pods are pinned, as the first of them says; none: they do without.
pub fn flow_owner(registry: &Registry) -> crate::registry::Result<Option<PathBuf>> {
    let mut attachments = registry.attachments()?.into_iter();
    let recorded = attachments.find_map(|attachment| registry.attachment_record(&attachment).ok()??.network_spec());
    Ok(recorded.map_or_else(|| Some(DEFAULT_BPF_DIR.into()), |spec| spec.flow_owner.then_some(spec.bpf_dir)))
}

/// The addresses that can be served where the kernel has no IPv6: others' replicas are reached by the rest.
fn served_here(addresses: &Addresses, has_ipv6: bool) -> Addresses {
    let served = addresses.iter().filter(|address| has_ipv6 || address.is_ipv4()).collect::<Vec<_>>();
    Addresses::try_from(served).unwrap_or_else(|_| addresses.clone())
}

/// `before`: the record of when the VIP was last served, if it is there still.
fn new_vip((key, addresses): (&VipKey, &Addresses), slot: u32, before: Option<&VipRecord>, here: &Here) -> VipRecord {
    let policy = here.policy.as_ref().or(before.map(|record| &record.policy));
    VipRecord {
        schema: SCHEMA,
        key: key.to_string(),
        addresses: addresses.clone(),
        slot,
        node: here.node,
        group: GroupSpec::default(),
        flow_owner: here.flow_owner.clone(),
        withdrawn: false,
        previous_addresses: Vec::new(),
        policy: policy.cloned().unwrap_or_default(),
        family: None,
        other: BTreeMap::new(),
    }
}

/// `None`: a number beyond the range of nexthops, or no tunnel. Its addresses are those on the tunnel's device, of each family that the node
/// is reached for.
fn endpoint(number: u32, leg: &Leg, here: &Here) -> Option<Endpoint> {
    let (address, tunnel) = (IpAddr::V4(leg.id.0), here.tunnel?);
    let mut addresses = Addresses::from(address);
    if leg.serves_ipv6 && tunnel.carries_ipv6 {
        addresses.replace(ids::peer_link_local(leg.id).into());
    }
    let said = [(READY, leg.ready), (REPLICAS, leg.replicas)];
    Some(Endpoint {
        schema: SCHEMA,
        network: String::new(),
        addresses,
        node: address,
        gateway: None,
        backend: Backend::Remote(Peer { number, address }),
        pod: Pod::default(),
        netns: PathBuf::new(),
        device: ids::TUNNEL_DEVICE.to_owned(),
        ifindex: Some(tunnel.index),
        mac: None,
        nexthop: Some(ids::peer_nexthop(number)?),
        netns_id: None,
        ports: Vec::new(),
        source: Source::Peer,
        udp_reply: false,
        place: None,
        node_source_address: None,
        udp_sticky: leg.udp_sticky,
        egress: crate::model::Egress::Answer.into(),
        state: leg.state,
        health: None,
        drained: false,
        admitted: true,
        weight: u8::try_from(leg.ready.clamp(1, 255)).unwrap_or(u8::MAX),
        families: leg.family.map(|family| FamilyChoice::Only(family).into()),
        served: leg.served.clone().map(Into::into),
        other: said.into_iter().map(|(field, number)| (field.to_owned(), number.into())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_services_ask_of_a_vip_is_recorded_or_kept() {
        let local = VipPolicy { local: true, ..VipPolicy::default() };
        let key = "shop/web".parse().unwrap();
        let addresses = Addresses::from(IpAddr::from([10, 118, 0, 7]));
        let recorded = |before: Option<&VipRecord>, policy: Option<&VipPolicy>| {
            let node = IpAddr::from([192, 0, 2, 1]);
            let here = Here { node, tunnel: None, flow_owner: None, policy: policy.cloned() };
            new_vip((&key, &addresses), 1, before, &here)
        };
        let known = recorded(None, Some(&local));
        assert_eq!(known.policy, local);
        assert_eq!(recorded(Some(&known), None).policy, local, "Services aren't read yet");
        assert_eq!(recorded(Some(&known), Some(&VipPolicy::default())).policy, VipPolicy::default());
        assert_eq!(recorded(None, None).policy, VipPolicy::default());
    }

    #[test]
    fn where_the_kernel_has_no_ipv6_the_rest_is_served() {
        let addresses =
            |all: &[&str]| Addresses::try_from(all.iter().map(|one| one.parse().unwrap()).collect::<Vec<_>>());
        let both = addresses(&["10.118.0.7", "fd00:118::7"]).unwrap();
        assert_eq!(served_here(&both, true), both);
        assert_eq!(served_here(&both, false), addresses(&["10.118.0.7"]).unwrap());
    }
}
