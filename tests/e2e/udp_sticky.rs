//! UDP flows of pods that ask for it stay where they began, however seldom they speak.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Datagrams, Echo, Join, Kind, Outcome, Service, by_kind};

/// 300 flows in each place and of each kind of socket, half of them at each pace.
const FLOWS: usize = 150;

const PACES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

/// Longer than what forces a new replica's share (`unbalancedTimer` is 10 s), and three datagrams of the slow ones.
const SETTLED: Duration = Duration::from_secs(12);

fn sticky() -> Join {
    let mut join = Join::annotated("web");
    join.annotations = Some(json!({
        "viproute.io/vip": "web",
        "viproute.io/ports": "8080/udp,8080/tcp",
        "viproute.io/udp-sticky": "true",
    }));
    join
}

/// The flows that moved or lost something, but for those of `gone`.
fn assert_stayed(outcomes: &[Outcome], gone: &str) {
    let others = || outcomes.iter().filter(|outcome| outcome.replicas.first().is_none_or(|first| first != gone));
    let moved: Vec<_> = others().filter(|outcome| outcome.replicas.len() != 1).collect();
    let some: Vec<_> = moved.iter().take(5).map(|outcome| (&outcome.kind, &outcome.replicas)).collect();
    assert!(moved.is_empty(), "moved: {:?} {some:?}", by_kind(moved));
    let lossy: Vec<_> = others().filter(|outcome| outcome.lost > 0).collect();
    let some: Vec<_> = lossy.iter().take(5).map(|outcome| (outcome.lost, outcome.sent)).collect();
    assert!(lossy.is_empty(), "with losses: {:?} (lost, sent) {some:?}", by_kind(lossy));
    // Those of the one that left find another one, and stay there.
    let own: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.replicas.first().is_some_and(|first| first == gone)).collect();
    let restless: Vec<_> = own.iter().filter(|outcome| outcome.replicas.len() != 2).map(|o| &o.replicas).collect();
    assert!(restless.is_empty(), "{gone} has left; its flows have seen {restless:?}");
    assert!(!own.is_empty(), "{gone} had flows of its own");
}

#[test]
fn udp_flows_stay_when_replicas_join_drain_and_leave() {
    let service = Service::with(&sticky(), 3, 2);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let mut kinds = Vec::new();
    for (from, ns) in service.callers() {
        for every in PACES {
            kinds.extend([true, false].map(|connected| Kind { from, ns, connected, every }));
        }
    }
    let flows = Datagrams::start(service.vip, &kinds, FLOWS);
    thread::sleep(Duration::from_secs(4));
    service.add(&service.pods[3]);
    thread::sleep(SETTLED);
    service.drain(&service.pods[1]);
    service.remove(&service.pods[2]);
    service.add(&service.pods[4]);
    thread::sleep(SETTLED);
    assert_stayed(&flows.stop(), "p3");
}
