//! The decisions, one story each.

use std::time::UNIX_EPOCH;

use super::*;
use crate::allocator::protocol::LeaseState;

fn vip() -> VipKey {
    VipKey::new("shop", "web").unwrap()
}

const A: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 7);
const B: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 8);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
}

fn lease(address: Ipv4Addr) -> Lease {
    Lease {
        address,
        server: Some([192, 0, 2, 1].into()),
        granted: at(0),
        renew: Some(at(1800)),
        rebind: Some(at(3150)),
        expires: Some(at(3600)),
    }
}

fn rules() -> Rules {
    Rules {
        allow: Allow::new(vec!["10.118.0.0/16".parse().unwrap()]),
        hold: Duration::from_secs(600),
        on_lost: OnLost::Withdraw,
        has_peers: false,
    }
}

fn in_conflict() -> Findings {
    Findings { conflicts: vec!["static route 10.118.0.0/24".into()], at_peer: false }
}

/// Carries the clock and takes the VIP's name off the answers.
struct Story {
    state: State,
    now: u64,
}

impl Story {
    fn new(rules: Rules) -> Self {
        let mut story = Self { state: State::new(rules), now: 0 };
        assert!(story.state.needs_record(&vip()));
        assert_eq!(story.on(Input::Loaded(Ok(None))), []);
        story
    }

    fn on(&mut self, input: Input) -> Vec<Action> {
        self.state.step(&vip(), input, at(self.now)).into_iter().map(|(_, action)| action).collect()
    }

    fn bound(&mut self, address: Ipv4Addr) -> Vec<Action> {
        self.on(Input::News(News::Bound(lease(address))))
    }

    fn lost(&mut self) -> Vec<Action> {
        self.on(Input::News(News::Lost { reason: "NAK".into() }))
    }

    fn present(&mut self, address: Ipv4Addr, endpoints: usize) -> Vec<Action> {
        self.on(Input::Present(Presence { address: Some(address), endpoints, ready: endpoints, former: Vec::new() }))
    }

    fn tick(&mut self, now: u64) -> Vec<Action> {
        self.now = now;
        self.state.tick(at(now)).into_iter().map(|(_, action)| action).collect()
    }

    /// Held at `A`, with a replica.
    fn serving(rules: Rules) -> Self {
        let mut story = Self::new(rules);
        story.on(Input::Acquire(Caller(1)));
        story.bound(A);
        story.on(Input::Checked(A, Findings::default()));
        assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Answer(Caller(1), Ok(grant(&lease(A))))]);
        assert_eq!(story.present(A, 1), [save(A, None)]);
        story
    }

    fn status(&self) -> (LeaseState, Option<String>) {
        let status = self.state.status().remove(0);
        (status.state, status.error)
    }
}

fn save(address: Ipv4Addr, left: Option<u64>) -> Action {
    Action::Save(Record { lease: lease(address), left: left.map(at) })
}

fn refusal(actions: &[Action]) -> &Refusal {
    let refusal = actions.iter().find_map(|action| match action {
        Action::Answer(_, Err(refusal)) => Some(refusal),
        _ => None,
    });
    refusal.unwrap_or_else(|| panic!("no refusal in {actions:?}"))
}

#[test]
fn callers_that_ask_together_share_one_lease() {
    let mut story = Story::new(rules());
    assert_eq!(story.on(Input::Acquire(Caller(1))), [Action::Ask(None)]);
    assert_eq!(story.on(Input::Acquire(Caller(2))), []);
    assert_eq!(story.bound(A), [Action::Check(A)]);
    assert_eq!(story.on(Input::Acquire(Caller(3))), []);
    assert_eq!(story.on(Input::Checked(A, Findings::default())), [save(A, Some(0))]);
    let answers = [1, 2, 3].map(|n| Action::Answer(Caller(n), Ok(grant(&lease(A)))));
    assert_eq!(story.on(Input::Saved(Ok(()))), answers);
    assert_eq!(story.on(Input::Acquire(Caller(4))), [Action::Answer(Caller(4), Ok(grant(&lease(A))))]);
    assert_eq!(story.status(), (LeaseState::Held, None));
}

#[test]
fn a_caller_hears_in_time_and_the_next_one_gets_what_came_since() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.on(Input::News(News::Trouble { why: "3 DISCOVERs unanswered".into() }));
    assert_eq!(story.state.next_tick(), Some(at(0) + ANSWER_WITHIN));
    assert_eq!(story.tick(8), []);
    let actions = story.tick(9);
    assert_eq!(refusal(&actions).code, 11);
    assert_eq!(refusal(&actions).msg, "no address yet, still trying: 3 DISCOVERs unanswered");
    story.bound(A);
    story.on(Input::Checked(A, Findings::default()));
    assert_eq!(story.on(Input::Saved(Ok(()))), []);
    assert_eq!(story.on(Input::Acquire(Caller(2))), [Action::Answer(Caller(2), Ok(grant(&lease(A))))]);
}

#[test]
fn conflicts_are_declined_eight_times_then_there_is_a_pause() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    for n in 0..8 {
        let address = Ipv4Addr::new(10, 118, 0, 100 + n);
        assert_eq!(story.bound(address), [Action::Check(address)]);
        assert_eq!(story.on(Input::Checked(address, in_conflict())), [Action::Decline]);
    }
    story.bound(A);
    let actions = story.on(Input::Checked(A, in_conflict()));
    assert_eq!(actions[0], Action::Stop);
    let refusal = refusal(&actions);
    assert_eq!(refusal.code, 11);
    for part in ["10.118.0.100: static route 10.118.0.0/24", "10.118.0.7: static"] {
        assert!(refusal.msg.contains(part), "{}", refusal.msg);
    }
    assert_eq!(story.status().0, LeaseState::Refused);
    story.now = 59;
    assert!(matches!(story.on(Input::Acquire(Caller(2)))[..], [Action::Answer(Caller(2), Err(_))]));
    story.now = 60;
    assert_eq!(story.on(Input::Acquire(Caller(3))), [Action::Ask(None)]);
}

#[test]
fn a_pool_that_has_none_free_can_be_asked_again_at_once() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    let actions = story.on(Input::News(News::Failed { why: "none is free".into() }));
    assert_eq!(refusal(&actions), &Refusal { code: 11, msg: "none is free".into() });
    assert_eq!(story.on(Input::Acquire(Caller(2))), [Action::Ask(None)]);
}

#[test]
fn with_peers_only_a_strangers_address_is_declined() {
    let peers = Rules { has_peers: true, ..rules() };
    let mut story = Story::new(peers.clone());
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    assert_eq!(story.on(Input::Checked(A, in_conflict())), [Action::Decline]);
    story.bound(B);
    assert_eq!(story.on(Input::Checked(B, Findings { at_peer: true, ..in_conflict() })), [Action::Restart]);
    // An address this node held before is left alone too.
    let mut story = Story { state: State::new(peers), now: 0 };
    let held = Record { lease: lease(A), left: Some(at(0)) };
    assert_eq!(story.on(Input::Loaded(Ok(Some(held)))), [Action::Ask(Some(lease(A)))]);
    assert_eq!(story.bound(A), [Action::Check(A)]);
    assert_eq!(story.on(Input::Checked(A, in_conflict())), [Action::Restart]);
}

#[test]
fn an_address_outside_allow_is_refused_without_a_decline() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    let actions = story.bound([192, 0, 2, 50].into());
    assert_eq!(actions[0], Action::Stop);
    assert_eq!(refusal(&actions).code, 11);
    let msg = &refusal(&actions).msg;
    assert!(msg.contains("192.0.2.50") && msg.contains("10.118.0.0/16"), "{msg}");
}

#[test]
fn a_confirmation_is_no_check_and_news_after_a_decline_is_checked() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), []);
    assert_eq!(story.on(Input::Checked(A, in_conflict())), [Action::Decline]);
    assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), [Action::Check(A)]);
    assert_eq!(story.on(Input::Checked(B, Findings::default())), [], "overtaken");
}

#[test]
fn a_lease_outlives_its_last_replica_by_hold() {
    let mut story = Story::serving(rules());
    assert_eq!(story.state.next_tick(), None);
    story.now = 100;
    assert_eq!(story.present(A, 0), [save(A, Some(100))]);
    assert_eq!(story.tick(699), []);
    assert_eq!(story.tick(700), [Action::Stop, Action::Erase]);
    assert!(story.state.needs_record(&vip()));
    assert_eq!(story.state.next_tick(), None);
}

#[test]
fn without_hold_a_lease_still_waits_for_its_replica() {
    let mut story = Story::new(Rules { hold: Duration::ZERO, ..rules() });
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    story.on(Input::Checked(A, Findings::default()));
    story.on(Input::Saved(Ok(())));
    assert_eq!(story.tick(59), []);
    assert_eq!(story.tick(60), [Action::Stop, Action::Erase]);
}

#[test]
fn once_a_replica_has_come_of_a_call_hold_alone_counts() {
    let mut story = Story::serving(Rules { hold: Duration::from_secs(2), ..rules() });
    story.present(A, 0);
    assert_eq!(story.tick(1), []);
    assert_eq!(story.tick(2), [Action::Stop, Action::Erase]);
}

#[test]
fn a_lost_lease_withdraws_and_the_next_address_renumbers() {
    let mut story = Story::serving(rules());
    assert_eq!(story.state.announced(), BTreeSet::from([A]));
    assert_eq!(story.lost(), [Action::Withdraw]);
    assert!(story.state.announced().is_empty());
    assert_eq!(story.status().0, LeaseState::Lost);
    assert_eq!(story.bound(B), [Action::Check(B)]);
    assert_eq!(story.on(Input::Checked(B, Findings::default())), [save(B, None)]);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Serve(B)]);
    assert_eq!(story.present(B, 1), []);
    assert_eq!(story.state.announced(), BTreeSet::from([B]));
}

#[test]
fn the_same_address_again_is_served_again_without_a_check() {
    let mut story = Story::serving(rules());
    story.lost();
    assert_eq!(story.bound(A), [save(A, None)]);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Serve(A)]);
}

#[test]
fn keep_goes_on_serving_and_asks_for_the_same_address_later() {
    let mut story = Story::serving(Rules { on_lost: OnLost::Keep, ..rules() });
    assert_eq!(story.lost(), [Action::Stop]);
    assert_eq!(story.state.announced(), BTreeSet::from([A]));
    assert_eq!(story.status().0, LeaseState::Lost);
    assert_eq!(story.state.next_tick(), Some(at(60)));
    assert_eq!(story.tick(60), [Action::Ask(Some(lease(A)))]);
    assert_eq!(story.bound(B), [Action::Stop]);
    story.tick(120);
    assert_eq!(story.bound(A), [save(A, None)]);
    assert_eq!(story.status(), (LeaseState::Held, None));
}

#[test]
fn after_a_restart_a_vip_in_service_goes_on_while_its_lease_is_confirmed() {
    let mut story = Story { state: State::new(rules()), now: 10 };
    let record = Record { lease: lease(A), left: None };
    assert_eq!(story.on(Input::Loaded(Ok(Some(record)))), [Action::Ask(Some(lease(A)))]);
    assert_eq!(story.present(A, 2), [save(A, None)]);
    assert_eq!(story.state.announced(), BTreeSet::from([A]));
    assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), [save(A, None)]);
}

#[test]
fn after_a_restart_a_lease_that_ran_out_withdraws_until_it_is_back() {
    let mut story = Story { state: State::new(rules()), now: 3600 };
    story.on(Input::Loaded(Ok(Some(Record { lease: lease(A), left: None }))));
    assert_eq!(story.present(A, 1), [save(A, None), Action::Withdraw]);
    story.bound(A);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Serve(A)]);
}

#[test]
fn a_vip_in_service_without_a_lease_file_is_asked_for_by_its_address() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Ok(None)));
    let presumed = Lease::presumed(A, at(0));
    assert_eq!(story.present(A, 1), [Action::Ask(Some(presumed))]);
    assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), [save(A, None)]);
}

#[test]
fn an_unconfirmed_lease_serves_a_caller_when_the_server_is_silent() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Ok(Some(Record { lease: lease(A), left: Some(at(0)) }))));
    assert_eq!(story.on(Input::Acquire(Caller(1))), []);
    assert_eq!(story.state.next_tick(), Some(at(5)));
    assert_eq!(story.tick(5), [save(A, Some(0))]);
    assert_eq!(story.tick(6), []);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Answer(Caller(1), Ok(grant(&lease(A))))]);
}

#[test]
fn a_bad_lease_file_refuses_its_vip_until_it_is_gone() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Err("/x/shop_web.json is no lease file".into())));
    let actions = story.on(Input::Acquire(Caller(1)));
    assert_eq!(refusal(&actions), &Refusal { code: 5, msg: "/x/shop_web.json is no lease file".into() });
    assert_eq!(story.present(A, 1), [], "what runs goes on running");
    assert_eq!(story.state.announced(), BTreeSet::from([A]));
    assert_eq!(story.tick(100_000), []);
    assert!(story.state.needs_record(&vip()));
    story.on(Input::Loaded(Ok(None)));
    assert!(matches!(story.present(A, 1)[..], [Action::Ask(Some(_))]));
}

#[test]
fn a_full_disk_grants_nothing_until_it_can_be_written() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    story.on(Input::Checked(A, Findings::default()));
    let actions = story.on(Input::Saved(Err("disk full".into())));
    assert_eq!(refusal(&actions), &Refusal { code: 5, msg: "disk full".into() });
    assert_eq!(story.on(Input::Acquire(Caller(2))), [save(A, Some(0))]);
    assert_eq!(story.on(Input::Saved(Ok(()))).len(), 1);
}

#[test]
fn nothing_is_remembered_of_a_vip_that_only_the_registry_mentions_without_replicas() {
    let mut state = State::new(rules());
    assert_eq!(state.step(&vip(), Input::Present(Presence::default()), at(0)), []);
    assert!(state.needs_record(&vip()) && state.status().is_empty());
}

#[test]
fn a_registry_that_disagrees_is_put_right() {
    let mut story = Story::serving(rules());
    assert_eq!(story.present(B, 1), [Action::Serve(A)]);
}

#[test]
fn a_withdrawal_that_shows_no_effect_is_repeated() {
    let mut story = Story::serving(rules());
    assert_eq!(story.lost(), [Action::Withdraw]);
    assert_eq!(story.on(Input::Stuck("netlink".into())), []);
    assert_eq!(story.present(A, 1), [Action::Withdraw]);
    assert_eq!(story.on(Input::Present(Presence { address: None, endpoints: 1, ready: 1, former: Vec::new() })), []);
}

#[test]
fn a_caller_after_a_long_silence_has_the_server_asked_at_once() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.on(Input::News(News::Trouble { why: "3 DISCOVERs unanswered".into() }));
    // While somebody waits, the source asks often enough.
    assert_eq!(story.on(Input::Acquire(Caller(2))), []);
    story.tick(9);
    assert_eq!(story.on(Input::Acquire(Caller(3))), [Action::Stop, Action::Ask(None)]);
    assert_eq!(story.on(Input::Acquire(Caller(4))), []);
}
