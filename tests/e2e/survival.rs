//! Whatever happens to the VIP, a live TCP connection stays with the replica it began with: 1,000 from an outside client,
//! 1,000 from a pod, 1,000 from the node itself.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Families, Flows, Join, Pod, Run, Service, churn, connect};

/// Live connections from each caller.
const FLOWS: usize = 1000;

/// Long enough for buckets without a packet to count as idle (`idleTimer` is 1 s), and to move.
const IDLE: Duration = Duration::from_millis(2500);

/// How long everything happens at once.
const TUMULT: Duration = Duration::from_secs(15);

struct Live {
    flows: Vec<Flows>,
    /// Replicas that were removed: their connections are lost.
    gone: Vec<String>,
    service: Service,
    _turn: MutexGuard<'static, ()>,
}

/// Both ends of all connections are this process's files, of which there is a limit: two at a time.
fn turn() -> MutexGuard<'static, ()> {
    static PLACES: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let place = &PLACES[NEXT.fetch_add(1, Ordering::Relaxed) % PLACES.len()];
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Three replicas and a pod that hasn't joined.
    fn new() -> Self {
        Self::with_spares(1)
    }

    fn with_spares(spares: usize) -> Self {
        let turn = turn();
        Self::of(turn, Service::new(3, spares), FLOWS)
    }

    /// Of a VIP of both families: half as many connections to each of its addresses.
    fn dual() -> Self {
        let turn = turn();
        Self::of(turn, Service::dual(&Join::annotated("web"), 3, 1, Families::Both), FLOWS / 2)
    }

    fn of(turn: MutexGuard<'static, ()>, service: Service, count: usize) -> Self {
        let flows = service.flows(count);
        // Else nothing here would tell a replica from another.
        for flows in &flows {
            assert_eq!(flows.live().len(), 3, "each replica has connections from {}", flows.from);
        }
        Self { flows, gone: Vec::new(), service, _turn: turn }
    }

    /// Asks all connections, at once and again when their buckets were idle for a while.
    fn assert_unbroken(&mut self) {
        self.question();
        thread::sleep(IDLE);
        self.question();
    }

    fn question(&mut self) {
        self.flows.iter_mut().for_each(Flows::ask);
        self.flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = self.flows.iter().filter_map(|flows| flows.complaint(&self.gone)).collect();
        assert!(complaints.is_empty(), "of {FLOWS} connections each\n{}", complaints.join("\n"));
    }
}

// What can happen. Each works alone, and all of them one after the other.

fn a_replica_joins(live: &mut Live) {
    live.service.add(&live.service.pods[3]);
}

fn a_replica_leaves(live: &mut Live) {
    let pod = &live.service.pods[2];
    live.service.remove(pod);
    live.gone.push(pod.name.clone());
}

fn a_replica_drains(live: &mut Live) {
    let draining = &live.service.pods[1];
    live.service.drain(draining);
    let addresses = live.service.addresses();
    let calls = addresses.iter().flat_map(|to| live.service.callers_of(*to).into_iter().map(move |call| (*to, call)));
    for (to, (from, ns)) in calls {
        let tally = connect(ns, to, 100);
        assert!(!tally.names.contains_key(&draining.name), "{} drains: new ones from {from}: {tally:?}", draining.name);
    }
}

/// Connections that are where the group would not send them live by the maps that are replaced.
fn another_build_replaces_the_flow_owner(live: &mut Live) {
    live.service.drain(&live.service.pods[1]);
    live.service.node.make_programs_another_builds();
    live.service.add(&live.service.pods[3]);
}

fn weights_change(live: &mut Live) {
    live.service.weigh(&live.service.pods[0], 9);
}

fn the_route_is_deleted(live: &mut Live) {
    delete_route(&live.service);
    live.flows.iter_mut().for_each(Flows::ask);
    thread::sleep(Duration::from_millis(300));
    live.service.sync();
    live.flows.iter_mut().for_each(Flows::hear);
}

fn delete_route(service: &Service) {
    service.node.ns.ip(&format!("route del {} proto 118 metric 0", service.vip));
    if let Some(vip6) = service.vip6 {
        service.node.ns.ip(&format!("route del {vip6} proto 118 metric 1"));
    }
}

fn other_routes_come_and_go(live: &mut Live) {
    for third in 100..105 {
        other_route(&live.service, third);
    }
}

fn other_route(service: &Service, third: u8) {
    let node = &service.node.ns;
    node.ip(&format!("route add 198.51.{third}.0/24 via 192.0.2.254"));
    node.ip("route flush cache");
    node.ip(&format!("route del 198.51.{third}.0/24"));
}

fn the_link_is_lost(live: &mut Live) {
    live.service.lose_link(|| {
        live.flows.iter_mut().for_each(Flows::ask);
        thread::sleep(Duration::from_secs(3));
    });
    live.flows.iter_mut().for_each(Flows::hear);
}

fn another_hash(live: &mut Live) {
    live.service.node.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
}

impl Service {
    /// While `work` runs nothing from the LAN arrives, and no reply of a replica gets back to anybody.
    fn lose_link(&self, work: impl FnOnce()) {
        const LOSS: &str = "table ip loss {
            chain replies { type filter hook prerouting priority -300; iifname \"vip*\" drop; }
        }\n";
        let node = &self.node.ns;
        self.lan.ns.ip("link set port0 down");
        node.cmd("nft").args(["-f", "-"]).finish(LOSS).ok();
        work();
        node.cmd("nft").args(["delete", "table", "ip", "loss"]).finish("").ok();
        self.lan.ns.ip("link set port0 up");
    }
}

fn survives(step: fn(&mut Live)) {
    let mut live = Live::new();
    step(&mut live);
    live.assert_unbroken();
}

/// The same of connections to both addresses of a VIP.
fn survives_in_both_families(step: fn(&mut Live)) {
    let mut live = Live::dual();
    step(&mut live);
    live.assert_unbroken();
}

#[test]
fn connections_survive_a_replica_that_joins() {
    survives(a_replica_joins);
}

#[test]
fn connections_survive_a_replica_that_leaves() {
    survives(a_replica_leaves);
}

#[test]
fn connections_survive_a_drain() {
    survives(a_replica_drains);
}

#[test]
fn connections_survive_another_build() {
    survives(another_build_replaces_the_flow_owner);
}

#[test]
fn connections_survive_other_weights() {
    survives(weights_change);
}

#[test]
fn connections_survive_a_deleted_route() {
    survives(the_route_is_deleted);
}

#[test]
fn connections_survive_other_routes() {
    survives(other_routes_come_and_go);
}

#[test]
fn connections_survive_three_seconds_without_a_link() {
    survives(the_link_is_lost);
}

#[test]
fn connections_of_both_families_survive_a_replica_that_joins() {
    survives_in_both_families(a_replica_joins);
}

#[test]
fn connections_of_both_families_survive_a_replica_that_leaves() {
    survives_in_both_families(a_replica_leaves);
}

#[test]
fn connections_of_both_families_survive_a_drain() {
    survives_in_both_families(a_replica_drains);
}

#[test]
fn connections_of_both_families_survive_another_build() {
    survives_in_both_families(another_build_replaces_the_flow_owner);
}

#[test]
fn connections_of_both_families_survive_a_deleted_route() {
    survives_in_both_families(the_route_is_deleted);
}

#[test]
fn connections_of_both_families_survive_other_routes() {
    survives_in_both_families(|live| {
        other_routes_come_and_go(live);
        for third in 100..105 {
            let node = &live.service.node.ns;
            node.ip(&format!("route add 2001:db8:{third}::/48 via 2001:db8::fe"));
            node.ip("-6 route flush cache");
            node.ip(&format!("route del 2001:db8:{third}::/48"));
        }
    });
}

#[test]
fn connections_of_both_families_survive_other_weights() {
    survives_in_both_families(weights_change);
}

/// Policy 1 lets the sender's hash decide, and TCP changes that after a time-out. ADD sets the policy right, so it is set
/// wrong again and again.
#[test]
fn connections_survive_another_hash_policy() {
    let steps = [
        a_replica_joins,
        a_replica_leaves,
        a_replica_drains,
        weights_change,
        the_route_is_deleted,
        other_routes_come_and_go,
        the_link_is_lost,
    ];
    let mut live = Live::new();
    another_hash(&mut live);
    live.assert_unbroken();
    for step in steps {
        step(&mut live);
        another_hash(&mut live);
        live.assert_unbroken();
    }
}

#[test]
fn connections_survive_everything_at_once() {
    let mut live = Live::with_spares(5);
    let length = churn(TUMULT);
    let over = AtomicBool::new(false);
    let events = Mutex::new(Vec::new());
    let Live { flows, gone, service, .. } = &mut live;
    let members = thread::scope(|scope| {
        for flows in flows {
            scope.spawn(|| ask_until(flows, &over));
        }
        scope.spawn(|| routes(service, &over, &events));
        scope.spawn(|| links(service, &over, &events, length / 4));
        let members = scope.spawn(|| members(service, &over, &events));
        thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        members.join()
    });
    // Captured, so it is seen where it matters.
    eprintln!("{:#?}", events.lock().unwrap());
    gone.extend(members.expect("replicas that come and go"));
    live.assert_unbroken();
}

type Events = Mutex<Vec<String>>;

fn note(events: &Events, event: String) {
    events.lock().unwrap().push(event);
}

fn pause(longest: u64) {
    thread::sleep(Duration::from_millis(rand::random_range(10..longest)));
}

fn ask_until(flows: &mut Flows, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        flows.ask();
        flows.hear();
        pause(300);
    }
}

fn routes(service: &Service, over: &AtomicBool, events: &Events) {
    while !over.load(Ordering::Relaxed) {
        if rand::random_range(0..4) == 0 {
            note(events, "the VIP's route is deleted".into());
            delete_route(service);
            pause(200);
            service.sync();
        } else {
            other_route(service, 100);
        }
        pause(500);
    }
}

fn links(service: &Service, over: &AtomicBool, events: &Events, before: Duration) {
    let once = Instant::now() + before;
    pause(2000);
    while !over.load(Ordering::Relaxed) {
        note(events, "another hash".into());
        service.node.ns.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        if Instant::now() > once {
            note(events, "the link is lost".into());
            service.lose_link(|| thread::sleep(Duration::from_secs(3)));
            note(events, "the link is back".into());
            return;
        }
        pause(2000);
    }
}

/// Replicas come and go; returns the names of those that went.
fn members(service: &Service, over: &AtomicBool, events: &Events) -> Vec<String> {
    let (serving, spare) = service.pods.split_at(3);
    let mut serving: Vec<_> = serving.iter().collect();
    let (mut spare, mut draining): (Vec<_>, Vec<&Pod>) = (spare.iter().collect(), Vec::new());
    let mut gone = Vec::new();
    let any = |pods: &[&Pod]| rand::random_range(0..pods.len());
    while !over.load(Ordering::Relaxed) {
        let event = match rand::random_range(0..5) {
            0 if !spare.is_empty() => {
                let pod = spare.pop().unwrap();
                service.add(pod);
                serving.push(pod);
                format!("{} joins", pod.name)
            }
            // Not all of the first three: else nothing would be left to break.
            1 if serving.len() > 2 && gone.len() < 2 => {
                let pod = serving.swap_remove(any(&serving));
                // Said before: its connections may be lost from now on.
                gone.push(pod.name.clone());
                service.remove(pod);
                format!("{} left", pod.name)
            }
            2 if serving.len() > 1 => {
                let pod = serving.swap_remove(any(&serving));
                service.drain(pod);
                draining.push(pod);
                format!("{} drains", pod.name)
            }
            3 if !draining.is_empty() => {
                let pod = draining.swap_remove(any(&draining));
                service.undrain(pod);
                serving.push(pod);
                format!("{} drains no more", pod.name)
            }
            _ => {
                let (pod, weight) = (serving[any(&serving)], rand::random_range(1..6));
                service.weigh(pod, weight);
                format!("{} weighs {weight}", pod.name)
            }
        };
        note(events, event);
        pause(800);
    }
    gone
}
