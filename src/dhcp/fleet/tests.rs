use std::net::IpAddr;

use crate::dhcp::message::{Answer, Grant, Kind};
use crate::dhcp::{Server, Turn};

use super::*;

const T0: SystemTime = SystemTime::UNIX_EPOCH;

/// Keeps what goes out.
#[derive(Default)]
struct Kept {
    sent: Vec<(Message, [u8; 6])>,
    told: Vec<(String, Change)>,
}

impl Outlet for Kept {
    fn send(&mut self, message: &Message, identity: &Identity) {
        self.sent.push((*message, identity.chaddr));
    }

    fn notify(&mut self, key: &str, change: Change) {
        self.told.push((key.to_owned(), change));
    }
}

fn identity(n: u8) -> Identity {
    Identity { client_id: vec![255, n], chaddr: [2, 0, 0, 0, 0, n], hostname: format!("vip-{n}") }
}

fn alone(n: u8) -> Acquisition {
    Acquisition { identity: identity(n), remembered: None, wish: None, turn: Turn::Own, prefix: None }
}

fn start(count: u8) -> (Fleet, Kept) {
    let mut fleet = Fleet::new(1, T0);
    for n in 0..count {
        fleet.acquire(&n.to_string(), alone(n), T0).unwrap();
    }
    (fleet, Kept::default())
}

fn grant(n: u8, lease: u32) -> Grant {
    let address = IpAddr::from([10, 77, 0, n]);
    let server = Server::at(IpAddr::from([10, 77, 0, 254]));
    Grant { address, server, lease, t1: None, t2: None, infrastructure: Vec::new(), prefix: None }
}

fn answer((message, chaddr): &(Message, [u8; 6]), lease: u32) -> Reply {
    let grant = grant(chaddr[5], lease);
    let answer = match message.kind {
        Kind::Discover { .. } => Answer::Offer { address: grant.address, server: grant.server, prefix: None },
        _ => Answer::Ack(grant),
    };
    Reply { xid: message.xid, client: Client::Mac(*chaddr), client_id: None, answer }
}

/// Answers everything until the fleet rests; the time it took.
fn serve(fleet: &mut Fleet, kept: &mut Kept, mut now: SystemTime, until: SystemTime, lease: u32) -> SystemTime {
    while now < until {
        fleet.tick(now, kept, true);
        for message in std::mem::take(&mut kept.sent) {
            assert!(fleet.reply(&answer(&message, lease), now, kept));
        }
        if let (true, Some(rest)) = (kept.sent.is_empty(), fleet.rest(now)) {
            now += rest.max(Duration::from_millis(1));
        }
    }
    now
}

/// The time dnsmasq takes to ping its first six addresses, and what its socket holds of DISCOVERs.
#[test]
fn two_hundred_at_once_fit_the_buffer_of_a_server_that_is_busy_first() {
    let (mut fleet, mut kept) = start(200);
    let busy = Duration::from_secs(18);
    let mut now = T0;
    while now < T0 + busy {
        fleet.tick(now, &mut kept, true);
        now += fleet.rest(now).unwrap().max(Duration::from_millis(1));
    }
    assert!((100..130).contains(&kept.sent.len()), "{}", kept.sent.len());
    for message in std::mem::take(&mut kept.sent) {
        fleet.reply(&answer(&message, 600), now, &mut kept);
    }
    let end = T0 + busy + Duration::from_secs(4);
    for message in std::mem::take(&mut kept.sent) {
        fleet.reply(&answer(&message, 600), now, &mut kept);
    }
    serve(&mut fleet, &mut kept, now, end, 600);
    let bound = kept.told.iter().filter(|(_, change)| matches!(change, Change::Bound(_))).count();
    assert_eq!(bound, 200);
}

#[test]
fn two_hundred_are_bound_in_seconds_and_confirmed() {
    let (mut fleet, mut kept) = start(200);
    serve(&mut fleet, &mut kept, T0, T0 + Duration::from_secs(10), 600);
    let bound = kept.told.iter().filter(|(_, change)| matches!(change, Change::Bound(_))).count();
    let renewed = kept.told.iter().filter(|(_, change)| matches!(change, Change::Renewed(_))).count();
    assert_eq!((bound, renewed, kept.told.len()), (200, 200, 400), "{:?}", kept.told.last());
    for (key, change) in &kept.told {
        if let Change::Bound(lease) = change {
            assert_eq!(format!("10.77.0.{key}"), lease.address.to_string());
        }
    }
    assert!(fleet.rest(T0 + Duration::from_secs(10)).unwrap() > Duration::from_secs(200));
}

#[test]
fn a_reply_goes_to_its_hardware_address() {
    let (mut fleet, mut kept) = start(2);
    fleet.tick(T0, &mut kept, true);
    let (first, second) = (kept.sent[0], kept.sent[1]);
    let stranger = Reply { client: Client::Mac([2, 9, 9, 9, 9, 9]), ..answer(&first, 600) };
    assert!(!fleet.reply(&stranger, T0, &mut kept));
    // Another's transaction under this one's address reaches the machine, which knows better.
    let mixed = Reply { client: Client::Mac(second.1), ..answer(&first, 600) };
    assert!(fleet.reply(&mixed, T0, &mut kept));
    assert_eq!(kept.sent.len(), 2);
    assert!(fleet.reply(&answer(&second, 600), T0, &mut kept));
    assert_eq!(kept.sent.last().unwrap().1, second.1);
    assert!(matches!(kept.sent.last().unwrap().0.kind, Kind::Select { .. }));
}

#[test]
fn a_key_runs_once_and_a_hardware_address_too() {
    let (mut fleet, mut kept) = start(1);
    fleet.acquire("0", alone(0), T0).unwrap();
    let refused = fleet.acquire("other", alone(0), T0);
    assert!(matches!(refused, Err(Trouble::SameAddress { .. })), "{refused:?}");
    fleet.tick(T0, &mut kept, true);
    assert_eq!(kept.sent.len(), 1);
}

#[test]
fn what_is_forgotten_is_silent_and_may_come_again() {
    let (mut fleet, mut kept) = start(1);
    fleet.tick(T0, &mut kept, true);
    fleet.forget("0");
    fleet.forget("0");
    assert_eq!(fleet.rest(T0), None);
    assert!(!fleet.reply(&answer(&kept.sent[0], 600), T0, &mut kept));
    fleet.step("0", Event::Decline, T0, &mut kept);
    assert_eq!((kept.sent.len(), kept.told.len()), (1, 0));
    fleet.acquire("0", alone(0), T0).unwrap();
    assert_eq!(fleet.rest(T0), Some(Duration::ZERO));
}

/// As while a link's own address is in doubt: what is sent then is sent in vain.
#[test]
fn nothing_is_sent_where_no_answer_would_arrive() {
    let (mut fleet, mut kept) = start(2);
    for seconds in 0..3 {
        fleet.tick(T0 + Duration::from_secs(seconds), &mut kept, false);
    }
    assert!(kept.sent.is_empty() && kept.told.is_empty());
    let now = T0 + Duration::from_secs(3);
    fleet.tick(now, &mut kept, true);
    assert_eq!(kept.sent.len(), 2, "at once, and once");
    // What runs out does so all the same.
    let now = serve(&mut fleet, &mut kept, now, now + Duration::from_secs(10), 600);
    fleet.tick(now + Duration::from_secs(700), &mut kept, false);
    assert_eq!(kept.told.iter().filter(|(_, change)| matches!(change, Change::Lost { .. })).count(), 2);
}

#[test]
fn expiry_waits_for_no_pace() {
    let (mut fleet, mut kept) = start(200);
    let now = serve(&mut fleet, &mut kept, T0, T0 + Duration::from_secs(10), 600);
    kept.told.clear();
    fleet.tick(now + Duration::from_secs(700), &mut kept, true);
    let lost =
        |(_, change): &(String, Change)| matches!(change, Change::Lost { reason: crate::dhcp::Reason::Expired, .. });
    assert_eq!(kept.told.iter().filter(|told| lost(told)).count(), 200);
    assert!(kept.sent.is_empty());
}

#[test]
fn what_is_released_is_told_to_its_server_and_forgotten() {
    let (mut fleet, mut kept) = start(1);
    let now = serve(&mut fleet, &mut kept, T0, T0 + Duration::from_secs(10), 600);
    fleet.release("0", now, &mut kept);
    let address = grant(0, 600).address;
    let server = grant(0, 600).server;
    assert_eq!(kept.sent.pop().map(|(message, _)| message.kind), Some(Kind::Release { address, server }));
    assert_eq!(fleet.rest(now), None);
    // Nothing held, nothing to release.
    fleet.acquire("0", alone(0), now).unwrap();
    fleet.release("0", now, &mut kept);
    assert!(kept.sent.is_empty());
}
