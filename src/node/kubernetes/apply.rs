//! Has what is desired done on this node: by membership, as every source has. Who gets no new connections any more comes first, then who
//! gets them, then who joins and leaves, one pod after the other; what changes meanwhile goes first again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::lease::state::Demand;
use crate::membership::{self, Change, Host, Pod, Want, admission, policy, running, set_vips};
use crate::model::{Addresses, NetworkSpec, PortMap, Source, VipKey, VipPolicy};
use crate::net::{self, NodeNet};
use crate::node::config::Config;
use crate::node::subsystems::SubsystemGuard;
use crate::node::{Context, Kind};
use crate::registry::{self, Registry, attachment_name, attachment_of, record};
use crate::with_causes;

use super::desired::{Attachment, Desired, Member, Note, PodId, Role, Roles, desired};
use super::listeners::Listeners;
use super::policy::Here;
use super::sharing::{Sharer, Sharing};
use super::{Shared, addresses, pause};

/// What failed is tried again after this, then after twice the time, up to the last.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// One pod's VIPs are changed so often at most: what comes back again and again mustn't take the processor.
const REST: Duration = Duration::from_millis(200);
/// Everything is looked at again after this time.
const ROUND: Duration = Duration::from_secs(5);

/// Does what is desired.
#[derive(Debug)]
pub struct Applier {
    context: Context,
    net: NodeNet,
    /// What the cluster calls this node.
    node: String,
    allocator: PathBuf,
    /// What the daemon was told of VIPs' addresses.
    demanded: BTreeMap<VipKey, Demand>,
    /// Which of them Services ask for.
    asked: BTreeMap<VipKey, Ipv4Addr>,
    /// What VIPs' records say that Services ask, but for the unpoliced.
    policies: BTreeMap<VipKey, VipPolicy>,
    /// Those of which that couldn't be written.
    unpoliced: BTreeSet<VipKey>,
    /// It was looked at all of them.
    has_policed: bool,
    /// When a pod's VIPs were changed, by its record or address.
    changed: BTreeMap<String, Instant>,
    /// What failed, likewise.
    failed: BTreeMap<String, Failure>,
    listeners: Listeners,
}

#[derive(Debug)]
struct Failure {
    times: u32,
    again: Instant,
    pod: String,
    vips: Vec<VipKey>,
    why: String,
}

/// A pod whose VIPs have to change.
struct Todo {
    name: String,
    join: Vec<Want>,
    leave: Vec<VipKey>,
    pod: Option<PodId>,
}

impl Applier {
    /// That has done nothing yet. `node`: what the cluster calls this one.
    pub fn new(context: Context, net: NodeNet, (config, node): (&Config, &str)) -> Self {
        let (node, allocator, listeners) = (node.to_owned(), config.socket.clone(), Listeners::default());
        let had = std::mem::take(&mut context.services.shared().had);
        let demanded = had.into_iter().map(|vip| (vip, Demand::Elsewhere)).collect();
        let (asked, changed, failed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (policies, unpoliced, has_policed) = (BTreeMap::new(), BTreeSet::new(), false);
        Self {
            context,
            net,
            node,
            allocator,
            demanded,
            asked,
            policies,
            unpoliced,
            has_policed,
            changed,
            failed,
            listeners,
        }
    }

    /// Applies whenever something has changed, until viprouted ends.
    pub fn run(mut self, wakes: &Receiver<()>, guard: &SubsystemGuard) {
        let mut wait = Duration::ZERO;
        loop {
            guard.turn();
            match wakes.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            while wakes.try_recv().is_ok() {}
            wait = match self.round(guard, || wakes.try_recv().is_ok()) {
                Ok(Done::Interrupted) => Duration::ZERO,
                Ok(Done::Resting) => REST,
                Ok(Done::All) => self.next_try().min(self.listeners.next()).min(guard.period()).min(ROUND),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "Services can't be applied");
                    ROUND
                }
            };
        }
    }

    fn next_try(&self) -> Duration {
        let next = self.failed.values().map(|failure| failure.again).min();
        next.map_or(ROUND, |at| at.saturating_duration_since(Instant::now()))
    }

    fn round(&mut self, guard: &SubsystemGuard, has_changed: impl Fn() -> bool) -> registry::Result<Done> {
        let attachments = recorded(&self.context.registry)?;
        let (sharers, found) = self.seen(&attachments);
        self.demand(&sharers, found.as_ref());
        // What is known only of before the start moves nobody: the registry is younger.
        let Some(mut found) = found else { return Ok(Done::All) };
        self.listeners.hold_back(&self.net, &attachments, &self.addresses(), &mut found);
        self.police(&found);
        self.admit(&attachments, &found);
        let todos = self.todos(&attachments, &found);
        self.failed.retain(|name, _| todos.iter().any(|todo| todo.name == *name));
        self.changed.retain(|_, at| at.elapsed() < REST);
        let mut done = Done::All;
        for todo in todos {
            guard.turn();
            if self.failed.get(&todo.name).is_some_and(|failure| Instant::now() < failure.again) {
                continue;
            }
            if self.changed.contains_key(&todo.name) {
                done = Done::Resting;
                continue;
            }
            self.changed.insert(todo.name.clone(), Instant::now());
            self.carry_out(todo);
            if has_changed() {
                done = Done::Interrupted;
                break;
            }
        }
        self.publish(&sharers, found);
        Ok(done)
    }

    /// Who has which VIP, and what is to be; the latter as soon as the API says it.
    fn seen(&self, attachments: &[Attachment]) -> (Sharers, Option<Desired>) {
        let shared = self.context.services.shared();
        let objects = shared.store.objects();
        let sharing = Sharing::of(objects);
        let addresses = shared.all_addresses();
        let here = Here { node: &self.node, has_ipv6: shared.has_ipv6, addresses: &addresses };
        let found = shared.store.is_live().then(|| desired(objects, &sharing, attachments, here));
        let keys = |sharers: &Vec<Sharer<'_>>| sharers.iter().map(|sharer| sharer.key.clone()).collect();
        let vips = sharing.vips.iter().map(|(vip, sharers)| (vip.clone(), keys(sharers))).collect();
        (Sharers { vips, asked: sharing.asked }, found)
    }

    /// Tells the daemon which VIPs are to have an address: those of pods here, and those that this node keeps.
    fn demand(&mut self, sharers: &Sharers, found: Option<&Desired>) {
        let nodes = self.context.peers.status();
        let mut shared = self.context.services.shared();
        let here = found.map(Desired::vips).unwrap_or_default();
        let mut wanted = BTreeMap::new();
        let asked = &sharers.asked;
        for vip in sharers.vips.keys() {
            let is_wanted = here.contains(vip) || addresses::is_keeper(vip, nodes.as_ref());
            let demand = if is_wanted { Demand::Wanted } else { Demand::Elsewhere };
            wanted.insert(vip.clone(), demand);
        }
        if found.is_none() {
            // Which Services are gone isn't known yet.
            wanted = self.demanded.clone().into_iter().chain(wanted).collect();
        }
        shared.asked.clone_from(asked);
        let Some(demands) = &shared.demands else { return };
        for (vip, demand) in wanted.iter().filter(|(vip, _)| asked.get(*vip) != self.asked.get(*vip)) {
            let _ = demands.send((vip.clone(), *demand));
        }
        for order in addresses::demands(&self.demanded, &wanted) {
            // Its reader is gone only while viprouted ends.
            let _ = demands.send(order);
        }
        // One that was refused, because there are too many, may be had by now.
        for vip in wanted.iter().filter(|(_, demand)| **demand == Demand::Wanted).map(|(vip, _)| vip) {
            if shared.leases.get(vip).is_some_and(|lease| lease.address.is_none() && lease.error.is_some()) {
                let _ = demands.send((vip.clone(), Demand::Wanted));
            }
        }
        drop(shared);
        (self.demanded, self.asked) = (wanted, asked.clone());
    }

    /// Has VIPs' records say what Services ask, of those that have changed and of those of which something else is asked. Before a pod joins:
    /// nobody gets in who mustn't.
    fn police(&mut self, found: &Desired) {
        let touched = {
            let mut shared = self.context.services.shared();
            shared.policies = Some(found.policies.clone());
            std::mem::take(&mut shared.touched)
        };
        let mut due = touched.vips;
        let keys = found.policies.keys().chain(self.policies.keys());
        due.extend(keys.filter(|vip| found.policies.get(*vip) != self.policies.get(*vip)).cloned());
        due.append(&mut self.unpoliced);
        if touched.is_all || !self.has_policed {
            due.extend(self.context.registry.vips().unwrap_or_default());
        }
        for vip in due {
            let wanted = found.policies.get(&vip).cloned().unwrap_or_default();
            match policy::set(&self.net, &self.context.registry, &vip, &wanted) {
                Ok(false) => {}
                Ok(true) => tracing::info!(%vip, ?wanted, "what Services ask of its clients"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%vip, error, "what its Services ask of its clients could not be carried out");
                    self.unpoliced.insert(vip);
                }
            }
        }
        self.has_policed = true;
        self.policies.clone_from(&found.policies);
    }

    /// Who gets new connections and who doesn't, VIP by VIP.
    fn admit(&self, attachments: &[Attachment], found: &Desired) {
        let mut by_vip: BTreeMap<&VipKey, BTreeMap<String, bool>> =
            found.others.iter().map(|(vip, admitted)| (vip, admitted.clone())).collect();
        for attachment in attachments {
            let Some(roles) = found.recorded.get(&attachment.name) else { continue };
            for (vip, member) in attachment.vips.iter().filter(|(_, member)| member.source == Source::Service) {
                let role = roles.vips.get(vip).filter(|role| role.is_admitted != member.is_admitted);
                if let Some(role) = role {
                    by_vip.entry(vip).or_default().insert(attachment.name.clone(), role.is_admitted);
                }
            }
        }
        for (vip, admitted) in by_vip {
            match admission::admit(&self.net, &self.context.registry, vip, &admitted) {
                Ok(changes) => log(vip, &changes),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%vip, error, "which replicas get connections, by Services and policies, could not be carried out");
                }
            }
        }
    }

    fn todos(&self, attachments: &[Attachment], found: &Desired) -> Vec<Todo> {
        let mut todos = Vec::new();
        for attachment in attachments {
            let roles = found.recorded.get(&attachment.name);
            let of_services = attachment.vips.iter().filter(|(_, member)| member.source == Source::Service);
            let is_over = |vip: &VipKey| roles.is_none_or(|roles| !roles.vips.contains_key(vip));
            let leave: Vec<VipKey> = of_services.map(|(vip, _)| vip).filter(|vip| is_over(vip)).cloned().collect();
            let join = roles.map(|roles| self.joins(roles, Some(attachment), found)).unwrap_or_default();
            if !join.is_empty() || !leave.is_empty() {
                let pod = roles.and_then(|roles| roles.pod.clone());
                todos.push(Todo { name: attachment.name.clone(), join, leave, pod });
            }
        }
        for (pod, roles) in &found.unknown {
            let join = self.joins(roles, None, found);
            if !join.is_empty() {
                todos.push(Todo { name: pod.address.to_string(), join, leave: Vec::new(), pod: Some(pod.clone()) });
            }
        }
        todos
    }

    /// What differs from what the pod is. A VIP that has no address yet waits for it: nobody else is to wait meanwhile.
    fn joins(&self, roles: &Roles, attachment: Option<&Attachment>, found: &Desired) -> Vec<Want> {
        let policy = |vip: &VipKey| found.policies.get(vip).cloned();
        let wants = roles.vips.iter().map(|(vip, role)| Want { policy: policy(vip), ..want(vip, role) });
        let differs = |want: &Want| {
            let member = attachment.and_then(|attachment| attachment.vips.get(&want.vip));
            member.is_none_or(|member| member.ports != want.ports)
        };
        wants.filter(differs).filter(|want| self.has_address(&want.vip)).collect()
    }

    /// Those of the VIPs that have one.
    fn addresses(&self) -> BTreeMap<VipKey, Addresses> {
        self.context.services.shared().all_addresses()
    }

    fn has_address(&self, vip: &VipKey) -> bool {
        self.context.services.shared().leases.get(vip).is_some_and(|lease| lease.address.is_some())
    }

    fn carry_out(&mut self, todo: Todo) {
        let Todo { name, join, leave, pod } = todo;
        let shown = pod.as_ref().map_or_else(|| name.clone(), |pod| pod.key.clone());
        match self.set_vips(&name, pod.as_ref(), &Change { join: &join, leave: &leave }) {
            Ok(()) => drop(self.failed.remove(&name)),
            Err(error) => {
                let why = with_causes(&error);
                let vips: Vec<VipKey> = join.iter().map(|want| want.vip.clone()).chain(leave).collect();
                let times = self.failed.get(&name).map_or(0, |failure| failure.times);
                if times == 0 {
                    tracing::warn!(pod = shown, why, "a Service's pod can't join or leave its VIP");
                    let text = format!("{shown} can't join or leave: {why}");
                    self.context.journal.record(Kind::Trouble, vips.first(), text);
                }
                let again = Instant::now() + pause(AGAIN, times);
                self.failed.insert(name, Failure { times: times.saturating_add(1), again, pod: shown, vips, why });
            }
        }
    }

    fn set_vips(&self, name: &str, id: Option<&PodId>, change: &Change<'_>) -> Result<(), Error> {
        let registry = &self.context.registry;
        let (pod, network) = find(registry, name, id)?;
        let network = match network {
            Some(network) => network,
            None => any_network(registry)?,
        };
        let host = Host::open(network, registry.clone(), self.allocator.clone())?;
        set_vips(&host, &pod, change)?;
        Ok(())
    }

    /// What there is to say of Services goes to who says it.
    fn publish(&self, sharers: &Sharers, found: Desired) {
        let mut notes = found.notes;
        let mut shared = self.context.services.shared();
        for failure in self.failed.values() {
            for service in failure.vips.iter().flat_map(|vip| sharers.of(vip)) {
                let note = Note::PodNotAttachable { pod: failure.pod.clone(), why: failure.why.clone() };
                notes.entry(service.clone()).or_default().insert(note);
            }
        }
        note_external(&shared, sharers, &mut notes);
        shared.kept_out = found.kept_out;
        if shared.notes != notes {
            shared.notes = notes;
            drop(shared);
            self.context.services.0.changed.notify_one();
        }
    }
}

/// Who has which VIP, in a round.
struct Sharers {
    /// By VIP the Services that have it, by their own names.
    vips: BTreeMap<VipKey, Vec<VipKey>>,
    /// The addresses that they ask for.
    asked: BTreeMap<VipKey, Ipv4Addr>,
}

impl Sharers {
    fn of(&self, vip: &VipKey) -> impl Iterator<Item = &VipKey> {
        self.vips.get(vip).into_iter().flatten()
    }
}

/// Who says a VIP's address as one of its own.
fn note_external(shared: &Shared, sharers: &Sharers, notes: &mut BTreeMap<VipKey, BTreeSet<Note>>) {
    for (service, addresses) in &shared.external {
        for (vip, lease) in &shared.leases {
            let own = lease.address.and_then(|_| shared.addresses(vip));
            let Some(address) = own.and_then(|own| own.iter().find(|one| addresses.contains(one))) else { continue };
            for sharer in sharers.of(vip) {
                let note = Note::ExternalIp { service: service.clone(), address };
                notes.entry(sharer.clone()).or_default().insert(note);
            }
        }
    }
}

fn log(vip: &VipKey, changes: &BTreeMap<String, (registry::State, registry::State)>) {
    for (name, (before, now)) in changes.iter().filter(|(_, (before, now))| before != now) {
        tracing::info!(%vip, replica = name, before = before.name(), now = now.name(), "by Kubernetes");
    }
}

/// How far a round got.
enum Done {
    All,
    /// A pod was changed just now, and is to be changed again.
    Resting,
    /// Something has changed meanwhile.
    Interrupted,
}

/// Why a pod's VIPs are as they were.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} is recorded no longer")]
    Gone(String),
    #[error(transparent)]
    Membership(#[from] membership::Error),
    #[error(transparent)]
    Running(#[from] running::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Net(#[from] net::Error),
}

impl Desired {
    /// What pods of this node are to be in.
    fn vips(&self) -> BTreeSet<&VipKey> {
        self.recorded.values().chain(self.unknown.values()).flat_map(|roles| roles.vips.keys()).collect()
    }
}

/// The pod of that record, or where there is none of that address, and its network's settings.
fn find(registry: &Registry, name: &str, id: Option<&PodId>) -> Result<(Pod, Option<NetworkSpec>), Error> {
    let gone = || Error::Gone(name.to_owned());
    let Some(attachment) = attachment_of(name) else {
        let id = id.ok_or_else(gone)?;
        let found = running::by_address(registry, id.address)?;
        let pod = if found.pod.name.is_unnamed() { Pod { name: named(id), ..found.pod } } else { found.pod };
        return Ok((pod, found.network));
    };
    let record = registry.attachment_record(&attachment)?.ok_or_else(gone)?;
    let address = id.map(|id| id.address).or(record.address).ok_or_else(gone)?;
    let network = record.network_spec();
    let others = running::of_ipv6(running::own_addresses(&record.netns, &attachment.ifname)?);
    Ok((Pod { attachment, netns: record.netns, address, others, name: record.pod }, network))
}

fn want(vip: &VipKey, role: &Role) -> Want {
    let ports = role.ports.iter().map(|(port, target)| PortMap { port: *port, target: *target }).collect();
    Want { ports, admitted: role.is_admitted, ..Want::new(vip.clone(), Source::Service) }
}

/// As the API names a pod that no runtime has named.
fn named(id: &PodId) -> record::Pod {
    let (namespace, name) = id.key.split_once('/').unwrap_or(("", &id.key));
    record::Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: id.uid.clone() }
}

/// The settings of a pod's network that the plugin wasn't called for: those of any other pod's, else the defaults.
fn any_network(registry: &Registry) -> registry::Result<NetworkSpec> {
    for attachment in registry.attachments()? {
        if let Some(spec) =
            registry.attachment_record(&attachment).ok().flatten().and_then(|record| record.network_spec())
        {
            return Ok(spec);
        }
    }
    Ok(NetworkSpec::default())
}

/// The pods that are recorded and live, and what they are in their VIPs. A damaged record is left out: doctor reports it.
fn recorded(registry: &Registry) -> registry::Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for attachment in registry.attachments()? {
        let Some(record) = registry.attachment_record(&attachment).ok().flatten() else { continue };
        if !record.netns.is_still_there() {
            continue;
        }
        let name = attachment_name(&attachment);
        let (mut address, mut pod, mut vips): (Option<IpAddr>, _, _) =
            (record.address, record.pod.clone(), BTreeMap::new());
        for vip in record.keys() {
            let Some(endpoint) = registry.endpoint(&vip, &name).ok().flatten() else { continue };
            let ports = endpoint.known_ports().collect();
            // One that an earlier version wrote leaves that to its replicas.
            if address.is_none() {
                (address, pod) = (Some(endpoint.address()), endpoint.pod.clone());
            }
            vips.insert(vip, Member { source: endpoint.source, ports, is_admitted: endpoint.admitted });
        }
        found.push(Attachment { name, pod, address, netns: record.netns.clone(), vips });
    }
    Ok(found)
}
