use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::{Port, Transport};
use crate::registry::Netns;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn vip() -> VipKey {
    VipKey::new("shop", "web").unwrap()
}

fn discovery(check: &str, state: State) -> Discovery {
    let target = ProbeTarget {
        address: IpAddr::from([10, 118, 0, 7]),
        check: check.parse().unwrap(),
        ports: Vec::new(),
        netns: Netns { path: "/run/netns/p".into(), device: 4, inode: 5 },
        device: "vip0123".into(),
        pod: "shop/p".into(),
    };
    Discovery { target, state, drained: false }
}

fn batch(replicas: &[(&str, Discovery)]) -> Batch {
    let replicas = replicas.iter().map(|(name, found)| ((*name).to_owned(), found.clone())).collect();
    Batch { vips: BTreeMap::from([(vip(), replicas)]) }
}

/// A scheduler, and the time.
struct Scene(Scheduler, Instant);

impl Scene {
    fn new(replicas: &[(&str, Discovery)]) -> Self {
        let mut scene = Self(Scheduler::default(), Instant::now());
        scene.see(replicas);
        scene
    }

    fn see(&mut self, replicas: &[(&str, Discovery)]) {
        self.0.update(batch(replicas), self.1, || 0.5);
    }

    /// Those whose checks are due now.
    fn due(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.0.take(self.1, || 0.5).map(|(number, _)| number)).collect()
    }

    /// An interval later each target's check has this outcome.
    fn check(&mut self, outcome: &Outcome) -> Vec<HealthTransition> {
        self.1 += SECOND;
        let due = self.due();
        due.into_iter().filter_map(|number| self.0.record(number, outcome, self.1)).collect()
    }

    fn carry_out(&mut self, state: Option<State>) {
        let states = state.map(|state| BTreeMap::from([("a".to_owned(), state)]));
        self.0.applied(&Applied { vip: vip(), names: vec!["a".to_owned()], states });
    }
}

fn down() -> Outcome {
    Outcome::Down("no socket listens on 80/tcp".into())
}

#[test]
fn who_waits_is_looked_at_at_once_and_who_is_ready_in_its_turn() {
    let mut scene = Scene::new(&[("a", discovery("listen", State::Pending)), ("b", discovery("listen", State::Ready))]);
    assert_eq!(scene.due().len(), 1);
    assert_eq!(scene.0.next(), Some(scene.1 + SECOND / 2));
    scene.1 += SECOND;
    // The first one's check is under way.
    assert_eq!(scene.due().len(), 1);
    assert!(scene.due().is_empty());
}

#[test]
fn a_verdict_is_carried_out_once() {
    let mut scene = Scene::new(&[("a", discovery("listen", State::Pending))]);
    assert!(scene.check(&down()).is_empty());
    let transitions = scene.check(&Outcome::Up);
    assert_eq!((transitions.len(), transitions[0].status), (1, HealthStatus::Up));
    assert!(scene.check(&Outcome::Up).is_empty(), "while it is being carried out");
    scene.carry_out(Some(State::Ready));
    assert!(scene.check(&Outcome::Up).is_empty());
    assert!(scene.check(&down()).is_empty() && scene.check(&down()).is_empty());
    let transitions = scene.check(&down());
    assert_eq!(
        (transitions[0].status, transitions[0].why.as_str()),
        (HealthStatus::Down, "no socket listens on 80/tcp")
    );
}

#[test]
fn what_could_not_be_carried_out_is_tried_again() {
    let mut scene = Scene::new(&[("a", discovery("listen", State::Pending))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
    scene.carry_out(None);
    // Even if the registry has it already: it is the kernel that hasn't.
    scene.see(&[("a", discovery("listen", State::Ready))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
    scene.carry_out(Some(State::Ready));
    assert!(scene.check(&Outcome::Up).is_empty());
}

#[test]
fn what_is_seen_again_goes_on_counting() {
    let replica = discovery("listen fall=2", State::Ready);
    let mut scene = Scene::new(&[("a", replica.clone())]);
    assert!(scene.check(&down()).is_empty());
    scene.see(&[("a", replica.clone()), ("b", replica.clone())]);
    assert_eq!(scene.check(&down()).len(), 1);
    // Another namespace under the same name is another pod.
    let mut scene = Scene::new(&[("a", replica.clone())]);
    assert!(scene.check(&down()).is_empty());
    let mut other = replica;
    other.target.netns.inode = 6;
    scene.see(&[("a", other)]);
    assert!(scene.check(&down()).is_empty());
}

#[test]
fn one_taken_out_by_hand_is_left_alone() {
    let mut drained = discovery("listen", State::Draining);
    drained.drained = true;
    let mut scene = Scene::new(&[("a", drained)]);
    assert!(scene.check(&Outcome::Up).is_empty());
    scene.see(&[("a", discovery("listen", State::Pending))]);
    assert_eq!(scene.check(&Outcome::Up).len(), 1);
}

#[test]
fn who_is_gone_is_forgotten_unless_it_could_not_be_read() {
    let mut scene = Scene::new(&[("a", discovery("listen", State::Ready))]);
    scene.0.update(Batch::default(), scene.1, || 0.5);
    assert_eq!(scene.0.targets().count(), 1);
    scene.see(&[]);
    assert_eq!(scene.0.targets().count(), 0);
    assert!(scene.check(&down()).is_empty());
}

/// Up and down in turn, each second: the changes become rarer.
#[test]
fn a_replica_that_flaps_is_held_down() {
    let mut scene = Scene::new(&[("a", discovery("listen rise=1 fall=1", State::Ready))]);
    let mut changes = 0;
    for second in 0..120 {
        let outcome = if second % 2 == 0 { down() } else { Outcome::Up };
        for transition in scene.check(&outcome) {
            changes += 1;
            scene.carry_out(Some(if transition.status == HealthStatus::Up { State::Ready } else { State::Draining }));
        }
    }
    assert!((6..=20).contains(&changes), "{changes} changes in two minutes");
}

/// Ten times a second 64 ports: that pod is checked so often that it makes 100 connections a second, others as they ask.
#[test]
fn a_pod_that_asks_for_too_many_connections_is_checked_less_often() {
    let greedy = {
        let mut greedy = discovery("tcp interval=100ms", State::Ready);
        greedy.target.ports = (1..=64).map(|number| Port { number, transport: Transport::Tcp }.into()).collect();
        greedy
    };
    let modest = {
        let mut modest = discovery("tcp interval=100ms", State::Ready);
        modest.target.ports = greedy.target.ports[..1].to_vec();
        modest.target.netns.inode += 1;
        modest
    };
    let mut scene = Scene::new(&[("greedy", greedy), ("modest", modest)]);
    let (mut connects, mut modest_checks) = (0, 0);
    for _ in 0..1000 {
        scene.1 += Duration::from_millis(10);
        while let Some((number, target)) = scene.0.take(scene.1, || 0.5) {
            let count = target.ports.len();
            *(if count == 64 { &mut connects } else { &mut modest_checks }) += count;
            scene.0.record(number, &Outcome::Up, scene.1);
        }
    }
    assert!((900..=1100).contains(&connects), "{connects} connections in ten seconds");
    assert!((95..=105).contains(&modest_checks), "{modest_checks} checks in ten seconds");
    // Once it is gone nothing of it counts any more.
    scene.see(&[]);
    assert!(scene.0.connects.is_empty());
}
