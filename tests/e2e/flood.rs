//! Packets of connections that nobody has, as many as a thread can send, to a VIP with 100 replicas: each has to be looked
//! for at all of them, within limits, and good connections go on. How much of their throughput they keep is a benchmark's
//! to say.

use std::net::SocketAddrV4;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Flows, PORT, Service, Storm};

#[path = "../../benches/load/strays.rs"]
mod sender;

const REPLICAS: usize = 100;

fn strays(service: &Service) -> sender::Strays {
    let socket = service.client.run(|| sender::raw_socket().expect("a raw socket"));
    sender::Strays::start(socket, SocketAddrV4::new(service.vip, PORT))
}

/// 100 replicas whose buckets have found their places.
fn service() -> Service {
    let service = Service::of_many(REPLICAS);
    thread::sleep(Duration::from_secs(3));
    service
}

#[test]
fn good_connections_go_on_in_a_flood() {
    let service = service();
    let mut flows = service.flows(100);
    let storm = Storm::start(&service.client, service.vip, 200);
    let before = service.counter("missed");
    let flood = strays(&service);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
    }
    // How many are too many for a second is a matter of the machine: the corpus has that.
    let (missed, limited) = (service.counter("missed") - before, service.counter("limited"));
    eprintln!("{} strays in {:?}, {missed} nobody's, {limited} not looked for", flood.sent(), start.elapsed());
    assert!(missed > 0, "strays are looked for");
    drop(flood);
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    let seen = storm.seen();
    assert_eq!(seen.failed, [""; 0]);
    assert!(seen.answers() > 0, "new connections are answered");
}
