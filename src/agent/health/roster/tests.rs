use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::*;
use crate::registry::Netns;

const SECOND: Duration = Duration::from_secs(1);

fn vip() -> VipKey {
    VipKey::new("shop", "web").unwrap()
}

fn sighting(check: &str, state: State) -> Sighting {
    let subject = Subject {
        address: Ipv4Addr::new(10, 118, 0, 7),
        check: check.parse().unwrap(),
        ports: Vec::new(),
        netns: Netns { path: "/run/netns/p".into(), device: 4, inode: 5 },
        device: "vip0123".into(),
        pod: "shop/p".into(),
    };
    Sighting { subject, state, drained: false }
}

fn batch(replicas: &[(&str, Sighting)]) -> Batch {
    let replicas = replicas.iter().map(|(name, sighting)| ((*name).to_owned(), sighting.clone())).collect();
    Batch { all: true, vips: BTreeMap::from([(vip(), replicas)]), unread: Vec::new() }
}

/// A roster, and the time.
struct Scene(Roster, Instant);

impl Scene {
    fn new(replicas: &[(&str, Sighting)]) -> Self {
        let mut scene = Self(Roster::default(), Instant::now());
        scene.see(replicas);
        scene
    }

    fn see(&mut self, replicas: &[(&str, Sighting)]) {
        self.0.update(batch(replicas), self.1, || 0.5);
    }

    /// Those whose checks are due now.
    fn due(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.0.take(self.1, || 0.5).map(|(number, _)| number)).collect()
    }

    /// An interval later everybody's check has this outcome.
    fn check(&mut self, outcome: &Outcome) -> Vec<Sentence> {
        self.1 += SECOND;
        let due = self.due();
        due.into_iter().filter_map(|number| self.0.record(number, outcome)).collect()
    }

    fn carry_out(&mut self, state: Option<State>) {
        let states = state.map(|state| BTreeMap::from([("a".to_owned(), state)]));
        self.0.judged(&Judged { vip: vip(), names: vec!["a".to_owned()], states });
    }
}

fn down() -> Outcome {
    Outcome::Down("nobody listens on 80/tcp".into())
}

#[test]
fn who_waits_is_looked_at_at_once_and_who_is_ready_in_its_turn() {
    let mut scene = Scene::new(&[("a", sighting("listen", State::Pending)), ("b", sighting("listen", State::Ready))]);
    assert_eq!(scene.due().len(), 1);
    assert_eq!(scene.0.next(), Some(scene.1 + SECOND / 2));
    scene.1 += SECOND;
    // The first one's check is under way.
    assert_eq!(scene.due().len(), 1);
    assert!(scene.due().is_empty());
}

#[test]
fn a_verdict_is_carried_out_once() {
    let mut scene = Scene::new(&[("a", sighting("listen", State::Pending))]);
    assert!(scene.check(&down()).is_empty());
    let sentences = scene.check(&Outcome::Up);
    assert_eq!((sentences.len(), sentences[0].verdict), (1, Verdict::Up));
    assert!(scene.check(&Outcome::Up).is_empty(), "while it is being carried out");
    scene.carry_out(Some(State::Ready));
    assert!(scene.check(&Outcome::Up).is_empty());
    assert!(scene.check(&down()).is_empty() && scene.check(&down()).is_empty());
    let sentences = scene.check(&down());
    assert_eq!((sentences[0].verdict, sentences[0].why.as_str()), (Verdict::Down, "nobody listens on 80/tcp"));
}

#[test]
fn what_could_not_be_carried_out_is_tried_again() {
    let mut scene = Scene::new(&[("a", sighting("listen", State::Pending))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
    scene.carry_out(None);
    // Even if the registry has it already: it is the kernel that hasn't.
    scene.see(&[("a", sighting("listen", State::Ready))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
    scene.carry_out(Some(State::Ready));
    assert!(scene.check(&Outcome::Up).is_empty());
}

#[test]
fn what_is_seen_again_goes_on_counting() {
    let replica = sighting("listen fall=2", State::Ready);
    let mut scene = Scene::new(&[("a", replica.clone())]);
    assert!(scene.check(&down()).is_empty());
    scene.see(&[("a", replica.clone()), ("b", replica.clone())]);
    assert_eq!(scene.check(&down()).len(), 1);
    // Another namespace under the same name is another pod.
    let mut scene = Scene::new(&[("a", replica.clone())]);
    assert!(scene.check(&down()).is_empty());
    let mut other = replica;
    other.subject.netns.inode = 6;
    scene.see(&[("a", other)]);
    assert!(scene.check(&down()).is_empty());
}

#[test]
fn one_taken_out_by_hand_is_left_alone() {
    let mut drained = sighting("listen", State::Draining);
    drained.drained = true;
    let mut scene = Scene::new(&[("a", drained)]);
    assert!(scene.check(&Outcome::Up).is_empty());
    scene.see(&[("a", sighting("listen", State::Pending))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
}

#[test]
fn who_is_gone_is_forgotten_unless_it_could_not_be_read() {
    let mut scene = Scene::new(&[("a", sighting("listen", State::Ready))]);
    scene.0.update(Batch { all: true, unread: vec![vip()], ..Batch::default() }, scene.1, || 0.5);
    assert_eq!(scene.0.subjects().count(), 1);
    scene.0.update(Batch { all: true, ..Batch::default() }, scene.1, || 0.5);
    assert_eq!(scene.0.subjects().count(), 0);
    assert!(scene.check(&down()).is_empty());
}
