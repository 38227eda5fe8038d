//! All that talks to the API: watches, the status of Services, events, what is kept over a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;

use crate::api::protocol::Nodes;
use crate::lease::beside::Beside;
use crate::lease::pools::{Refusal, Wish};
use crate::model::VipKey;
use crate::node::config::Kubernetes;
use crate::node::subsystems::SubsystemGuard;
use crate::node::{Context, problems};
use crate::registry::Registry;
use crate::with_causes;

use super::addresses::{Lease, is_keeper};
use super::api::{self, Place};
use super::asked::{Ask, Permitted};
use super::events::Announcer;
use super::examine::{Subject, examine};
use super::objects::{Class, Service};
use super::pool::PoolKeeper;
use super::register::{Claimant, Cluster};
use super::remembered::Remembered;
use super::sharing::{Sharer, Sharing, Taken};
use super::status::{Status, StatusWriter, Written};
use super::store::{Heard, Kind};
use super::watches::{self, Watched};
use super::{Excluded, Services, Shared};

/// What the watches may be ahead of who reads them.
const AHEAD: usize = 256;
/// The loop turns so often with nothing to do.
const TURN: Duration = Duration::from_secs(1);
/// What is known is written to disk so often at most.
const SAVE: Duration = Duration::from_secs(10);
/// An API that says nothing for so long is looked for elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// What isn't taken up is heard anew after this time.
const ANEW: Duration = Duration::from_secs(10);
/// The API is told of what changes within this time at once.
const TOGETHER: Duration = Duration::from_millis(30);
/// Without a client it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// What the thread needs.
#[derive(Debug)]
pub struct Engine {
    context: Context,
    settings: Kubernetes,
    /// What the cluster calls this node.
    node: String,
    known: Known,
    save_due: Instant,
    /// Which of the places is tried.
    turn: usize,
    /// It has told the others that the node leaves.
    has_left: bool,
}

/// What outlives a client.
#[derive(Debug)]
pub struct Known {
    /// Where it is kept.
    pub state_dir: PathBuf,
    /// What is on disk.
    pub saved: Remembered,
    /// The pool's register; none: addresses come from elsewhere.
    pub pool: Option<PoolKeeper>,
    /// Labels of Services that pools ask for.
    pub labels: BTreeSet<String>,
    /// The cluster's nodes serve VIPs together.
    pub together: bool,
    /// Which addresses Services may ask for.
    pub permitted: Permitted,
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Why a client isn't used any more.
enum Over {
    /// Nothing is heard there.
    Silent,
    /// It has to be heard anew.
    Held,
}

impl Engine {
    /// That hasn't asked anything yet.
    pub fn new(context: Context, settings: Kubernetes, node: String, known: Known) -> Self {
        Self { context, settings, node, known, save_due: Instant::now(), turn: 0, has_left: false }
    }

    /// Runs until viprouted ends.
    pub async fn run(mut self, guard: &SubsystemGuard) {
        loop {
            guard.turn();
            let places = api::places(&self.settings, &self.servers());
            let place = &places[self.turn % places.len()];
            match tokio::time::timeout(api::ANSWER, api::client(&self.settings, place)).await {
                Ok(Ok(client)) => match self.serve(client, place, guard).await {
                    Over::Silent => self.turn += 1,
                    Over::Held => {}
                },
                Ok(Err(error)) => self.pause(with_causes(&error), guard).await,
                Err(_) => self.pause(with_causes(&api::Error::TimedOut), guard).await,
            }
        }
    }

    async fn pause(&mut self, problem: String, guard: &SubsystemGuard) {
        self.turn += 1;
        self.context.problems.set(problems::KUBERNETES, Some(problem));
        guard.turn();
        tokio::time::sleep(AGAIN).await;
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let now = Remembered::servers_of(self.context.services.shared().store.objects());
        if now.is_empty() { self.known.saved.servers.clone() } else { now }
    }

    async fn serve(&mut self, client: kube::Client, place: &Place, guard: &SubsystemGuard) -> Over {
        tracing::info!(?place, node = self.node, "watching Kubernetes");
        let (sender, mut heard) = tokio::sync::mpsc::channel(AHEAD);
        self.context.services.shared().store.restart();
        let watched = Watched {
            has_pool: self.known.pool.is_some(),
            class: Class {
                name: self.settings.class.clone(),
                is_default: self.settings.default_class,
                permitted: self.known.permitted.clone(),
                labels: self.known.labels.clone(),
            },
            ignores_exclude_label: self.settings.ignore_exclude_label,
            ignores_policies: self.settings.ignore_policies,
            node: self.node.clone(),
        };
        // They end with it.
        let _watches = watches::start(&client, &watched, &sender);
        let mut status = StatusWriter::new(client.clone());
        let mut events = Announcer::new(client.clone(), &self.node);
        let mut tick = tokio::time::interval(TURN);
        let mut due = None;
        let begun = Instant::now();
        let mut live_at = begun;
        let services = self.context.services.clone();
        let (examiner, mut asked) = tokio::sync::mpsc::unbounded_channel();
        services.shared().examiner = Some(examiner);
        loop {
            tokio::select! {
                Some(first) = heard.recv() => self.hear(first, &mut heard),
                () = next(&mut self.known.pool) => {}
                () = services.0.changed.notified() => {}
                written = status.next_done() => self.on_written(written, &status, &mut events),
                Some(examination) = asked.recv() => {
                    tokio::spawn(examine(client.clone(), self.subject(), examination));
                }
                () = until(due) => {
                    due = None;
                    self.speak(&client, &mut status, &mut events);
                    continue;
                }
                _ = tick.tick() => {
                    guard.turn();
                    if let Some(over) = self.look(begun, &mut live_at) {
                        services.shared().examiner = None;
                        return over;
                    }
                    self.save().await;
                }
            }
            // What comes together is told together.
            due = due.or_else(|| Some(tokio::time::Instant::now() + TOGETHER));
        }
    }

    fn on_written(&self, written: Written, status: &StatusWriter, events: &mut Announcer) {
        self.context.services.shared().lacks_mode = status.lacks_mode();
        events.on_written(written);
    }

    /// What doctor's questions to the API are about.
    fn subject(&self) -> Subject {
        let registry = &self.context.registry;
        let mut replicas: BTreeMap<String, BTreeSet<VipKey>> = BTreeMap::new();
        for attachment in registry.attachments().unwrap_or_default() {
            let Some(record) = registry.attachment_record(&attachment).ok().flatten() else { continue };
            if let Some(pod) = record.pod.label() {
                replicas.entry(pod).or_default().extend(record.keys());
            }
        }
        replicas.retain(|_, vips| !vips.is_empty());
        Subject { node: self.node.clone(), has_pool: self.known.pool.is_some(), replicas }
    }

    /// Everything that is there already is one change for who applies.
    fn hear(&mut self, first: Heard, more: &mut Receiver<Heard>) {
        let mut shared = self.context.services.shared();
        let mut has_changed = false;
        let mut next = Some(first);
        while let Some(heard) = next {
            match (heard, &mut self.known.pool) {
                (Heard::Addresses(change), Some(pool)) => pool.hear(change),
                (Heard::Addresses(_), None) => {}
                (Heard::Unclaimed(change), _) => Services::unclaimed(&mut shared, change),
                (Heard::External(change), _) => {
                    shared.has_external(change);
                    has_changed = true;
                }
                (Heard::Failed(Kind::Addresses, why), Some(pool)) => {
                    pool.on_failed(&why);
                    has_changed |= shared.store.hear(Heard::Failed(Kind::Addresses, why));
                }
                (heard, _) => has_changed |= shared.store.hear(heard),
            }
            next = more.try_recv().ok();
        }
        if has_changed {
            let objects = shared.store.objects();
            if self.known.together {
                let addresses = objects.nodes.values().flat_map(|node| &node.addresses).copied();
                self.context.services.0.nodes.set(addresses.collect());
            }
            let excluded = Excluded::of(objects, &self.node);
            shared.exclude(excluded);
            shared.wake();
            let own = shared.store.objects().nodes.get(&self.node);
            let is_ending = shared.store.is_live() && own.is_some_and(|node| node.is_shutting_down);
            let was_ending = std::mem::replace(&mut shared.is_node_ending, is_ending);
            drop(shared);
            self.follow_shutdown(was_ending, is_ending);
        }
    }

    /// The others take this node's connections while its pods still serve those that they have.
    fn follow_shutdown(&mut self, was_ending: bool, is_ending: bool) {
        let peers = &self.context.peers;
        match (was_ending, is_ending) {
            (false, true) => {
                tracing::info!("the cluster says that this node is being shut down: it leaves the others");
                self.has_left = !peers.has_left() && peers.leave();
            }
            (true, false) if std::mem::take(&mut self.has_left) => {
                tracing::info!("this node is not being shut down any more");
                peers.stay();
            }
            _ => {}
        }
    }

    /// Once a second: what is wrong, and whether another client is to be had.
    fn look(&self, begun: Instant, live_at: &mut Instant) -> Option<Over> {
        let now = Instant::now();
        let mut shared = self.context.services.shared();
        shared.store.forget_failures(now);
        let (problem, is_held, is_silent) = (shared.store.problem(), shared.store.is_held(), shared.store.is_silent());
        drop(shared);
        self.context.problems.set(problems::KUBERNETES, problem);
        if is_held && now.saturating_duration_since(begun) >= ANEW {
            return Some(Over::Held);
        }
        if !is_silent {
            *live_at = now;
        }
        (now.saturating_duration_since(*live_at) >= ELSEWHERE).then_some(Over::Silent)
    }

    /// Tells the API what has changed, and the pool: once it is known which Services there are.
    fn speak(&mut self, client: &kube::Client, status: &mut StatusWriter, events: &mut Announcer) {
        let (nodes, services) = (self.context.peers.status(), self.context.services.clone());
        let shared = services.shared();
        if !shared.store.is_live() {
            return;
        }
        let sharing = Sharing::of(shared.store.objects());
        self.tell((&shared, &sharing, nodes.as_ref()), status, events);
        let registry = &self.context.registry;
        let scene = Scene { sharing: &sharing, nodes: nodes.as_ref(), registry, beside: &shared.beside };
        let Some(pool) = &mut self.known.pool else { return };
        turn_pool(pool, client, &scene, events);
        let given = pool.given();
        drop(shared);
        services.on_given(given);
    }

    /// Has statuses written and events sent, of the Services that this node keeps.
    fn tell(
        &self,
        (shared, sharing, nodes): (&Shared, &Sharing<'_>, Option<&Nodes>),
        status: &mut StatusWriter,
        events: &mut Announcer,
    ) {
        let now = Instant::now();
        let mut kept: BTreeSet<&VipKey> = BTreeSet::new();
        let mut wanted: BTreeMap<&VipKey, Status<'_>> = BTreeMap::new();
        let mut of_families = Vec::new();
        for (vip, sharer) in sharing.all().filter(|(vip, _)| is_keeper(vip, nodes)) {
            let lease = shared.leases.get(vip);
            let refused = self.known.pool.as_ref().and_then(|pool| pool.refused(vip));
            let refused = refused.filter(|refused| refused.kind != Refusal::Address || sharer.service.ask != Ask::Any);
            match self.refusal(sharing, vip, sharer.service, lease) {
                Some(why) => events.on_refused(&sharer.key, sharer.service, &why, now),
                None => events.on_lease(&sharer.key, sharer.service, (lease, refused), now),
            }
            kept.insert(&sharer.key);
            let has_lease = lease.is_some_and(|lease| lease.address.is_some());
            let given = sharer.service.families.given(shared.addresses(vip).as_ref());
            let is_asked = lease.is_some_and(|lease| lease.asks_ipv6);
            of_families.extend(
                given
                    .note(lease.and_then(|lease| lease.error6.as_ref()))
                    .filter(|_| !is_asked)
                    .map(|note| (sharer.key.clone(), note)),
            );
            // One whose ports are all others' has no part of the address. One that is being searched for may be the one of before.
            if has_lease || !sharer.has_any() {
                let addresses = if sharer.has_any() { given.addresses } else { Vec::new() };
                wanted.insert(&sharer.key, Status { service: sharer.service, taken: &sharer.taken, addresses });
            }
        }
        let none = Taken::new();
        for (key, service) in sharing.refused.iter().filter(|(key, _)| is_keeper(key, nodes)) {
            kept.insert(key);
            wanted.insert(key, Status { service, taken: &none, addresses: Vec::new() });
        }
        let is_kept = |key: &VipKey| kept.contains(key);
        let mut all = shared.notes.clone();
        for (key, note) in of_families {
            all.entry(key).or_default().insert(note);
        }
        events.on_notes(&all, &shared.store.objects().services, is_kept, now);
        status.write(wanted.into_iter(), now);
        events.send();
    }

    /// Why a Service that asks a DHCP server for an address has another one, or none.
    fn refusal(&self, sharing: &Sharing<'_>, vip: &VipKey, service: &Service, lease: Option<&Lease>) -> Option<String> {
        let asked = sharing.asked.get(vip).filter(|_| service.ask != Ask::Any)?;
        // Of a pool its register says that.
        if self.known.pool.is_some() {
            return None;
        }
        let Lease { address, error, .. } = lease?;
        match address {
            Some(address) if *address == IpAddr::V4(*asked) => None,
            Some(address) => Some(format!(
                "its lease is of {address}, and DHCP moves no lease: make the Service anew to have {asked} asked for"
            )),
            None => error.clone(),
        }
    }

    /// Writes down what is in force, if it is what the API says and differs from what was written.
    async fn save(&mut self) {
        let now = Instant::now();
        if now < self.save_due {
            return;
        }
        self.save_due = now + SAVE;
        let known = {
            let shared = self.context.services.shared();
            let store = &shared.store;
            if !store.is_live() || self.known.saved.is(store.cluster(), store.objects()) {
                return;
            }
            Remembered::of(store.cluster(), store.objects())
        };
        let (state_dir, text) = (self.known.state_dir.clone(), known.clone());
        match tokio::task::spawn_blocking(move || text.save(&state_dir)).await {
            Ok(Ok(())) => self.known.saved = known,
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "what is known of Kubernetes isn't kept");
            }
            Err(_) => {}
        }
    }
}

/// Gives the pool's addresses out and takes them back.
fn turn_pool(pool: &mut PoolKeeper, client: &kube::Client, scene: &Scene<'_>, events: &mut Announcer) {
    for (vip, why) in pool.turn(client, scene) {
        if let Some(sharer) = scene.sharing.vips.get(&vip).and_then(|sharers| sharers.first()) {
            events.on_conflict(&sharer.key, sharer.service, why);
        }
    }
}

async fn next(pool: &mut Option<PoolKeeper>) {
    match pool {
        Some(pool) => pool.next().await,
        None => std::future::pending().await,
    }
}

/// What the register asks of VIPs.
struct Scene<'a> {
    sharing: &'a Sharing<'a>,
    nodes: Option<&'a Nodes>,
    registry: &'a Registry,
    beside: &'a Beside,
}

impl Cluster for Scene<'_> {
    fn service(&self, vip: &VipKey) -> Option<(&str, i64)> {
        let oldest = self.sharing.vips.get(vip)?.first()?;
        Some((&oldest.service.uid, oldest.service.created))
    }

    fn is_keeper(&self, vip: &VipKey) -> bool {
        is_keeper(vip, self.nodes)
    }

    fn is_used(&self, vip: &VipKey) -> bool {
        // Other nodes' replicas are recorded too.
        self.registry.endpoint_names(vip).is_ok_and(|names| !names.is_empty())
    }

    fn wish<'a>(&'a self, vip: &'a VipKey) -> Wish<'a> {
        let sharers = self.sharing.vips.get(vip).map_or(&[][..], Vec::as_slice);
        // That of its own name speaks for it, and in its place the oldest.
        let Some(own) = sharers.iter().find(|sharer| sharer.key == *vip).or(sharers.first()) else {
            return Wish::of(vip);
        };
        let pool = Some(own.service.pool.as_str()).filter(|pool| !pool.is_empty());
        let address = self.sharing.asked.get(vip).copied();
        Wish { namespace: vip.namespace(), pool, labels: Some(&own.service.labels), address }
    }

    fn services(&self) -> Box<dyn Iterator<Item = Claimant> + '_> {
        let oldest = |(vip, sharers): (&VipKey, &Vec<Sharer<'_>>)| {
            let stated =
                sharers.iter().find_map(|sharer| sharer.service.stated().and_then(|stated| self.beside.leased(stated)));
            Some(Claimant { created: sharers.first()?.service.created, vip: vip.clone(), stated })
        };
        Box::new(self.sharing.vips.iter().filter_map(oldest))
    }
}
