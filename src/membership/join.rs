//! The steps by which a pod becomes a replica of a VIP, common to a new pod and to a running one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::api::client;
use crate::api::protocol::{AcquireRequest, Grant, Refusal, code};
use crate::dataplane::attachment::HostVeth;
use crate::dataplane::{address, ids, owner, reconcile_with};
use crate::ebpf::{Parts, Programs};
use crate::model::{Addresses, Backend, FamilyChoice, Recorded, VipKey, VipPolicy};
use crate::net::NodeNet;
use crate::net::nexthop::{self, Nexthop};
use crate::net::route::{self, Packet};
use crate::registry::record::SCHEMA;
use crate::registry::{Endpoint, Intent, LockedVip, State, Turn, VipRecord, attachment_name};

use super::node::{self, Node};
use super::{Error, Host, Pod, Want};
use super::{admission, families};

/// How long a call waits for an address. The allocator continues after that, and keeps what it gets for the next call.
const ALLOCATOR_TIMEOUT: Duration = Duration::from_secs(10);

/// A pod on its way into VIPs.
pub(super) struct Joining<'a> {
    pub host: &'a Host,
    pub pod: &'a Pod,
    node: Node,
    /// The flow owner's, if the network wants it.
    programs: Option<Rc<Programs>>,
}

/// What an endpoint records of its pair.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub nexthop: Nexthop,
    pub netns_id: Option<u32>,
}

impl Pair {
    pub fn of(end: &HostVeth, pod_address: IpAddr) -> crate::net::Result<Self> {
        Ok(Self { nexthop: end.nexthop(pod_address)?, netns_id: end.link.peer_netns })
    }

    pub fn record_in(self, endpoint: &mut Endpoint) {
        endpoint.ifindex = Some(self.nexthop.index);
        endpoint.nexthop = Some(self.nexthop.id);
        endpoint.netns_id = self.netns_id;
    }
}

/// What viprouted says of a VIP that is new here.
#[derive(Clone)]
struct Granted {
    addresses: Addresses,
    /// What Services ask of it, whatever makes the pod its replica: in its record from the first moment on, nobody gets in who mustn't.
    policy: Option<VipPolicy>,
    /// Why it has no address of IPv6.
    no_ipv6: Option<Refusal>,
}

impl Granted {
    /// Why a VIP in service hasn't what is asked for: it can't have it, or gets it once it is searched for conflicts.
    fn why_lacking(&self, want: &Want) -> Option<Refusal> {
        let on_its_way = || Refusal { code: code::TRY_AGAIN, msg: "it gets one in a moment".to_owned() };
        if families::lacking(want, &self.addresses).is_none() { Some(on_its_way()) } else { self.no_ipv6.clone() }
    }
}

/// A VIP's addresses as they were when the pod was given them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub current: Addresses,
    pub previous: Vec<IpAddr>,
}

impl Known {
    pub fn of(record: &VipRecord) -> Self {
        Self { current: record.addresses.clone(), previous: record.previous_addresses().collect() }
    }

    pub fn has_ipv6(&self) -> bool {
        self.addresses().any(|address| address.is_ipv6())
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.current.iter().chain(self.previous.iter().copied())
    }

    /// Whether the pod has all that the VIP has now. One that the VIP had before may have been retired meanwhile: viprouted takes it from
    /// the pod, too.
    fn has_all_of(&self, record: &VipRecord) -> bool {
        record.addresses == self.current && record.previous_addresses().all(|address| self.previous.contains(&address))
    }
}

impl<'a> Joining<'a> {
    /// Nothing of the pod is changed so far.
    pub fn new(host: &'a Host, pod: &'a Pod) -> Result<Self, Error> {
        node::check_kernel()?;
        let Host { net, registry, network, .. } = host;
        let node = Node::find(net, network)?;
        host.begin()?;
        let ensure = || owner::ensure(net, registry, &network.bpf_dir, Parts::default());
        let programs = network.flow_owner.then(ensure).transpose()?;
        Ok(Self { host, pod, node, programs: programs.map(Rc::new) })
    }

    /// The pod as a replica of each VIP, not ready and without a pair. `places`: a free reply table for each.
    pub fn endpoints(&self, wants: &[Want], places: impl Iterator<Item = u8>) -> Result<Vec<Endpoint>, Error> {
        let source = node_source_address(&self.host.net, self.pod.address, wants)?;
        Ok(wants.iter().zip(places).map(|(want, place)| self.endpoint(want, source, place)).collect())
    }

    fn endpoint(&self, want: &Want, source: Option<IpAddr>, place: u8) -> Endpoint {
        let names = self.pod.veth_names();
        let mut endpoint = Endpoint {
            schema: SCHEMA,
            network: self.host.network.name.clone(),
            addresses: self.pod.addresses(),
            backend: Backend::Local,
            node: self.node.address,
            gateway: self.node.gateway,
            pod: self.pod.name.clone(),
            netns: self.pod.netns.path.clone(),
            device: names.host,
            ifindex: None,
            mac: Some(names.pod_mac.into()),
            nexthop: None,
            netns_id: None,
            ports: Vec::new(),
            source: want.source.clone(),
            udp_reply: false,
            place: None,
            node_source_address: None,
            udp_sticky: false,
            egress: self.host.network.egress.clone(),
            state: State::Pending,
            health: None,
            drained: false,
            admitted: want.admitted,
            weight: 1,
            families: None,
            served: None,
            other: BTreeMap::new(),
        };
        fill(&mut endpoint, want, source, place);
        endpoint
    }

    /// Records the pod as a replica, still pending, of all these VIPs. Addresses of those that have no replica here are asked
    /// for side by side, before any lock is taken: it takes as long as the slowest.
    pub fn insert_pending(&self, wants: &[Want], endpoints: &[Endpoint]) -> Result<(), Error> {
        // Of one that lacks what is asked for viprouted says why.
        let is_new = |want: &&Want| self.is_new(&want.vip) || self.is_lacking(want);
        let granted = self.acquire(&wants.iter().filter(is_new).map(|want| &want.vip).collect::<Vec<_>>())?;
        for (want, endpoint) in wants.iter().zip(endpoints) {
            self.insert_pending_in(want, granted.get(&want.vip), endpoint)?;
        }
        Ok(())
    }

    /// No replica of the VIP is recorded here, as far as can be read without its lock.
    fn is_new(&self, key: &VipKey) -> bool {
        let registry = &self.host.registry;
        let is_recorded = registry.vip_record(key).is_ok_and(|record| record.is_some());
        !is_recorded || registry.is_unused_here(key).is_ok_and(|unused| unused)
    }

    /// Refuses a change of what a replica asks for where its VIP lacks it.
    pub fn check_families(&self, want: &Want) -> Result<(), Error> {
        if !self.is_lacking(want) {
            return Ok(());
        }
        let Some(record) = self.host.registry.vip_record(&want.vip)? else { return Ok(()) };
        let granted = self.acquire(&[&want.vip])?;
        let why = granted.get(&want.vip).and_then(|granted| granted.why_lacking(want));
        families::check(want, &record.addresses, why.as_ref())
    }

    /// The VIP is recorded, and has no address of a family that is asked for.
    fn is_lacking(&self, want: &Want) -> bool {
        let record = self.host.registry.vip_record(&want.vip).ok().flatten();
        record.is_some_and(|record| families::lacking(want, &record.addresses).is_some())
    }

    fn insert_pending_in(&self, want: &Want, granted: Option<&Granted>, endpoint: &Endpoint) -> Result<(), Error> {
        let key = &want.vip;
        let registry = &self.host.registry;
        let name = attachment_name(&self.pod.attachment);
        if let Some(mut vip) = registry.vip_if_present(key)?
            && !vip.is_unused_here()?
            && let Some(record) = &vip.record
        {
            let why = granted.and_then(|granted| granted.why_lacking(want));
            families::check(want, &record.addresses, why.as_ref())?;
            return Ok(vip.insert_pending(&name, endpoint)?);
        }
        // Its last replica may have left this very moment. It may take seconds, so no lock is held.
        let granted = match granted {
            Some(granted) => granted.clone(),
            None => self.acquire(&[key])?.remove(key).ok_or_else(|| Error::Renumbered(key.to_string()))?,
        };
        families::check(want, &granted.addresses, granted.no_ipv6.as_ref())?;
        let mut vip = self.follow_grant(key, &granted.addresses)?.map_or_else(|| registry.vip(key), Ok)?;
        // Unless another call was faster.
        if vip.is_unused_here()? || vip.record.is_none() {
            // A group that exists belongs to a VIP whose record can't be read, or to another program.
            let is_free = |slot| Ok::<_, Error>(nexthop::find(&self.host.net, ids::group(slot))?.is_none());
            let before = vip.record.clone();
            // What it was served at by other nodes' words is still delivered, and has routes.
            let previous = before.as_ref().map(|record| record.previous_addresses.clone()).unwrap_or_default();
            let before = before.map(|record| record.policy);
            vip.record_in_slot(is_free, |slot| VipRecord {
                policy: want.policy.clone().or(granted.policy.clone()).or(before.clone()).unwrap_or_default(),
                previous_addresses: previous.clone(),
                family: want.families.and_then(FamilyChoice::only).map(Recorded::Known),
                ..self.new_vip(key, granted.addresses.clone(), slot)
            })?;
        }
        Ok(vip.insert_pending(&name, endpoint)?)
    }

    /// A VIP that was known by other nodes' words alone, with another address than the one that was granted here: this node's
    /// own counts. Returns the VIP where its lock was taken for that: until the pod is recorded as its replica no other address is.
    fn follow_grant(&self, key: &VipKey, addresses: &Addresses) -> Result<Option<LockedVip>, Error> {
        let Host { net, registry, .. } = self.host;
        let Some(record) = registry.vip_record(key).ok().flatten() else { return Ok(None) };
        if record.addresses == *addresses || !self.is_new(key) {
            return Ok(None);
        }
        Ok(address::serve_for_others(net, registry, key, addresses)?.0)
    }

    /// Of which nothing is asked.
    fn new_vip(&self, key: &VipKey, addresses: Addresses, slot: u32) -> VipRecord {
        let network = &self.host.network;
        VipRecord {
            schema: SCHEMA,
            key: key.to_string(),
            addresses,
            slot,
            node: self.node.address,
            group: network.group,
            flow_owner: network.flow_owner.then(|| network.bpf_dir.clone()),
            withdrawn: false,
            previous_addresses: Vec::new(),
            policy: VipPolicy::default(),
            family: None,
            other: BTreeMap::new(),
        }
    }

    fn acquire(&self, keys: &[&VipKey]) -> Result<BTreeMap<VipKey, Granted>, Error> {
        let Node { address: node, gateway } = self.node;
        let ask = |key: &&VipKey| AcquireRequest { vip: key.to_string(), pod: self.pod.address, node, gateway };
        let asked: Vec<_> = keys.iter().map(ask).collect();
        let registry = self.host.registry.dir();
        let answers = client::acquire_all(&self.host.allocator, &asked, ALLOCATOR_TIMEOUT);
        let granted = keys.iter().zip(answers).map(|(key, answer)| match answer {
            Ok(Grant { registry: Some(theirs), .. }) if !theirs.is_at(registry) => {
                Err(Error::OtherRegistry { ours: registry.to_owned(), theirs: theirs.path })
            }
            Ok(grant) => {
                let (addresses, Grant { policy, no_ipv6, .. }) = (grant.addresses(), grant);
                Ok(((*key).clone(), Granted { addresses, policy, no_ipv6 }))
            }
            Err(source) => Err(Error::Allocator { vip: key.to_string(), source }),
        });
        granted.collect()
    }

    /// The flow owner's programs, as the VIPs' records want them: those that have replicas decided when the first one came.
    pub fn programs<'k>(&self, keys: impl IntoIterator<Item = &'k VipKey>) -> Result<Option<Rc<Programs>>, Error> {
        let Host { net, registry, network, .. } = self.host;
        let mut agreed: Option<(&VipKey, Option<PathBuf>)> = None;
        let mut parts = Parts::ipv6(self.pod.address.is_ipv6());
        for key in keys {
            let record = registry.vip_record(key)?;
            parts.ipv6 |= record.as_ref().is_some_and(VipRecord::has_ipv6);
            let dir = record.and_then(|record| record.flow_owner);
            match &agreed {
                Some((other, agreed)) if *agreed != dir => {
                    return Err(Error::MixedOwners(other.to_string(), key.to_string()));
                }
                Some(_) => {}
                None => agreed = Some((key, dir)),
            }
        }
        match (agreed, &self.programs) {
            (Some((_, Some(dir))), Some(programs)) if dir == network.bpf_dir && parts == Parts::default() => {
                Ok(Some(Rc::clone(programs)))
            }
            (Some((_, Some(dir))), _) => Ok(Some(Rc::new(owner::ensure(net, registry, &dir, parts)?))),
            _ => Ok(None),
        }
    }

    /// Makes the pod a replica, once its veth pair exists.
    pub fn finish(&self, key: &VipKey, known: &Known, endpoint: &mut Endpoint, pair: Pair) -> Result<(), Error> {
        pair.record_in(endpoint);
        // With a check viprouted says when.
        let is_ready = endpoint.health.is_none() && endpoint.admitted;
        endpoint.state = if is_ready { State::Ready } else { State::Pending };
        let name = attachment_name(&self.pod.attachment);
        let registry = &self.host.registry;
        let mut vip = match registry.vip_for(key, &name, &Intent::Join(endpoint, known.addresses().collect()))? {
            Turn::Taken(vip) => vip,
            // Another call had the lock, and has made it a replica with its own.
            Turn::Needless => return Ok(()),
            Turn::Absent => registry.vip(key)?,
        };
        if !vip.record.as_ref().is_some_and(|record| known.has_all_of(record)) {
            return Err(Error::Renumbered(key.to_string()));
        }
        vip.carry_out_intents()?;
        self.follow_source(&mut vip)?;
        vip.join(&name, endpoint)?;
        reconcile_with(&self.host.net, vip)?;
        Ok(())
    }

    /// The source of the VIP's routes may be an address that the node no longer has.
    fn follow_source(&self, vip: &mut LockedVip) -> Result<(), Error> {
        let node = self.node.address;
        let Some(record) = vip.record.clone().filter(|record| record.node != node) else { return Ok(()) };
        if !route::is_local(&self.host.net, record.node)? {
            vip.write_record(VipRecord { node, ..record })?;
        }
        Ok(())
    }
}

/// The address that the node itself asks the pod from, where some want it to be known.
pub(super) fn node_source_address(net: &NodeNet, pod: IpAddr, wants: &[Want]) -> Result<Option<IpAddr>, Error> {
    let is_wanted = wants.iter().any(|want| want.udp_reply);
    let way = if is_wanted { route::lookup(net, Packet::to(pod))? } else { None };
    Ok(way.and_then(|way| way.source))
}

/// Writes a want into an endpoint. Its state stays, unless its check is removed; what a later version wrote stays, unless
/// the want has something else in its place.
pub(super) fn fill(endpoint: &mut Endpoint, want: &Want, source: Option<IpAddr>, place: u8) {
    if !endpoint.known_ports().eq(want.ports.iter().copied()) {
        endpoint.ports = want.ports.iter().copied().map(Into::into).collect();
    }
    if endpoint.health.as_ref().and_then(Recorded::known) != want.health.as_ref() {
        endpoint.health = want.health.clone().map(Into::into);
        if endpoint.health.is_none() && !endpoint.drained && endpoint.admitted {
            endpoint.state = State::Ready;
        }
    }
    admission::set(endpoint, want.admitted);
    endpoint.source = want.source.clone();
    endpoint.udp_reply = want.udp_reply;
    endpoint.place = want.udp_reply.then(|| endpoint.place.unwrap_or(place));
    endpoint.node_source_address = source.filter(|_| want.udp_reply);
    endpoint.udp_sticky = want.udp_sticky;
    if endpoint.families.as_ref().and_then(Recorded::known) != want.families.as_ref() {
        endpoint.families = want.families.map(Into::into);
    }
    endpoint.weight = want.weight;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GroupSpec;
    use crate::registry::PreviousAddress;

    fn record(address: [u8; 4]) -> VipRecord {
        VipRecord {
            schema: SCHEMA,
            key: "shop/web".into(),
            addresses: IpAddr::from(address).into(),
            slot: 1,
            node: [192, 0, 2, 1].into(),
            group: GroupSpec::default(),
            flow_owner: None,
            withdrawn: false,
            previous_addresses: Vec::new(),
            policy: VipPolicy::default(),
            family: None,
            other: BTreeMap::new(),
        }
    }

    #[test]
    fn a_previous_address_may_be_retired_while_a_pod_joins() {
        let [six, other] = ["fd00:118::7", "10.118.0.9"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut vip = record([10, 118, 0, 7]);
        vip.previous_addresses = vec![PreviousAddress { address: six, until: 60 }];
        let known = Known::of(&vip);
        assert!(known.has_all_of(&vip));
        vip.previous_addresses.clear();
        assert!(known.has_all_of(&vip), "retired");
        assert!(!known.has_all_of(&record([10, 118, 0, 9])), "renumbered");
        vip.previous_addresses = vec![PreviousAddress { address: other, until: 60 }];
        assert!(!known.has_all_of(&vip), "the pod lacks it");
    }
}
