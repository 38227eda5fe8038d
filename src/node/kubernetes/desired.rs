//! Which pods of this node are to be replicas of which Services, and in what state. Pure: objects and what is recorded go in.
//!
//! kube-proxy's rules apply: an endpoint that is ready gets new connections; where none is (in the cluster, with
//! `externalTrafficPolicy: Local` on the node), those get them that are about to end and still answer. What this node's own pods say
//! goes before what slices say of them: that a pod ends is known here a moment sooner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::dataplane::ids::MAX_VIPS;
use crate::ebpf::{MEMBERS, PORTS as MAX_PORTS};
use crate::model::{Family, Port, PortMap, Source, VipKey, VipPolicy};
use crate::registry::record;

use super::listeners::OwnAddressOnly;
use super::objects::{Endpoint, Key, Objects, Pod, Protocol, Service, Slice};
use super::policy::Here;
use super::sharing::{Sharer, Sharing};
use super::{blocking, policies, policy, ports};

/// A pod that is recorded on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its record's name.
    pub name: String,
    /// The pod, as the runtime names it.
    pub pod: record::Pod,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its network namespace.
    pub netns: record::Netns,
    /// Its VIPs.
    pub vips: BTreeMap<VipKey, Member>,
}

/// What a pod is in a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What made it one.
    pub source: Source,
    /// What it serves there.
    pub ports: Vec<PortMap>,
    /// It gets new connections, as far as its source decides that.
    pub is_admitted: bool,
}

/// A pod by all that must agree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodId {
    /// `<namespace>/<name>`.
    pub key: Key,
    /// Its identity.
    pub uid: String,
    /// Its address.
    pub address: IpAddr,
}

/// What a pod is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// The pod, where the API names it.
    pub pod: Option<PodId>,
    /// In each of its VIPs.
    pub vips: BTreeMap<VipKey, Role>,
}

/// What a pod is to be in a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// What it serves there, and on which of its own numbers.
    pub ports: BTreeMap<Port, u16>,
    /// It gets new connections.
    pub is_admitted: bool,
}

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Pods that are recorded, by their records' names. A VIP that isn't here, and has a Service as its source, is left.
    pub recorded: BTreeMap<String, Roles>,
    /// Pods that aren't.
    pub unknown: BTreeMap<PodId, Roles>,
    /// VIPs that pods here would join if their Services had the addresses that they need.
    pub waiting: BTreeSet<VipKey>,
    /// What is asked of VIPs; of those that aren't here nothing is.
    pub policies: BTreeMap<VipKey, VipPolicy>,
    /// Replicas that no Service made such, and that are to be let in, or not any more.
    pub others: BTreeMap<VipKey, BTreeMap<String, bool>>,
    /// Pods that get no connections because of a policy of the network: which.
    pub kept_out: BTreeMap<Key, Key>,
    /// What there is to say of Services, by their own names.
    pub notes: BTreeMap<VipKey, BTreeSet<Note>>,
    /// Whose each port is, of VIPs that aren't one Service's of their own name.
    pub owners: BTreeMap<VipKey, BTreeMap<Port, VipKey>>,
}

/// Something to say of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// No pod takes connections, in the whole cluster.
    NoReadyEndpoints,
    /// A pod can't be a replica.
    PodNotAttachable {
        /// `<namespace>/<name>`.
        pod: Key,
        /// Why not.
        why: String,
    },
    /// A port can't be served.
    PortRefused {
        /// As `80/TCP`.
        port: String,
        /// Why not.
        why: String,
    },
    /// A pod's server can't be reached at the VIP: it listens on the pod's own address only.
    NotListening(OwnAddressOnly),
    /// An endpoint is no pod.
    ForeignEndpoints,
    /// A pod gets no connections: a policy says who may reach it, and holds for no VIP.
    NetworkPolicyBlocks {
        /// `<namespace>/<name>`.
        pod: Key,
        /// The policy, likewise.
        policy: Key,
    },
    /// Load balancers are to pass by every node.
    AllNodesExcluded,
    /// It can't have the VIP that it names.
    NotShared {
        /// Why not.
        why: String,
    },
    /// It has more pods here than are asked for a connection.
    ManyReplicas {
        /// So many.
        pods: usize,
    },
    /// A Service of the cluster says its address as one of its own (`externalIPs`).
    ExternalIp {
        /// That Service, `<namespace>/<name>`.
        service: Key,
        /// The address.
        address: IpAddr,
    },
    /// Ranges of its clients don't count.
    SourceRangesRefused {
        /// Which, and why.
        why: String,
    },
    /// Its traffic policy doesn't count, since not all Services of its VIP have it.
    PolicyNotShared {
        /// The VIP.
        vip: VipKey,
    },
    /// Its VIP has no address of a family that it asks for.
    NoFamily {
        /// Which.
        family: Family,
        /// So it has none at all.
        waits: bool,
        /// What keeps the VIP from one, where that is known.
        why: Option<String>,
    },
    /// It can't have the address that it asks for.
    AddressRefused {
        /// Why not.
        why: String,
    },
}

/// Of all Services at once, as seen from here.
pub fn desired(objects: &Objects, sharing: &Sharing<'_>, attachments: &[Attachment], here: Here<'_>) -> Desired {
    let asked = policy::policies(objects, sharing, here);
    let (others, kept_out) = (blocking::changes(objects, attachments), blocking::kept_out(objects));
    let notes = sharing.notes.clone();
    let mut desired = Desired { notes, policies: asked.vips, others, kept_out, ..Desired::default() };
    for (key, notes) in asked.notes {
        desired.notes.entry(key).or_default().extend(notes);
    }
    let slices = by_service(objects);
    let known = Recorded::new(attachments);
    let is_all_excluded = !objects.nodes.is_empty() && objects.nodes.values().all(|node| node.is_excluded);
    // The oldest first: its pods join its VIP before they join a later one's.
    for (vip, sharer) in sharing.in_order() {
        let slices = slices.get(sharer.key.to_string().as_str()).map_or(&[][..], Vec::as_slice);
        let Sharer { key, service, .. } = sharer;
        let waits = service.families.waits(here.addresses.get(vip));
        let scene = Scene { vip, key, service, sharer, slices, objects, known: &known, waits };
        scene.add(&mut desired);
        if key != vip || sharing.vips.get(vip).is_some_and(|sharers| sharers.len() > 1) {
            let ports = ports::served(service, &sharer.taken).map(|(_, port)| (port, key.clone()));
            desired.owners.entry(vip.clone()).or_default().extend(ports);
        }
        if is_all_excluded {
            desired.notes.entry(key.clone()).or_default().insert(Note::AllNodesExcluded);
        }
    }
    keep_connections(objects, sharing, attachments, &mut desired);
    desired
}

fn by_service(objects: &Objects) -> BTreeMap<&str, Vec<&Slice>> {
    let mut found: BTreeMap<&str, Vec<&Slice>> = BTreeMap::new();
    for slice in objects.slices.values() {
        let Some(service) = objects.services.get(&slice.service) else { continue };
        if slice.is_ipv6 == (service.families.of_slices() == Family::V6) {
            found.entry(&slice.service).or_default().push(slice);
        }
    }
    found
}

/// The attachments, to be found by what a slice says of a pod.
struct Recorded<'a> {
    by_uid: BTreeMap<&'a str, Vec<&'a Attachment>>,
    by_address: BTreeMap<IpAddr, Vec<&'a Attachment>>,
}

impl<'a> Recorded<'a> {
    fn new(attachments: &'a [Attachment]) -> Self {
        let mut found = Self { by_uid: BTreeMap::new(), by_address: BTreeMap::new() };
        for attachment in attachments {
            if !attachment.pod.uid.is_empty() {
                found.by_uid.entry(&attachment.pod.uid).or_default().push(attachment);
            }
            if let Some(address) = attachment.address {
                found.by_address.entry(address).or_default().push(attachment);
            }
        }
        found
    }

    /// The attachment of that pod: its identity and its address agree. Addresses are used again, by strangers.
    fn find(&self, pod: &PodId, is_mirror: bool) -> Option<&'a Attachment> {
        let has_address = |attachment: &&Attachment| attachment.address == Some(pod.address);
        let mut of_uid = self.by_uid.get(pod.uid.as_str()).into_iter().flatten().copied();
        if let Some(found) = of_uid.find(has_address) {
            return Some(found);
        }
        // The runtime knows a static pod by another identity, some know none, and one that was found by hand has no name.
        let mut at_address = self.by_address.get(&pod.address).into_iter().flatten().copied();
        let is_it = |found: &&Attachment| {
            let name = format!("{}/{}", found.pod.namespace, found.pod.name);
            found.pod.is_unnamed() || (is_mirror || found.pod.uid.is_empty()) && name == pod.key
        };
        at_address.find(is_it)
    }
}

/// An endpoint as all slices of the Service have it together.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // as the API has them, in every combination
struct Merged {
    is_ready: bool,
    is_serving: bool,
    is_terminating: bool,
    /// A policy selects its pod.
    is_blocked: bool,
    ports: BTreeMap<Port, u16>,
}

impl Pod {
    /// The one of its addresses that its attachment is recorded with: of IPv4, where it has one.
    fn recorded_address(&self) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv4()).or(self.addresses.first()).copied()
    }
}

/// A Service and its surroundings.
struct Scene<'a> {
    vip: &'a VipKey,
    /// The Service's own name.
    key: &'a VipKey,
    service: &'a Service,
    sharer: &'a Sharer<'a>,
    slices: &'a [&'a Slice],
    objects: &'a Objects,
    known: &'a Recorded<'a>,
    /// It can't have the addresses that it needs: none of its pods joins, and those that are in it get no new connections.
    waits: bool,
}

impl Scene<'_> {
    fn add(&self, desired: &mut Desired) {
        let mut notes = BTreeSet::new();
        let here = self.endpoints(&mut notes);
        if here.len() > MEMBERS {
            notes.insert(Note::ManyReplicas { pods: here.len() });
        }
        let is_ready = here.values().any(|merged| merged.is_ready);
        let is_ready_elsewhere = self.slices.iter().any(|slice| slice.ready_elsewhere);
        let any_ready = is_ready || is_ready_elsewhere && !self.service.is_local;
        let mut is_served = false;
        for (pod, merged) in here {
            let is_admitted = if any_ready { merged.is_ready } else { merged.is_serving && merged.is_terminating };
            is_served |= is_admitted;
            let role = Role { ports: merged.ports.clone(), is_admitted };
            if self.waits {
                desired.waiting.insert(self.vip.clone());
            } else {
                self.place((pod, merged), role, desired, &mut notes);
            }
        }
        is_served |= self.slices.iter().any(|slice| slice.ready_elsewhere || slice.serving_elsewhere);
        if !is_served {
            notes.insert(Note::NoReadyEndpoints);
        }
        if self.slices.iter().any(|slice| slice.has_foreign) {
            notes.insert(Note::ForeignEndpoints);
        }
        notes.extend(ports::refused(self.service, &self.sharer.taken).into_iter().map(|refused| Note::PortRefused {
            port: format!("{}/{}", refused.port.number, refused.port.protocol),
            why: refused.why,
        }));
        if !notes.is_empty() {
            desired.notes.entry(self.key.clone()).or_default().extend(notes);
        }
    }

    /// The endpoints here, each once.
    fn endpoints(&self, notes: &mut BTreeSet<Note>) -> BTreeMap<PodId, Merged> {
        let mut found: BTreeMap<PodId, Merged> = BTreeMap::new();
        for slice in self.slices {
            for endpoint in &slice.here {
                let Some(pod) = self.pod_of(endpoint) else { continue };
                if pod.is_in_host_network {
                    let why = "it is in the node's own network, which has no VIPs".to_owned();
                    notes.insert(Note::PodNotAttachable { pod: endpoint.pod.clone(), why });
                    continue;
                }
                let address = pod.recorded_address().unwrap_or(endpoint.address);
                let id = PodId { key: endpoint.pod.clone(), uid: endpoint.uid.clone(), address };
                let policy = policies::selecting(&self.objects.policies, &endpoint.pod, pod.labels.as_ref());
                notes.extend(
                    policy
                        .map(|policy| Note::NetworkPolicyBlocks { pod: endpoint.pod.clone(), policy: policy.clone() }),
                );
                let next =
                    Merged { is_blocked: policy.is_some(), ..self.merged(endpoint, pod, slice) }.unless_blocked();
                match found.get_mut(&id) {
                    Some(merged) => merged.join(next),
                    None => drop(found.insert(id, next)),
                }
            }
        }
        found
    }

    /// The endpoint's pod, if it runs here under that identity and address. One that the pods' watch hasn't shown yet waits for it: it may
    /// as well be one that is gone.
    fn pod_of(&self, endpoint: &Endpoint) -> Option<&Pod> {
        let pod = self.objects.pods.get(&endpoint.pod)?;
        let is_it = pod.uid == endpoint.uid && pod.addresses.contains(&endpoint.address);
        (is_it && !pod.is_over).then_some(pod)
    }

    fn merged(&self, endpoint: &Endpoint, pod: &Pod, slice: &Slice) -> Merged {
        let is_ending = pod.is_ending && !self.service.publish_not_ready;
        Merged {
            is_ready: endpoint.is_ready && !is_ending,
            is_serving: endpoint.is_serving || endpoint.is_ready,
            is_terminating: endpoint.is_terminating || pod.is_ending,
            is_blocked: false,
            ports: self.ports(slice),
        }
    }

    /// The slice's ports by those of the Service: `targetPort` is the controller's business.
    fn ports(&self, slice: &Slice) -> BTreeMap<Port, u16> {
        let mut found = BTreeMap::new();
        for (of_service, port) in ports::served(self.service, &self.sharer.taken) {
            let target = slice.ports.iter().filter(|of_slice| of_slice.name == of_service.name);
            let target = target.filter_map(|of_slice| of_slice.target);
            let target =
                target.filter(|(_, protocol)| *protocol == Protocol::from(port.transport)).map(|(number, _)| number);
            // One of a name and protocol there is in a slice; if not, always the same.
            if let Some(target) = target.min() {
                found.insert(port, target);
            }
        }
        found
    }

    fn place(&self, (pod, merged): (PodId, Merged), role: Role, desired: &mut Desired, notes: &mut BTreeSet<Note>) {
        let is_mirror = self.objects.pods.get(&pod.key).is_some_and(|pod| pod.is_mirror);
        let attachment = self.known.find(&pod, is_mirror);
        let is_member = attachment.and_then(|attachment| attachment.vips.get(self.vip));
        // Whoever made it a replica otherwise says what it is there.
        if is_member.is_some_and(|member| member.source != Source::Service) {
            return;
        }
        // No port at all would mean all of them.
        if role.ports.is_empty() {
            return;
        }
        // One that ends was in it, or is too late: its runtime may have let go of it already.
        if attachment.is_none() && merged.is_terminating {
            return;
        }
        // One that is in it keeps its connections; none joins.
        if is_member.is_none() && merged.is_blocked {
            return;
        }
        let key = pod.key.clone();
        let (roles, others) = match attachment {
            Some(attachment) => {
                let others = attachment.vips.values().filter(|member| member.source != Source::Service).count();
                (desired.recorded.entry(attachment.name.clone()).or_default(), others)
            }
            None => (desired.unknown.entry(pod.clone()).or_default(), 0),
        };
        if let Some(role_before) = roles.vips.get_mut(self.vip) {
            // An older Service of this VIP has it too.
            role_before.join(role);
            return;
        }
        if roles.vips.len() + others >= MAX_VIPS {
            let why = format!("it is in {MAX_VIPS} VIPs already, which is as many as a pod can join");
            notes.insert(Note::PodNotAttachable { pod: key, why });
            return;
        }
        roles.pod = Some(pod);
        roles.vips.insert(self.vip.clone(), role);
    }
}

impl Desired {
    /// The Service that a VIP's port is of.
    pub fn owner<'a>(&'a self, vip: &'a VipKey, port: Port) -> &'a VipKey {
        self.owners.get(vip).and_then(|owners| owners.get(&port)).unwrap_or(vip)
    }
}

impl Role {
    /// The same pod by another Service of the VIP.
    fn join(&mut self, other: Self) {
        self.is_admitted |= other.is_admitted;
        for (port, target) in other.ports {
            self.ports.entry(port).or_insert(target);
        }
        while self.ports.len() > MAX_PORTS {
            self.ports.pop_last();
        }
    }
}

impl Merged {
    /// Who may reach its pod is the business of a policy that doesn't hold for VIPs: nobody, by them.
    fn unless_blocked(self) -> Self {
        let (is_ready, is_serving) = (self.is_ready && !self.is_blocked, self.is_serving && !self.is_blocked);
        Self { is_ready, is_serving, ..self }
    }

    /// The same endpoint in another slice, which the controller hasn't taken out of there yet.
    fn join(&mut self, other: Self) {
        self.is_ready |= other.is_ready;
        self.is_serving |= other.is_serving;
        self.is_terminating &= other.is_terminating;
        for (port, target) in other.ports {
            let known = self.ports.entry(port).or_insert(target);
            *known = target.min(*known);
        }
    }
}

/// A pod that no slice names any more, while it and a Service of its ports live, keeps its connections and gets no new ones: its labels have
/// changed, or it ends.
fn keep_connections(objects: &Objects, sharing: &Sharing<'_>, attachments: &[Attachment], desired: &mut Desired) {
    let alive: BTreeSet<&str> = objects.pods.values().filter(|pod| !pod.is_over).map(|pod| pod.uid.as_str()).collect();
    for attachment in attachments.iter().filter(|attachment| alive.contains(attachment.pod.uid.as_str())) {
        let others = attachment.vips.values().filter(|member| member.source != Source::Service).count();
        for (key, member) in attachment.vips.iter().filter(|(_, member)| member.source == Source::Service) {
            let named = |map: &PortMap| {
                let mut sharers = sharing.vips.get(key).into_iter().flatten();
                sharers.any(|sharer| sharer.service.ports.iter().any(|own| own.port() == Some(map.port)))
            };
            if !member.ports.iter().any(named) {
                continue;
            }
            let roles = desired.recorded.entry(attachment.name.clone()).or_default();
            if !roles.vips.contains_key(key) && roles.vips.len() + others < MAX_VIPS {
                let ports = member.ports.iter().map(|map| (map.port, map.target)).collect();
                roles.vips.insert(key.clone(), Role { ports, is_admitted: false });
            }
        }
    }
}

#[cfg(test)]
mod tests;
