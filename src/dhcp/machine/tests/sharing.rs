//! Clients that share an identity.

use super::*;

/// Whose turn it is from the start.
fn others(remembered: Option<Lease>) -> Scene {
    Scene::with(remembered, Turn::Others)
}

/// Bound to `A` by another client's word, which has 600 seconds from 0.
fn told() -> Scene {
    let mut scene = others(None);
    scene.event(Event::Learn(&lease(A, 0.0, 600.0)));
    assert_eq!(scene.take(), ["Bound 100"]);
    scene
}

#[test]
fn who_waits_for_others_sends_nothing_until_it_has_heard_nothing_for_long() {
    let mut scene = others(None);
    assert_eq!(scene.take(), [""; 0]);
    let waited = scene.next();
    assert!((3.0..5.0).contains(&waited), "{waited}");
    assert_eq!(scene.take(), ["discover"]);
    // Its turn comes sooner.
    let mut scene = others(None);
    scene.event(Event::Turn(Turn::Own));
    assert!(scene.next() < 0.01);
    assert_eq!(scene.take(), ["discover"]);
}

#[test]
fn a_lease_that_is_told_is_held_and_renewed_by_others() {
    let mut scene = told();
    assert!(scene.machine.held.as_ref().unwrap().told);
    // Neither confirmed nor renewed here at T1 (300 s).
    scene.until(380.0);
    assert_eq!(scene.take(), [""; 0]);
    scene.event(Event::Learn(&lease(A, 299.0, 600.0)));
    assert_eq!(scene.take(), ["Renewed 100"]);
    scene.until(670.0);
    assert_eq!(scene.take(), [""; 0]);
    // What is no longer says nothing.
    scene.event(Event::Learn(&lease(A, 200.0, 600.0)));
    scene.event(Event::Learn(&lease(A, 0.0, 300.0)));
    assert_eq!(scene.take(), [""; 0]);
    // Nothing more is told: it asks before T2 (299 + 525 s).
    scene.next();
    assert!((690.0..770.0).contains(&scene.now), "{}", scene.now);
    assert_eq!(scene.take(), ["reboot 100"]);
    scene.reply(ack(A, 600));
    assert_eq!(scene.take(), ["Renewed 100"]);
    assert!(!scene.machine.held.as_ref().unwrap().told);
}

#[test]
fn the_turn_decides_who_renews_at_t1() {
    let mut scene = told();
    scene.event(Event::Turn(Turn::Own));
    let t1 = scene.next();
    assert!((299.0..301.0).contains(&t1), "{t1}");
    assert_eq!(scene.take(), ["reboot 100"]);
    // After T1 it is due at once.
    let mut scene = told();
    scene.until(350.0);
    scene.event(Event::Turn(Turn::Own));
    assert!(scene.next() < 0.01);
    assert_eq!(scene.take(), ["reboot 100"]);
    // One that was granted the address itself waits too, once it is another one's turn.
    let mut scene = Scene::confirmed(600);
    scene.event(Event::Turn(Turn::Others));
    scene.until(380.0);
    assert_eq!(scene.take(), [""; 0]);
}

#[test]
fn a_remembered_lease_is_confirmed_by_what_is_told() {
    let mut scene = others(Some(lease(A, -100.0, 600.0)));
    scene.event(Event::Learn(&lease(A, -100.5, 600.0)));
    assert_eq!(scene.take(), ["Renewed 100"]);
    assert_eq!(scene.machine.end(), Some(at(500.0)), "what it has is longer");
    let mut scene = others(Some(lease(A, -100.0, 600.0)));
    scene.next();
    assert_eq!(scene.take(), ["reboot 100"], "nothing is told");
    // The less is left, the sooner.
    let mut scene = others(Some(lease(A, -596.0, 600.0)));
    assert!(scene.next() < 1.3);
    assert_eq!(scene.take(), ["reboot 100"]);
}

#[test]
fn of_two_addresses_the_server_says_which_is_right() {
    let mut scene = told();
    scene.event(Event::Learn(&lease(B, 0.0, 600.0)));
    assert!(scene.next() < 0.01);
    assert_eq!(scene.take(), ["reboot 100"]);
    scene.reply(ack(A, 600));
    assert_eq!(scene.take(), ["Renewed 100"], "this one's");
    // Two servers, perhaps: it isn't asked again and again.
    scene.event(Event::Learn(&lease(B, 1.0, 600.0)));
    scene.until(30.0);
    assert_eq!(scene.take(), [""; 0]);
    scene.until(70.0);
    scene.event(Event::Learn(&lease(B, 69.0, 600.0)));
    scene.next();
    assert_eq!(scene.take(), ["reboot 100"]);
    // REBINDING would take it from the other one.
    scene.reply(nak());
    assert_eq!(scene.take(), ["Lost 100 Nak of 1"]);
    // What the server has refused isn't believed, whoever says it.
    scene.event(Event::Learn(&lease(A, 69.5, 600.0)));
    scene.next();
    assert_eq!(scene.take(), ["discover"]);
    scene.reply(offer(B));
    scene.reply(ack(B, 600));
    assert_eq!(scene.take(), ["select 101", "Bound 101"]);
}

#[test]
fn an_expired_lease_is_never_taken() {
    let mut scene = others(None);
    scene.event(Event::Learn(&lease(A, -601.0, 600.0)));
    assert_eq!(scene.take(), [""; 0]);
    assert!(scene.machine.held.is_none());
    // One that was taken ends when it said.
    let mut scene = told();
    scene.until(601.0);
    assert!(scene.take().contains(&"Lost 100 Expired".to_owned()));
}
