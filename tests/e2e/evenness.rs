//! New connections are spread evenly, soon after a replica has joined, and under load that leaves no bucket idle.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Netns, PATIENCE, Pod, Service, Storm, until};

/// New connections a second that are tried.
const RATE: u32 = 5000;

/// What the machine must make of it for the test to show anything: at so many a second, with 1,024 buckets and several
/// packets a connection, too few buckets are ever idle for a second to make up a share.
const LEAST_RATE: f64 = 1000.0;

#[test]
fn a_new_replica_has_its_share_within_seconds_under_load() {
    let service = Service::new(3, 1);
    let storm = Storm::start(&service.client, service.vip, RATE);
    thread::sleep(Duration::from_secs(1));
    service.add(&service.pods[3]);
    let (start, before) = (Instant::now(), storm.seen().answers());
    thread::sleep(Duration::from_secs(15));
    let rate = float(storm.seen().answers() - before) / start.elapsed().as_secs_f64();
    // By chance it is 1 % off (standard deviation). Buckets that few of the client's ports fall into were the first to be
    // idle, and went to the new one: that makes its share some 7 % smaller where one client has all connections.
    let seen = storm.next(20_000);
    assert_eq!(seen.failed, [""; 0]);
    assert!(rate >= LEAST_RATE, "this machine makes {rate:.0} connections a second: too few to show anything");
    let share = float(seen.of("p4")) / float(seen.answers());
    assert!((0.85..=1.15).contains(&(share * 4.0)), "{share:.3} instead of a quarter at {rate:.0} a second: {seen:?}");
}

/// The 1 % quantile's other side for nine degrees of freedom: ten replicas.
const CHI_SQUARE: f64 = 21.67;

#[test]
fn ten_replicas_share_evenly() {
    let service = Service::new(10, 0);
    // Of 1,024 buckets each of ten has 102 or 103 once those that were idle for a second have moved.
    until("buckets in their places", PATIENCE, || {
        let even = |replica: &Value| (101.0..104.0).contains(&(replica["buckets"].as_f64().expect("a share") * 1024.0));
        service.status()["replicas"].as_array().expect("replicas").iter().all(even).then_some(())
    });
    let first = chi_square(&service, &service.client);
    // Perfect evenness is rejected once in a hundred times: then once more, by connections from another address.
    let other = service.lan.client(51, &["10.118.0.0/16 via 192.0.2.1"]);
    let value = if first < CHI_SQUARE { first } else { chi_square(&service, &other) };
    assert!(value < CHI_SQUARE, "evenness is rejected twice: {first:.1}, {value:.1}");
}

/// How far what comes of 30,000 connections is from a tenth for each, as finely as 1,024 buckets can be divided by ten.
fn chi_square(service: &Service, client: &Netns) -> f64 {
    let seen = Storm::start(client, service.vip, RATE * 4).next(30_000);
    assert_eq!(seen.failed, [""; 0]);
    let bucket = float(seen.answers()) / 1024.0;
    let part = |pod: &Pod| {
        let answers = float(seen.of(&pod.name));
        let expected = answers.clamp(102.0 * bucket, 103.0 * bucket);
        (answers - expected).powi(2) / expected
    };
    let value = service.pods.iter().map(part).sum();
    eprintln!("chi-square {value:.1} of {:?}", seen.names);
    value
}

/// Numbers here are far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}
