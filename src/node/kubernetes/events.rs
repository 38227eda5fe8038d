//! What people read in `kubectl describe service`. A condition is told when it comes; one that comes and goes, three times in ten minutes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::ebpf::MEMBERS;
use crate::lease::pools::Refusal;
use crate::model::{Family, VipKey};

use super::addresses::Lease;
use super::api::ANSWER;
use super::desired::Note;
use super::listeners::OwnAddressOnly;
use super::objects::{EXCLUDED, Key, Service};
use super::register::Refused;
use super::status::Written;

/// As who events are told.
const CONTROLLER: &str = "viproute.io/viprouted";
/// One of a Service and reason is told so often in this time.
const LIMIT: (usize, Duration) = (3, Duration::from_secs(600));
/// What is so at first with most Services is worth a word only if it stays.
const SETTLES: Duration = Duration::from_secs(10);
/// So many wait to be told at most.
const MOST: usize = 200;
/// The API takes no longer note.
const LONGEST: usize = 1000;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    vip: VipKey,
    uid: String,
    reason: &'static str,
    is_warning: bool,
    note: String,
}

/// A condition that lasts.
#[derive(Debug)]
struct Condition {
    since: Instant,
    is_told: bool,
    /// It was there when everything was last looked at.
    seen: Instant,
}

/// Decides what is told.
#[derive(Debug, Default)]
struct Limiter {
    lasting: BTreeMap<Said, Condition>,
    told: BTreeMap<(String, &'static str), VecDeque<Instant>>,
    waiting: VecDeque<Said>,
}

impl Limiter {
    /// Something is so at `now`.
    fn lasts(&mut self, said: Said, settles: Duration, now: Instant) {
        let condition = self.lasting.entry(said.clone()).or_insert(Condition { since: now, is_told: false, seen: now });
        condition.seen = now;
        if !condition.is_told && now.saturating_duration_since(condition.since) >= settles {
            condition.is_told = true;
            self.tell(said, now);
        }
    }

    /// Something has happened.
    fn tell(&mut self, said: Said, now: Instant) {
        let (most, within) = LIMIT;
        let told = self.told.entry((said.uid.clone(), said.reason)).or_default();
        while told.front().is_some_and(|at| now.saturating_duration_since(*at) >= within) {
            told.pop_front();
        }
        if told.len() < most && self.waiting.len() < MOST {
            told.push_back(now);
            self.waiting.push_back(said);
        }
    }

    /// What isn't so any more.
    fn forget(&mut self, now: Instant) {
        self.lasting.retain(|_, condition| condition.seen == now);
        let within = LIMIT.1;
        self.told.retain(|_, told| told.back().is_some_and(|at| now.saturating_duration_since(*at) < within));
    }
}

/// Who sends Events: one sender a text. A sender takes what is said of a Service with the same reason for a repetition, and counts it, with
/// the words of the first one.
struct Recorders {
    client: kube::Client,
    reporter: Reporter,
    by_text: BTreeMap<Said, (Recorder, Instant)>,
}

impl Recorders {
    fn of(&mut self, said: &Said, now: Instant) -> &Recorder {
        // What is told anew after that time is a new Event.
        self.by_text.retain(|_, (_, last)| now.saturating_duration_since(*last) < LIMIT.1);
        let new = || (Recorder::new(self.client.clone(), self.reporter.clone()), now);
        let (recorder, last) = self.by_text.entry(said.clone()).or_insert_with(new);
        *last = now;
        recorder
    }
}

/// Tells the API.
#[derive(Debug)]
pub struct Announcer {
    limiter: Limiter,
    to: tokio::sync::mpsc::Sender<Said>,
}

impl Announcer {
    /// That has told nothing. `node`: this one.
    pub fn new(client: kube::Client, node: &str) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        let mut recorders = Recorders { client, reporter, by_text: BTreeMap::new() };
        let (to, mut said) = tokio::sync::mpsc::channel(1);
        // Ends with the sender.
        tokio::spawn(async move {
            while let Some(next) = said.recv().await {
                let recorder = recorders.of(&next, Instant::now());
                publish(recorder, next).await;
            }
        });
        Self { limiter: Limiter::default(), to }
    }

    /// What keeps a Service from its address, or from one of the pool that it names.
    pub fn on_lease(
        &mut self,
        vip: &VipKey,
        service: &Service,
        (lease, refused): (Option<&Lease>, Option<&Refused>),
        now: Instant,
    ) {
        let (reason, note) = match (lease, refused) {
            (Some(Lease { address: None, error: Some(why), .. }), _) => {
                (refused.map_or("NoAddress", |refused| reason_of(refused.kind)), format!("no address so far: {why}"))
            }
            (Some(Lease { address: Some(address), .. }), Some(Refused { kind, why })) => {
                (reason_of(*kind), format!("it keeps {address}: {why}"))
            }
            _ => return,
        };
        let said = Said { vip: vip.clone(), uid: service.uid.clone(), reason, is_warning: true, note };
        self.limiter.lasts(said, Duration::from_secs(2), now);
    }

    /// A Service can't have the address that it asks for, as far as that is known by now.
    pub fn on_refused(&mut self, vip: &VipKey, service: &Service, why: &str, now: Instant) {
        let (reason, note, _) = phrased(&Note::AddressRefused { why: why.to_owned() });
        let said = Said { vip: vip.clone(), uid: service.uid.clone(), reason, is_warning: true, note };
        self.limiter.lasts(said, Duration::from_secs(1), now);
    }

    /// A Service can't keep the address that its status says.
    pub fn on_conflict(&mut self, vip: &VipKey, service: &Service, note: String) {
        tracing::warn!(%vip, "{note}");
        let (vip, uid) = (vip.clone(), service.uid.clone());
        self.limiter.tell(Said { vip, uid, reason: "AddressConflict", is_warning: true, note }, Instant::now());
    }

    /// What there is to say of Services, by their names. `is_kept`: this node speaks for all of it.
    pub fn on_notes(
        &mut self,
        notes: &BTreeMap<VipKey, BTreeSet<Note>>,
        services: &BTreeMap<Key, Service>,
        is_kept: impl Fn(&VipKey) -> bool,
        now: Instant,
    ) {
        for (vip, notes) in notes {
            let Some(service) = services.get(&vip.to_string()) else { continue };
            for note in notes {
                let (reason, text, settles) = phrased(note);
                // Its own pods each node speaks for.
                if is_kept(vip) || is_of_a_pod(note) {
                    let uid = service.uid.clone();
                    let said = Said { vip: vip.clone(), uid, reason, is_warning: true, note: text };
                    self.limiter.lasts(said, settles, now);
                }
            }
        }
        self.limiter.forget(now);
    }

    /// A Service's status was written.
    pub fn on_written(&mut self, written: Written) {
        let Written { vip, uid, addresses, instead_of, is_new, lacks_mode: _, error } = written;
        let now = Instant::now();
        if let Some(error) = error {
            tracing::warn!(%vip, error, "the status of a Service could not be written");
            return;
        }
        if addresses.is_empty() {
            tracing::info!(%vip, "status written: no address any more");
            return;
        }
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let address = addresses.join(", ");
        tracing::info!(%vip, %address, "status written");
        if is_new {
            let note = address;
            self.limiter.tell(Said { vip, uid, reason: "AddressAssigned", is_warning: false, note }, now);
        } else if let Some(other) = instead_of {
            let note = format!(
                "{other} writes this Service's status too, which says {address}: it is this load balancer's by its class"
            );
            self.limiter.tell(Said { vip, uid, reason: "StatusOverwritten", is_warning: true, note }, now);
        }
    }

    /// Sends what waits, one after the other.
    pub fn send(&mut self) {
        while let Some(next) = self.limiter.waiting.pop_front() {
            if let Err(error) = self.to.try_send(next) {
                if let tokio::sync::mpsc::error::TrySendError::Full(next) = error {
                    self.limiter.waiting.push_front(next);
                }
                return;
            }
        }
    }
}

fn reason_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "UnknownPool",
        Refusal::Unserved => "PoolRefused",
        Refusal::UsedUp => "PoolExhausted",
        Refusal::Address => "AddressRefused",
    }
}

fn is_of_a_pod(note: &Note) -> bool {
    matches!(
        note,
        Note::PodNotAttachable { .. }
            | Note::NotListening(_)
            | Note::NetworkPolicyBlocks { .. }
            | Note::ManyReplicas { .. }
    )
}

/// Reason, words, and for how long it has to be so.
pub fn phrased(note: &Note) -> (&'static str, String, Duration) {
    match note {
        Note::NoReadyEndpoints => ("NoReadyEndpoints", "no pod is ready: connections are refused".to_owned(), SETTLES),
        Note::PodNotAttachable { pod, why } => {
            ("PodNotAttachable", format!("{pod} gets no connections: {why}"), Duration::from_secs(2))
        }
        Note::PortRefused { port, why } => ("PortRefused", format!("{port} isn't served: {why}"), Duration::ZERO),
        Note::NotListening(OwnAddressOnly { pod, port, at }) => {
            let text = format!(
                "{pod} serves {port} at {at} only, the pod's own address, and can't be reached there by the VIP: it is to listen on all addresses (0.0.0.0)"
            );
            ("NotListening", text, Duration::ZERO)
        }
        Note::NetworkPolicyBlocks { pod, policy } => {
            let text = format!(
                "{pod} gets no connections: the NetworkPolicy {policy} says who may reach it, and wouldn't hold for what comes by the VIP"
            );
            ("NetworkPolicyBlocks", text, Duration::ZERO)
        }
        Note::AllNodesExcluded => {
            let text = format!(
                "every node has the label {EXCLUDED}, so nodes that have it answer for the address all the same"
            );
            ("AllNodesExcluded", text, Duration::from_secs(2))
        }
        Note::NotShared { why } => ("NotShared", format!("no address: {why}"), Duration::ZERO),
        Note::ManyReplicas { pods } => {
            let text = format!(
                "{pods} of its pods are on one node: of more than {MEMBERS} those that were of use last are asked for a connection that has come to another one"
            );
            ("ManyReplicas", text, SETTLES)
        }
        Note::ExternalIp { service, address } => {
            let text = format!(
                "{service} has {address} in its spec.externalIPs: kube-proxy takes what comes for it there, so take it out of that list"
            );
            ("ExternalIpConflict", text, Duration::ZERO)
        }
        Note::SourceRangesRefused { why } => {
            ("SourceRangesRefused", format!("loadBalancerSourceRanges: {why}"), Duration::ZERO)
        }
        Note::PolicyNotShared { vip } => {
            let text = format!(
                "externalTrafficPolicy: Local counts for {vip} only where all Services that share it say so: it is served as Cluster"
            );
            ("TrafficPolicyIgnored", text, Duration::ZERO)
        }
        Note::NoFamily { family, waits, why } => no_family(*family, *waits, why.as_deref()),
        Note::AddressRefused { why } => {
            ("AddressRefused", format!("it can't have the address that it asks for: {why}"), Duration::ZERO)
        }
        Note::ForeignEndpoints => {
            let text = "an endpoint is no pod of a node of the cluster, and gets no connections".to_owned();
            ("ForeignEndpoints", text, SETTLES)
        }
    }
}

fn no_family(family: Family, waits: bool, why: Option<&str>) -> (&'static str, String, Duration) {
    let why =
        why.map_or_else(|| " (cidr6 of its pool, or [dhcp6], in viprouted.toml)".to_owned(), |why| format!(": {why}"));
    let (reason, text) = if waits {
        ("NoAddress", format!("no address so far, and no pod serves it: its VIP has none of {family}{why}"))
    } else {
        ("NoAddressOfFamily", format!("no address of {family}: its VIP has none{why}"))
    };
    (reason, text, Duration::from_secs(2))
}

async fn publish(recorder: &Recorder, said: Said) {
    let Said { vip, uid, reason, is_warning, note } = said;
    let service = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(vip.namespace().to_owned()),
        name: Some(vip.name().to_owned()),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: if is_warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note.chars().take(LONGEST).collect()),
        action: "Serve".to_owned(),
        secondary: None,
    };
    match tokio::time::timeout(ANSWER, recorder.publish(&event, &service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%vip, reason, error = super::api::reason(&error), "event not told"),
        Err(_) => tracing::debug!(%vip, reason, "event not told in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(reason: &'static str, note: &str) -> Said {
        Said { vip: "shop/web".parse().unwrap(), uid: "u1".into(), reason, is_warning: true, note: note.into() }
    }

    #[test]
    fn a_condition_is_told_once_and_when_it_comes_again_three_times() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut limiter = Limiter::default();
        for second in 0..30 {
            limiter.lasts(said("NoReadyEndpoints", "x"), SETTLES, at(second));
            limiter.forget(at(second));
        }
        assert_eq!(limiter.waiting.len(), 1, "it lasts");
        for second in 30..600 {
            if second % 20 > 5 {
                limiter.lasts(said("NoReadyEndpoints", "x"), SETTLES, at(second));
            }
            limiter.forget(at(second));
        }
        assert_eq!(limiter.waiting.len(), 3, "it comes and goes");
        limiter.tell(said("AddressAssigned", "192.0.2.7"), at(600));
        assert_eq!(limiter.waiting.len(), 4, "another reason");
    }

    #[test]
    fn what_passes_soon_isnt_told() {
        let begun = Instant::now();
        let mut limiter = Limiter::default();
        limiter.lasts(said("NoReadyEndpoints", "x"), SETTLES, begun);
        limiter.forget(begun + Duration::from_secs(1));
        limiter.lasts(said("NoReadyEndpoints", "x"), SETTLES, begun + SETTLES);
        assert!(limiter.waiting.is_empty());
    }
}
