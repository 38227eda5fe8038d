use super::*;
use std::net::Ipv4Addr;

use crate::dhcp::Flaw;
use crate::dhcp::identity::Client;
use crate::dhcp::message::{Answer, Grant};
use crate::model::Family;
use crate::model::address::ipv4;

mod random;
mod sharing;
mod six;

const T0: SystemTime = SystemTime::UNIX_EPOCH;
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101));
const SERVER: Server = Server::at(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)));
/// Another authoritative server, with a range of its own.
const OTHER: Server = Server::at(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)));

fn at(seconds: f64) -> SystemTime {
    T0 + Duration::from_secs_f64(1_000_000.0 + seconds)
}

fn identity() -> Identity {
    Identity { client_id: vec![255, 1, 2, 3], chaddr: [2, 0, 0, 0, 0, 7], hostname: "web".to_owned() }
}

fn lease(address: IpAddr, from: f64, seconds: f64) -> Lease {
    let part = |part: f64| Some(at(from + part * seconds));
    Lease {
        address,
        server: Some(SERVER),
        granted: at(from),
        renew: part(0.5),
        rebind: part(0.875),
        expires: part(1.0),
        infrastructure: Vec::new(),
        told: false,
        prefix: None,
    }
}

/// A machine with a clock, and what became of it.
struct Scene {
    machine: Machine,
    now: f64,
    actions: Vec<Action>,
}

impl Scene {
    fn new(remembered: Option<Lease>) -> Self {
        Self::with(remembered, Turn::Own)
    }

    fn with(remembered: Option<Lease>, turn: Turn) -> Self {
        let acquisition = Acquisition { identity: identity(), remembered, wish: None, turn, prefix: None };
        let mut scene = Self { machine: Machine::new(acquisition, 7, at(0.0)), now: 0.0, actions: vec![] };
        scene.event(Event::Timer);
        scene
    }

    /// A machine bound to `A` and confirmed.
    fn confirmed(seconds: u32) -> Self {
        let mut scene = Self::new(None);
        scene.reply(offer(A));
        scene.reply(ack(A, seconds));
        scene.next();
        scene.reply(ack(A, seconds));
        scene.actions.clear();
        scene
    }

    fn event(&mut self, event: Event<'_>) {
        self.actions.extend(self.machine.step(event, at(self.now)));
        let due = self.machine.deadline();
        assert!(due.is_none_or(|due| due > at(self.now)), "{due:?}");
    }

    /// Goes to the deadline; the seconds it took.
    fn next(&mut self) -> f64 {
        let due = self.machine.deadline().unwrap().duration_since(at(0.0)).unwrap().as_secs_f64();
        let took = due - self.now;
        self.now = due + 1e-6; // f64 is rounded
        self.event(Event::Timer);
        took
    }

    fn until(&mut self, seconds: f64) {
        while self.machine.deadline().is_some_and(|due| due <= at(seconds)) {
            self.next();
        }
        self.now = seconds;
    }

    /// A reply to the last message.
    fn reply(&mut self, answer: Answer) {
        let reply = Reply { xid: self.machine.xid, client: Client::Mac(identity().chaddr), client_id: None, answer };
        self.event(Event::Reply(&reply));
    }

    /// What happened since, in short.
    fn take(&mut self) -> Vec<String> {
        self.actions.drain(..).map(|action| brief(&action)).collect()
    }
}

fn offer(address: IpAddr) -> Answer {
    Answer::Offer { address, server: SERVER, prefix: None }
}

fn ack(address: IpAddr, lease: u32) -> Answer {
    Answer::Ack(Grant { address, server: SERVER, lease, t1: None, t2: None, infrastructure: Vec::new(), prefix: None })
}

fn nak() -> Answer {
    nak_of(SERVER)
}

fn nak_of(server: Server) -> Answer {
    Answer::Nak { server, why: "wrong address".to_owned() }
}

fn brief(action: &Action) -> String {
    let last = |address: &IpAddr| ipv4(*address).unwrap().octets()[3];
    match action {
        Action::Send(Message { kind, .. }) => match kind {
            Kind::Discover { .. } => "discover".to_owned(),
            Kind::Select { address, .. } => format!("select {}", last(address)),
            Kind::Reboot { address } => format!("reboot {}", last(address)),
            Kind::Rebind { address } => format!("rebind {}", last(address)),
            Kind::Release { address, .. } => format!("release {}", last(address)),
            Kind::Decline { address, .. } => format!("decline {}", last(address)),
        },
        Action::Notify(Change::Bound(lease)) => format!("Bound {}", last(&lease.address)),
        Action::Notify(Change::Renewed(lease)) => format!("Renewed {}", last(&lease.address)),
        Action::Notify(Change::Lost { lease, reason }) => match reason {
            Reason::Nak { server, .. } => format!("Lost {} Nak of {}", last(&lease.address), last(server)),
            Reason::Expired => format!("Lost {} Expired", last(&lease.address)),
        },
        Action::Notify(Change::Refused { server, .. }) => format!("Refused by {}", last(server)),
        Action::Notify(Change::Failed { tries, .. }) => format!("Failed {tries}"),
    }
}

/// What happens to a scene, and what it is to answer.
enum Do {
    Next,
    Reply(Box<Answer>),
    Decline,
    Restart,
}
use Do::{Decline, Next, Restart};

fn hears(answer: Answer) -> Do {
    Do::Reply(Box::new(answer))
}

fn play(remembered: Option<Lease>, first: &[&str], script: Vec<(Do, &[&str])>) -> Scene {
    let mut scene = Scene::new(remembered);
    assert_eq!(scene.take(), first, "at the start");
    for (line, (event, want)) in script.into_iter().enumerate() {
        match event {
            Next => drop(scene.next()),
            Do::Reply(answer) => scene.reply(*answer),
            Decline => scene.event(Event::Decline),
            Restart => scene.event(Event::Restart),
        }
        assert_eq!(scene.take(), want, "line {line}");
    }
    scene
}

#[test]
fn an_address_is_got_confirmed_and_renewed() {
    play(
        None,
        &["discover"],
        vec![
            (hears(offer(A)), &["select 100"]),
            (hears(ack(A, 600)), &["Bound 100"]),
            (Next, &["reboot 100"]),
            (hears(ack(A, 600)), &["Renewed 100"]),
            (Next, &["reboot 100"]), // T1
            (Next, &["reboot 100"]), // no answer
            (hears(ack(A, 600)), &["Renewed 100"]),
        ],
    );
}

#[test]
fn kea_gave_two_nodes_two_addresses_and_the_confirmation_shows_it() {
    play(
        None,
        &["discover"],
        vec![
            (hears(offer(A)), &["select 100"]),
            (hears(ack(A, 600)), &["Bound 100"]),
            (Next, &["reboot 100"]),
            // Not confirmed yet: REBINDING would only take it back from the other node.
            (hears(nak()), &["Lost 100 Nak of 1"]),
            (Next, &["discover"]),
            (hears(offer(B)), &["select 101"]),
            (hears(ack(B, 600)), &["Bound 101"]),
            (Next, &["reboot 101"]),
            (hears(ack(B, 600)), &["Renewed 101"]),
        ],
    );
}

#[test]
fn two_that_take_the_address_from_each_other_slow_down() {
    let mut scene = Scene::new(None);
    let mut waits = vec![];
    for _ in 0..6 {
        scene.reply(offer(A));
        scene.reply(ack(A, 600));
        scene.next();
        let before = scene.now;
        scene.reply(nak());
        if !scene.actions.iter().rev().take(1).any(|last| brief(last) == "discover") {
            scene.next();
        }
        waits.push(scene.now - before);
    }
    assert!(waits[0] < 0.5 && waits[1] > 0.7 && waits[5] > 12.0, "{waits:?}");
    assert!(scene.take().contains(&"Failed 3".to_owned()));
}

#[test]
fn isc_grants_the_remaining_time_and_that_counts() {
    let mut scene = Scene::confirmed(600);
    scene.next();
    let asked = scene.now;
    scene.now += 0.5;
    scene.reply(ack(A, 200));
    let held = scene.machine.held.clone().unwrap();
    let end = held.expires.unwrap().duration_since(at(asked)).unwrap().as_secs_f64();
    assert!((end - 200.0).abs() < 0.01, "{end}");
    // And renewing doesn't become a loop as what remains gets less.
    let wait = scene.next();
    assert!(wait > 80.0, "{wait}");
}

#[test]
fn a_server_silent_at_the_restart_leaves_an_unexpired_lease_alone() {
    let mut scene = Scene::new(Some(lease(A, -100.0, 600.0)));
    scene.until(60.0);
    assert_eq!(scene.take(), ["reboot 100"; 3]);
    scene.until(499.0);
    let more = scene.take();
    assert!(more.iter().all(|what| what == "reboot 100" || what.starts_with("Failed ")), "{more:?}");
    let silence = more.iter().filter(|what| what.starts_with("Failed ")).count();
    assert!(silence >= 2 && silence * 2 == more.len(), "each renewal says that those before had no answer: {more:?}");
    // T2 − 100 s, then the end: lost when it is over, and asked for again, then any.
    scene.until(510.0);
    let end = scene.take();
    let lost = end.iter().position(|what| what == "Lost 100 Expired").unwrap();
    assert!(end[lost + 1..].starts_with(&["reboot 100".into(), "reboot 100".into(), "reboot 100".into()]), "{end:?}");
    assert_eq!(end.last().unwrap(), "discover");
}

#[test]
fn a_slow_server_confirms_after_the_burst() {
    let mut scene = Scene::new(Some(lease(A, -100.0, 600.0)));
    scene.until(10.0);
    scene.take();
    scene.reply(ack(A, 600));
    assert_eq!(scene.take(), ["Renewed 100"]);
}

#[test]
fn an_expired_lease_is_asked_for_but_not_held() {
    play(
        Some(lease(A, -700.0, 600.0)),
        &["reboot 100"],
        vec![
            (Next, &["reboot 100"]),
            (hears(ack(A, 600)), &["Bound 100"]),
            (Next, &["reboot 100"]), // T1: an INIT-REBOOT has confirmed it already
        ],
    );
    play(
        Some(lease(A, -700.0, 600.0)),
        &["reboot 100"],
        vec![(Next, &["reboot 100"]), (Next, &["reboot 100"]), (Next, &["discover"])],
    );
}

#[test]
fn a_nak_while_renewing_takes_the_address_if_rebinding_doesnt_help() {
    let mut scene = Scene::confirmed(600);
    scene.next();
    scene.reply(nak());
    assert_eq!(scene.take(), ["reboot 100", "rebind 100"]);
    scene.next();
    scene.next();
    assert_eq!(scene.take(), ["rebind 100", "Lost 100 Nak of 1"]);
    let hands_off = scene.next();
    assert!((0.2..0.5).contains(&hands_off), "time to stop answering for it: {hands_off}");
    assert_eq!(scene.take(), ["discover"]);
}

#[test]
fn a_second_nak_of_the_leases_server_ends_rebinding_at_once() {
    let mut scene = Scene::confirmed(600);
    scene.next();
    scene.reply(nak());
    scene.reply(nak());
    assert_eq!(scene.take(), ["reboot 100", "rebind 100", "Lost 100 Nak of 1"]);
}

/// Kea that has lost its leases.
#[test]
fn rebinding_keeps_an_address_and_is_confirmed() {
    play(
        Some(lease(A, -100.0, 600.0)),
        &["reboot 100"],
        vec![
            (hears(nak()), &["rebind 100"]),
            (hears(ack(A, 600)), &["Renewed 100"]),
            (Next, &["reboot 100"]),
            // Another node has it by now, in our name: it isn't taken back again.
            (hears(nak()), &["Lost 100 Nak of 1"]),
        ],
    );
}

/// Two authoritative servers on one LAN: each refuses what the other has given, in whichever order they answer.
#[test]
fn a_nak_of_another_server_changes_nothing() {
    let mut scene = Scene::confirmed(600);
    scene.next();
    scene.reply(nak_of(OTHER));
    scene.reply(ack(A, 600));
    assert_eq!(scene.take(), ["reboot 100", "Refused by 2", "Renewed 100"]);
    scene.next();
    scene.reply(ack(A, 600));
    scene.reply(nak_of(OTHER));
    assert_eq!(scene.take(), ["reboot 100", "Renewed 100", "Refused by 2"]);
    // Also while the lease's own is away, up to the lease's end.
    let end = scene.machine.end().unwrap();
    while scene.machine.deadline().is_some_and(|due| due < end) {
        scene.next();
        scene.reply(nak_of(OTHER));
    }
    let calm = |what: &String| matches!(&what[..], "reboot 100" | "Refused by 2") || what.starts_with("Failed");
    let all = scene.take();
    assert!(all.len() > 4 && all.iter().all(calm), "{all:?}");
    scene.next();
    assert_eq!(scene.take(), ["Lost 100 Expired"]);
}

#[test]
fn a_restart_between_two_servers_keeps_the_address() {
    play(
        Some(lease(A, -100.0, 600.0)),
        &["reboot 100"],
        vec![(hears(nak_of(OTHER)), &["Refused by 2"]), (hears(ack(A, 600)), &["Renewed 100"])],
    );
    // What has run out is asked for to the end of the burst: the first NAK may be the wrong server's.
    play(
        Some(lease(A, -700.0, 600.0)),
        &["reboot 100"],
        vec![(hears(nak_of(OTHER)), &[]), (hears(ack(A, 600)), &["Bound 100"])],
    );
}

#[test]
fn after_an_offer_only_who_made_it_counts() {
    let ack_of = |server, address| {
        Answer::Ack(Grant { address, server, lease: 600, t1: None, t2: None, infrastructure: Vec::new(), prefix: None })
    };
    play(
        None,
        &["discover"],
        vec![
            (hears(offer(A)), &["select 100"]),
            (hears(nak_of(OTHER)), &[]),
            (hears(ack_of(OTHER, A)), &[]),
            (hears(ack_of(SERVER, B)), &[]),
            (hears(ack_of(SERVER, A)), &["Bound 100"]),
        ],
    );
}

/// The lease file is lost or damaged: of the lease only the address is known.
#[test]
fn where_the_server_is_not_known_a_nak_counts_when_nobody_grants_it() {
    let unknown = || Some(Lease { server: None, ..lease(A, 0.0, 600.0) });
    play(
        unknown(),
        &["reboot 100"],
        vec![(hears(nak_of(OTHER)), &["rebind 100"]), (hears(ack(A, 600)), &["Renewed 100"])],
    );
    play(
        unknown(),
        &["reboot 100"],
        vec![
            (hears(nak_of(OTHER)), &["rebind 100"]),
            (hears(nak_of(OTHER)), &[]),
            (Next, &["rebind 100"]),
            (Next, &["Lost 100 Nak of 2"]),
        ],
    );
}

#[test]
fn a_nak_for_nothing_asked_is_ignored() {
    let mut scene = Scene::confirmed(600);
    scene.reply(nak());
    scene.reply(ack(B, 600));
    scene.reply(offer(B));
    assert!(scene.take().is_empty());
    assert_eq!(scene.machine.held.as_ref().unwrap().address, A);
}

#[test]
fn what_answers_lack_is_told() {
    let flaw = Flaw::Option { code: 54, name: "server identifier" };
    let mut scene = Scene::new(None);
    for _ in 0..3 {
        scene.reply(Answer::Unfit { server: None, flaw });
        scene.next();
    }
    let told = scene.actions.iter().find_map(|action| match action {
        Action::Notify(Change::Failed { why, .. }) => Some(why.said(Family::V4)),
        _ => None,
    });
    let want = "answers of a DHCP server are unfit: option 54 (server identifier) is absent or malformed";
    assert_eq!(told.as_deref(), Some(want));
}

#[test]
fn a_declined_address_is_followed_by_a_discover_at_once() {
    play(
        None,
        &["discover"],
        vec![
            (Decline, &[]), // nothing held yet
            (hears(offer(A)), &["select 100"]),
            (hears(ack(A, 600)), &["Bound 100"]),
            (Decline, &["decline 100", "discover"]),
            (hears(offer(B)), &["select 101"]),
            (hears(ack(B, 600)), &["Bound 101"]),
        ],
    );
}

#[test]
fn a_restart_asks_for_any_address_without_a_word() {
    play(
        None,
        &["discover"],
        vec![
            (Restart, &[]), // it does that already
            (hears(offer(A)), &["select 100"]),
            (Restart, &[]),
            (hears(ack(A, 600)), &["Bound 100"]),
            (Restart, &["discover"]),
        ],
    );
}

#[test]
fn an_ack_for_another_address_is_none() {
    play(
        Some(lease(A, 0.0, 600.0)),
        &["reboot 100"],
        vec![(hears(ack(B, 600)), &[]), (hears(ack(A, 600)), &["Renewed 100"])],
    );
}

#[test]
fn a_withdrawn_offer_ends_in_another_discover() {
    let mut scene = Scene::new(None);
    scene.reply(offer(A));
    for _ in 0..4 {
        scene.next();
    }
    let want = ["discover", "select 100", "select 100", "select 100", "select 100", "Failed 4", "discover"];
    assert_eq!(scene.take(), want);
}

#[test]
fn silence_is_told_from_the_third_try_on() {
    let mut scene = Scene::new(None);
    for _ in 0..4 {
        scene.next();
    }
    let want = ["discover", "discover", "discover", "Failed 3", "discover", "Failed 4", "discover"];
    assert_eq!(scene.take(), want);
}

#[test]
fn only_replies_to_the_transaction_and_the_identity_count() {
    let good = |scene: &Scene| Reply {
        xid: scene.machine.xid,
        client: Client::Mac(identity().chaddr),
        client_id: Some(identity().client_id),
        answer: offer(A),
    };
    let mut scene = Scene::new(None);
    scene.take();
    let ours = good(&scene);
    for wrong in [
        Reply { xid: ours.xid ^ 1, ..ours.clone() },
        Reply { client: Client::Mac([2; 6]), ..ours.clone() },
        Reply { client_id: Some(vec![1, 2]), ..ours.clone() },
        Reply { answer: ack(A, 600), ..ours.clone() }, // nothing was requested yet
        Reply { answer: nak(), ..ours.clone() },
    ] {
        scene.event(Event::Reply(&wrong));
        assert!(scene.take().is_empty(), "{wrong:?}");
    }
    scene.event(Event::Reply(&ours));
    assert_eq!(scene.take(), ["select 100"]);
    // A second server's offer.
    scene.event(Event::Reply(&Reply { answer: offer(B), ..ours }));
    assert!(scene.take().is_empty());
}

#[test]
fn an_infinite_lease_rests() {
    let scene = Scene::confirmed(u32::MAX);
    assert_eq!(scene.machine.deadline(), None);
}

#[test]
fn a_lease_counts_from_the_request_not_from_the_answer() {
    let mut scene = Scene::new(None);
    scene.reply(offer(A));
    scene.now += 9.0;
    scene.reply(ack(A, 8));
    assert!(scene.machine.held.is_none(), "over before it came");
    let mut scene = Scene::new(None);
    scene.reply(offer(A));
    scene.now += 7.0;
    scene.take();
    scene.reply(ack(A, 8));
    assert_eq!(scene.take(), ["Bound 100", "reboot 100"], "past T1: on with it");
}

#[test]
fn a_clock_far_ahead_expires_and_asks_again() {
    let mut scene = Scene::confirmed(600);
    scene.now += 100_000.0;
    scene.event(Event::Timer);
    assert_eq!(scene.take(), ["Lost 100 Expired"]);
    scene.next();
    assert_eq!(scene.take(), ["reboot 100"]);
}

#[test]
fn an_address_that_is_wished_for_is_asked_for_and_no_other_accepted() {
    let acquisition =
        Acquisition { identity: identity(), remembered: None, wish: Some(A), turn: Turn::Own, prefix: None };
    let mut scene = Scene { machine: Machine::new(acquisition, 7, at(0.0)), now: 0.0, actions: vec![] };
    scene.event(Event::Timer);
    assert!(matches!(scene.actions[..], [Action::Send(Message { kind: Kind::Discover { wish: Some(A) }, .. })]));
    scene.reply(offer(B));
    let Some(Action::Notify(Change::Failed { why: Trouble::Another { address: B, .. }, .. })) = scene.actions.last()
    else {
        panic!("{:?}", scene.actions)
    };
    scene.reply(offer(A));
    assert_eq!(scene.actions.last().map(brief).as_deref(), Some("select 100"));
}
