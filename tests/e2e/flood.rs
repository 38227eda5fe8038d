//! Packets of connections that no replica has, as many as a thread can send, to a VIP with 100 replicas: each is searched
//! for at all of them, within limits, and good connections go on. How much of their throughput they keep is a benchmark's
//! to say.

use std::net::SocketAddrV4;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use crate::harness::{Flows, PORT, Service, Storm};

#[path = "../../benches/load/misplaced.rs"]
pub mod sender;

const REPLICAS: usize = 100;

/// Live connections from each caller.
const LIVE: usize = 100;

/// What that starts has the processors before all else: on a busy machine a flood would be none.
pub fn unhindered<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let start = || {
        let thread = gettid().to_string();
        let renice = Command::new("renice").args(["-n", "-15", "-p", &thread]).output().expect("renice of util-linux");
        assert!(renice.status.success(), "{renice:?}");
        start()
    };
    thread::scope(|scope| scope.spawn(start).join().expect("it starts"))
}

fn strays(service: &Service) -> sender::Misplaced {
    let socket = service.client.run(|| sender::raw_socket().expect("a raw socket"));
    unhindered(|| sender::Misplaced::start(socket, SocketAddrV4::new(service.vip, PORT)))
}

/// 100 replicas whose buckets have found their places.
fn service() -> Service {
    let service = Service::of_many(REPLICAS);
    thread::sleep(Duration::from_secs(3));
    service
}

/// Answers that each live connection has to get while the flood lasts.
const ROUNDS: usize = 8;

/// New connections that are answered while it lasts.
const NEW: usize = 500;

/// Misplaced packets for each packet of a good connection: what is less is no flood.
const FLOOD: usize = 10;

#[test]
fn good_connections_go_on_in_a_flood() {
    let service = service();
    let mut flows = service.flows(LIVE);
    let storm = Storm::start(&service.client, service.vip, 200);
    let before = service.counter("no_owner");
    let flood = strays(&service);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        flows.iter_mut().for_each(Flows::ask);
        flows.iter_mut().for_each(Flows::hear);
    }
    let seen = storm.next(NEW);
    // How many are too many for a second is a matter of the machine: the corpus has that.
    let (missed, limited) = (service.counter("no_owner") - before, service.counter("search_throttled"));
    let sent = flood.sent();
    eprintln!("{sent} strays in {:?}, {missed} nobody's, {limited} not looked for", start.elapsed());
    drop(flood);
    assert!(missed > 0, "strays are looked for");
    let good = ROUNDS * flows.len() * LIVE + NEW;
    assert!(sent > FLOOD * good, "{sent} strays beside {good} answers are no flood");
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(&[])).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert_eq!(seen.failed, [""; 0]);
    assert!(seen.answers() >= NEW, "new connections are answered: {seen:?}");
    let live: usize = flows.iter().map(|flows| flows.live().values().sum::<usize>()).sum();
    assert_eq!(live, LIVE * flows.len(), "live connections");
}
