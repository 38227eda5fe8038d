//! Many replicas of one VIP, many VIPs at once.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::harness::{Join, Lan, Node, Pod, allow_many_files, bare_pod, for_each, nothing_left};

#[test]
fn a_thousand_replicas_of_one_vip() {
    allow_many_files();
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    let first = bare_pod(1);
    node.add(&first, &web).ok();
    let id = node.ns.ip_json("nexthop show proto 118 groups")[0]["id"].clone();
    let start = Instant::now();
    let mut pods = for_each(2..1001, |number| {
        let pod = bare_pod(number);
        node.add(&pod, &web).ok();
        pod
    });
    eprintln!("999 pods and their ADDs: {:?}", start.elapsed());
    let group = node.ns.ip_json(&format!("nexthop show id {id}"));
    assert_eq!(group[0]["group"].as_array().map(Vec::len), Some(1000), "the members of nexthop {id}");
    let route = node.ns.ip(&format!("route get {}", first.vip()));
    assert!(route.contains("dev vip"), "the VIP leads to a replica: {route}");
    assert!(route.contains("cwnd 1000"), "the number of replicas in {route}");
    node.check(&first, &web).ok();
    node.check(pods.last().unwrap(), &web).ok();
    pods.push(first);
    let start = Instant::now();
    for_each(0..pods.len(), |at| node.del(&pods[at], &web).ok());
    eprintln!("1000 DELs: {:?}", start.elapsed());
    nothing_left(&node);
}

/// All at the same moment, as when a node starts: none fails, and none waits for another VIP.
#[test]
fn a_hundred_vips_at_once() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pods = for_each(1..101, bare_pod);
    let join = |pod: &Pod| Join::annotated(&format!("vip-{}", pod.name));
    thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(pod, &join(pod)))).collect();
        for add in adds {
            add.join().expect("an ADD").ok();
        }
    });
    let mut vips: Vec<_> = pods.iter().map(Pod::vip).collect();
    vips.sort();
    vips.dedup();
    assert_eq!(vips.len(), 100, "an address of its own for each VIP");
    assert_eq!(node.ns.ip_json("nexthop show proto 118 groups").len(), 100);
    for pod in &pods {
        node.check(pod, &join(pod)).ok();
    }
    thread::scope(|scope| {
        let dels: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.del(pod, &join(pod)))).collect();
        for del in dels {
            del.join().expect("a DEL").ok();
        }
    });
    nothing_left(&node);
}

/// A number from the environment, for a measurement.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// What programs that have ended took of the processors.
fn programs_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children");
    let of = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// As when a deployment is deleted. With `VIPROUTE_LEAVING=1000` it is a measurement.
#[test]
fn all_replicas_of_a_vip_leave_at_once() {
    allow_many_files();
    let many = number("VIPROUTE_LEAVING", 60);
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    let pods = for_each(1..many + 1, |number| {
        let pod = bare_pod(number);
        node.add(&pod, &web).ok();
        pod
    });
    let (begun, cpu) = (Instant::now(), programs_cpu());
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let leave = |pod| {
            let begun = Instant::now();
            node.del(pod, &web).ok();
            begun.elapsed()
        };
        let leaving: Vec<_> = pods.iter().map(|pod| scope.spawn(move || leave(pod))).collect();
        leaving.into_iter().map(|del| del.join().expect("a DEL")).collect()
    });
    took.sort();
    let (all, cpu) = (begun.elapsed(), programs_cpu().saturating_sub(cpu));
    eprintln!(
        "{many} DELs at once: {all:.2?}, processors {cpu:.2?}, median {:.2?}, slowest {:.2?}",
        took[many / 2],
        took[many - 1]
    );
    nothing_left(&node);
}

/// A slot that no other VIP has is found among however many. With `VIPROUTE_OTHER_VIPS=1000` it is a measurement.
#[test]
fn an_add_beside_many_vips() {
    allow_many_files();
    let many = number("VIPROUTE_OTHER_VIPS", 60);
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let one = |number: usize| {
        let (pod, join) = (bare_pod(number), Join::annotated(&format!("vip-{number}")));
        let (begun, cpu) = (Instant::now(), programs_cpu());
        node.add(&pod, &join).ok();
        let took = (begun.elapsed(), programs_cpu().saturating_sub(cpu));
        (pod, join, took)
    };
    let measured = |when: &str| {
        let mut took = Vec::new();
        for number in 0..20 {
            let (pod, join, of_add) = one(5000 + number);
            took.push(of_add);
            node.del(&pod, &join).ok();
        }
        let median = |mut all: Vec<Duration>| {
            all.sort();
            all[all.len() / 2]
        };
        let (wall, cpu): (Vec<_>, Vec<_>) = took.into_iter().unzip();
        eprintln!("an ADD of a new VIP {when}: {:.2?}, processors {:.2?}", median(wall), median(cpu));
    };
    measured("alone");
    let others = for_each(1..many + 1, |number| one(number).0);
    measured(&format!("beside {many} others"));
    assert_eq!(node.ns.ip_json("nexthop show proto 118 groups").len(), others.len(), "a group of its own for each");
}
