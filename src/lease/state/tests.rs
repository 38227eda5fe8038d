//! The decisions, one story each.

use std::time::UNIX_EPOCH;

use crate::api::protocol::LeaseState;

use std::net::Ipv4Addr;

use super::*;

fn vip() -> VipKey {
    VipKey::new("shop", "web").unwrap()
}

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 0, 7));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 118, 0, 8));

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
}

fn lease(address: IpAddr) -> Lease {
    Lease {
        address,
        server: Some([192, 0, 2, 1].into()),
        link: None,
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
        gives_back: false,
        trusts_memory: true,
        limits: Limits::default(),
    }
}

fn in_conflict() -> Findings {
    Findings { conflicts: vec!["static route 10.118.0.0/24".into()], ..Findings::default() }
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

    fn bound(&mut self, address: IpAddr) -> Vec<Action> {
        self.on(Input::News(News::Bound(lease(address))))
    }

    fn lost(&mut self) -> Vec<Action> {
        self.on(Input::News(News::Lost { reason: "NAK".into() }))
    }

    fn present(&mut self, address: IpAddr, endpoints: usize) -> Vec<Action> {
        self.on(Input::LocalUsage(LocalUsage {
            address: Some(address),
            endpoints,
            ready: endpoints,
            previous: Vec::new(),
        }))
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

fn save(address: IpAddr, left: Option<u64>) -> Action {
    Action::Save(Record { lease: lease(address), left: left.map(at), service: false })
}

fn save_wanted(address: IpAddr) -> Action {
    Action::Save(Record { lease: lease(address), left: None, service: true })
}

fn refusal(actions: &[Action]) -> &Refusal {
    let refusal = actions.iter().find_map(|action| match action {
        Action::Answer(_, Err(refusal)) => Some(refusal),
        _ => None,
    });
    refusal.unwrap_or_else(|| panic!("no refusal in {actions:?}"))
}

fn announced(state: &State) -> BTreeSet<IpAddr> {
    state.announced().map(|(address, _)| address).collect()
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
    assert_eq!(story.status(), (LeaseState::Bound, None));
}

#[test]
fn a_caller_hears_what_it_waits_for() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    assert_eq!(story.bound(A), [Action::Check(A)]);
    let said = refusal(&story.tick(9)).msg.clone();
    assert_eq!(said, format!("no address yet, still trying: hosts are still asked whether one of them has {A}"));
}

#[test]
fn a_caller_hears_in_time_and_the_next_one_gets_what_came_since() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.on(Input::News(News::Trouble { why: "3 DISCOVERs unanswered".into(), exhausted: false }));
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
        let address = IpAddr::from([10, 118, 0, 100 + n]);
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
    assert_eq!(story.status().0, LeaseState::Failed);
    story.now = 59;
    assert!(matches!(story.on(Input::Acquire(Caller(2)))[..], [Action::Answer(Caller(2), Err(_))]));
    story.now = 60;
    assert_eq!(story.on(Input::Acquire(Caller(3))), [Action::Ask(None)]);
}

#[test]
fn a_pool_that_has_none_free_can_be_asked_again_at_once() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    let actions = story.on(Input::News(News::Failed { why: "none is free".into(), exhausted: true }));
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
    let held = Record { lease: lease(A), left: Some(at(0)), service: false };
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
    assert_eq!(announced(&story.state), BTreeSet::from([A]));
    assert_eq!(story.lost(), [Action::Withdraw]);
    assert!(announced(&story.state).is_empty());
    assert_eq!(story.status().0, LeaseState::Expired);
    assert_eq!(story.bound(B), [Action::Check(B)]);
    assert_eq!(story.on(Input::Checked(B, Findings::default())), [save(B, None)]);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Serve(B)]);
    assert_eq!(story.present(B, 1), []);
    assert_eq!(announced(&story.state), BTreeSet::from([B]));
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
    assert_eq!(announced(&story.state), BTreeSet::from([A]));
    assert_eq!(story.status().0, LeaseState::Expired);
    assert_eq!(story.state.next_tick(), Some(at(60)));
    assert_eq!(story.tick(60), [Action::Ask(Some(lease(A)))]);
    assert_eq!(story.bound(B), [Action::Stop]);
    story.tick(120);
    assert_eq!(story.bound(A), [save(A, None)]);
    assert_eq!(story.status(), (LeaseState::Bound, None));
}

#[test]
fn after_a_restart_a_vip_in_service_goes_on_while_its_lease_is_confirmed() {
    let mut story = Story { state: State::new(rules()), now: 10 };
    let record = Record { lease: lease(A), left: None, service: false };
    assert_eq!(story.on(Input::Loaded(Ok(Some(record)))), [Action::Ask(Some(lease(A)))]);
    assert_eq!(story.present(A, 2), [save(A, None)]);
    assert_eq!(announced(&story.state), BTreeSet::from([A]));
    assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), [save(A, None)]);
}

#[test]
fn after_a_restart_a_lease_that_ran_out_withdraws_until_it_is_back() {
    let mut story = Story { state: State::new(rules()), now: 3600 };
    story.on(Input::Loaded(Ok(Some(Record { lease: lease(A), left: None, service: false }))));
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
    story.on(Input::Loaded(Ok(Some(Record { lease: lease(A), left: Some(at(0)), service: false }))));
    assert_eq!(story.on(Input::Acquire(Caller(1))), []);
    assert_eq!(story.state.next_tick(), Some(at(5)));
    assert_eq!(story.tick(5), [save(A, Some(0))]);
    assert_eq!(story.tick(6), []);
    assert_eq!(story.on(Input::Saved(Ok(()))), [Action::Answer(Caller(1), Ok(grant(&lease(A))))]);
}

#[test]
fn a_damaged_lease_file_refuses_its_vip_until_it_is_gone() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Err("/x/shop_web.json is no lease file".into())));
    let actions = story.on(Input::Acquire(Caller(1)));
    assert_eq!(refusal(&actions), &Refusal { code: 5, msg: "/x/shop_web.json is no lease file".into() });
    assert_eq!(story.tick(100_000), []);
    assert!(story.state.needs_record(&vip()));
    assert_eq!(story.status().0, LeaseState::Failed);
    story.on(Input::Loaded(Ok(None)));
    assert_eq!(story.on(Input::Acquire(Caller(2))), [Action::Ask(None)]);
}

#[test]
fn a_vip_in_service_with_a_damaged_lease_file_is_renewed_and_nothing_is_written() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Err("/x/shop_web.json is torn".into())));
    assert_eq!(story.present(A, 1), [Action::Ask(Some(Lease::presumed(A, at(0))))]);
    assert_eq!(announced(&story.state), BTreeSet::from([A]));
    for _ in 0..2 {
        assert_eq!(story.on(Input::News(News::Renewed(lease(A)))), []);
        let (state, error) = story.status();
        assert_eq!(state, LeaseState::Bound);
        let truth = "/x/shop_web.json is torn: its lease is renewed, and not kept on disk";
        assert_eq!(error.as_deref(), Some(truth));
        // The file is read again with each change of the registry.
        assert!(story.state.needs_record(&vip()));
        assert_eq!(story.on(Input::Loaded(Err("/x/shop_web.json is torn".into()))), []);
    }
    // The server takes it away: as with any other VIP.
    assert_eq!(story.lost(), [Action::Withdraw]);
    assert_eq!(story.bound(B), [Action::Check(B)]);
    assert_eq!(story.on(Input::Checked(B, Findings::default())), [Action::Serve(B)]);
    story.present(B, 1);
    // And when the file is gone what is known is written.
    assert_eq!(story.on(Input::Loaded(Ok(None))), [save(B, None)]);
    assert_eq!(story.status(), (LeaseState::Bound, None));
    assert!(!story.state.needs_record(&vip()));
}

#[test]
fn a_damaged_lease_file_is_left_when_its_vip_goes() {
    let mut story = Story { state: State::new(rules()), now: 0 };
    story.on(Input::Loaded(Err("torn".into())));
    story.present(A, 1);
    story.on(Input::News(News::Renewed(lease(A))));
    story.present(A, 0);
    assert_eq!(story.tick(600), [Action::Stop], "no Erase");
    assert!(story.state.needs_record(&vip()));
    assert_eq!(story.state.next_tick(), None);
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
    assert_eq!(state.step(&vip(), Input::LocalUsage(LocalUsage::default()), at(0)), []);
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
    assert_eq!(story.on(Input::DataplaneFailed("netlink".into())), []);
    assert_eq!(story.present(A, 1), [Action::Withdraw]);
    assert_eq!(
        story.on(Input::LocalUsage(LocalUsage { address: None, endpoints: 1, ready: 1, previous: Vec::new() })),
        []
    );
}

#[test]
fn a_caller_after_a_long_silence_has_the_server_asked_at_once() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.on(Input::News(News::Trouble { why: "3 DISCOVERs unanswered".into(), exhausted: false }));
    // While a caller waits, the source asks often enough.
    assert_eq!(story.on(Input::Acquire(Caller(2))), []);
    story.tick(9);
    assert_eq!(story.on(Input::Acquire(Caller(3))), [Action::Stop, Action::Ask(None)]);
    assert_eq!(story.on(Input::Acquire(Caller(4))), []);
}

/// An address that another VIP of ours has is no stranger's: DECLINE would take it from that one.
#[test]
fn what_another_vip_has_is_not_declined() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    assert_eq!(story.on(Input::Checked(A, Findings { at_other_vip: true, ..in_conflict() })), [Action::Restart]);
}

fn answered_by(last: u8) -> Findings {
    let mac = Mac([2, 0, 0, 0, 0, last]);
    Findings { conflicts: vec!["answers".into()], answered_by: BTreeSet::from([mac]), ..Findings::default() }
}

/// A router with proxy ARP would have us decline the server's whole pool.
#[test]
fn a_host_that_answers_for_everything_ends_the_round_after_one_decline() {
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    story.bound(A);
    assert_eq!(story.on(Input::Checked(A, answered_by(9))), [Action::Decline]);
    story.bound(B);
    let actions = story.on(Input::Checked(B, answered_by(9)));
    assert_eq!(actions[0], Action::Stop);
    let said = &refusal(&actions).msg;
    assert!(said.starts_with("02:00:00:00:00:09 answers for whatever is offered"), "{said}");
    // Two hosts that have one each are just that.
    let mut story = Story::new(rules());
    story.on(Input::Acquire(Caller(1)));
    for (n, address) in [(1, A), (2, B)] {
        story.bound(address);
        assert_eq!(story.on(Input::Checked(address, answered_by(n))), [Action::Decline]);
    }
}

#[test]
fn rounds_of_conflicts_back_off() {
    let mut story = Story::new(rules());
    let mut pauses = Vec::new();
    for caller in 1..=8 {
        let asked = story.on(Input::Acquire(Caller(caller)));
        assert_eq!(asked, [Action::Ask(None)], "{pauses:?}");
        for address in [A, B] {
            story.bound(address);
            story.on(Input::Checked(address, answered_by(9)));
        }
        let from = story.now;
        while refused_at_once(&mut story, caller) {
            story.now += 30;
        }
        pauses.push(story.now - from);
        story.on(Input::News(News::Failed { why: String::new(), exhausted: false }));
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 1920, 1920]);
    // A good one ends that.
    story.on(Input::Acquire(Caller(100)));
    story.bound(A);
    story.on(Input::Checked(A, Findings::default()));
    story.on(Input::Saved(Ok(())));
    story.lost();
    for address in [A, B] {
        story.bound(address);
        story.on(Input::Checked(address, answered_by(9)));
    }
    story.now += 60;
    assert!(!refused_at_once(&mut story, 200));
}

fn refused_at_once(story: &mut Story, caller: u64) -> bool {
    let actions = story.on(Input::Acquire(Caller(1000 + caller)));
    matches!(actions[..], [Action::Answer(_, Err(_))])
}

fn key(text: &str) -> VipKey {
    text.parse().unwrap()
}

fn step(state: &mut State, vip: &str, input: Input, now: u64) -> Vec<(String, Action)> {
    state.step(&key(vip), input, at(now)).into_iter().map(|(vip, action)| (vip.to_string(), action)).collect()
}

/// `vip` bound to an address of its own, without a replica since `left`.
fn hold(state: &mut State, vip: &str, last: u8, left: u64) {
    let address = IpAddr::from([10, 118, 0, last]);
    let lease = Lease { expires: Some(at(100_000)), ..lease(address) };
    step(state, vip, Input::Loaded(Ok(None)), left);
    step(state, vip, Input::Acquire(Caller(u64::from(last))), left);
    step(state, vip, Input::News(News::Bound(lease)), left);
    step(state, vip, Input::Checked(address, Findings::default()), left);
    step(state, vip, Input::Saved(Ok(())), left);
    for endpoints in [1, 0] {
        let usage = LocalUsage { address: Some(address), endpoints, ready: 0, previous: Vec::new() };
        step(state, vip, Input::LocalUsage(usage), left);
    }
}

/// "Nothing is left", from the DHCP server.
fn exhausted() -> Input {
    Input::News(News::Trouble { why: "nothing offered".into(), exhausted: true })
}

#[test]
fn what_is_held_for_nobody_makes_room_the_oldest_first() {
    let mut state = State::new(Rules { gives_back: true, ..rules() });
    hold(&mut state, "a/young", 8, 200);
    hold(&mut state, "a/old", 7, 100);
    step(&mut state, "a/new", Input::Loaded(Ok(None)), 300);
    step(&mut state, "a/new", Input::Acquire(Caller(50)), 300);
    let name = |vip: &str, action| (vip.to_owned(), action);
    let room = |vip| {
        let given = [name(vip, Action::Release), name(vip, Action::Erase)];
        [&given[..], &[name("a/new", Action::Stop), name("a/new", Action::Ask(None))]].concat()
    };
    assert_eq!(step(&mut state, "a/new", exhausted(), 300), room("a/old"));
    assert_eq!(step(&mut state, "a/new", exhausted(), 301), room("a/young"));
    assert_eq!(step(&mut state, "a/new", exhausted(), 302), [], "nothing is held any more");
    assert!(state.status().iter().all(|vip| vip.vip == "a/new"));
}

#[test]
fn what_others_may_use_or_somebody_is_about_to_use_is_not_given_up() {
    let mut shared = State::new(rules());
    hold(&mut shared, "a/old", 7, 100);
    let mut alone = State::new(Rules { gives_back: true, ..rules() });
    hold(&mut alone, "a/called", 7, 100);
    step(&mut alone, "a/called", Input::Acquire(Caller(1)), 290);
    for state in [&mut shared, &mut alone] {
        step(state, "a/new", Input::Loaded(Ok(None)), 300);
        step(state, "a/new", Input::Acquire(Caller(50)), 300);
        assert_eq!(step(state, "a/new", exhausted(), 300), []);
    }
}

#[test]
fn an_unused_address_is_given_back_where_nobody_else_has_it() {
    for (gives_back, last) in [(true, Action::Release), (false, Action::Stop)] {
        let mut story = Story::serving(Rules { gives_back, ..rules() });
        story.present(A, 0);
        assert_eq!(story.tick(600), [last, Action::Erase]);
    }
    // A lease that ran out is not released.
    let mut story = Story::serving(Rules { gives_back: true, hold: Duration::from_secs(7200), ..rules() });
    story.present(A, 0);
    assert_eq!(story.tick(7200), [Action::Stop, Action::Erase]);
}

#[test]
fn more_vips_than_permitted_are_refused_and_name_the_key() {
    let limits = Limits { vips_per_namespace: 2, vips: 3 };
    let mut state = State::new(Rules { limits, ..rules() });
    let mut acquire = |vip: &str, now| {
        if state.needs_record(&key(vip)) {
            step(&mut state, vip, Input::Loaded(Ok(None)), now);
        }
        let actions = step(&mut state, vip, Input::Acquire(Caller(now)), now);
        actions.into_iter().find_map(|(_, action)| match action {
            Action::Answer(_, Err(refusal)) => Some(refusal),
            _ => None,
        })
    };
    assert_eq!(acquire("a/one", 1), None);
    assert_eq!(acquire("a/two", 2), None);
    let refusal = acquire("a/three", 3).unwrap();
    assert_eq!(refusal.code, 11);
    let said = "namespace a has 2 VIPs with an address, and no more may be had (limits.vips_per_namespace = 2 in";
    assert!(refusal.msg.starts_with(said), "{}", refusal.msg);
    assert_eq!(acquire("a/two", 4), None, "one that there is");
    assert_eq!(acquire("b/one", 5), None);
    let refusal = acquire("b/two", 6).unwrap();
    assert!(refusal.msg.contains("limits.vips = 3"), "{}", refusal.msg);
    assert_eq!(state.status().len(), 3, "nothing is kept of those refused");
    assert!(state.is_full().unwrap().contains("limits.vips = 3"));
}

#[test]
fn one_cause_is_one_sentence() {
    let mut state = State::new(rules());
    for vip in ["a/one", "a/two", "a/three"] {
        step(&mut state, vip, Input::Loaded(Ok(None)), 0);
        step(&mut state, vip, Input::Acquire(Caller(1)), 0);
    }
    assert_eq!(state.readiness_errors(at(0)), Vec::<String>::new());
    for vip in ["a/one", "a/two"] {
        step(&mut state, vip, Input::News(News::Trouble { why: "no server".into(), exhausted: false }), 3);
    }
    step(&mut state, "a/three", Input::News(News::Trouble { why: "unfit".into(), exhausted: false }), 3);
    assert_eq!(state.readiness_errors(at(3)), ["2 VIPs (a/one, …): no server", "a/three: unfit"]);
    step(&mut state, "a/three", Input::News(News::Bound(lease(A))), 4);
    step(&mut state, "a/three", Input::Checked(A, Findings::default()), 5);
    assert_eq!(state.readiness_errors(at(5)), ["2 VIPs (a/one, …): no server"]);
}

#[test]
fn a_service_keeps_its_address_without_a_replica() {
    let mut story = Story::new(Rules { gives_back: true, ..rules() });
    assert_eq!(story.on(Input::Demand(Demand::Wanted)), [Action::Ask(None)]);
    assert_eq!(story.on(Input::Demand(Demand::Wanted)), [], "it is being asked for");
    story.bound(A);
    assert_eq!(story.on(Input::Checked(A, Findings::default())), [save_wanted(A)], "it outlives a restart");
    story.on(Input::Saved(Ok(())));
    assert_eq!(story.state.service(&vip(), at(0)), (Some(A), None));
    assert_eq!(story.state.next_tick(), None);
    story.present(A, 1);
    assert_eq!(story.present(A, 0), []);
    assert_eq!(story.tick(3000), []);
    // Another node keeps it from now on: it is held as any other.
    assert_eq!(story.on(Input::Demand(Demand::Elsewhere)), [save(A, Some(3000))]);
    assert_eq!(story.tick(3599), []);
    assert_eq!(story.on(Input::Demand(Demand::Wanted)), [save_wanted(A)]);
    // The Service is gone.
    assert_eq!(story.on(Input::Demand(Demand::Ended)), [save(A, Some(3599))]);
    assert_eq!(story.tick(3599), [Action::Release, Action::Erase]);
}

#[test]
fn a_service_is_deleted_before_its_pods_have_left() {
    let mut story = Story::serving(Rules { gives_back: true, ..rules() });
    assert_eq!(story.on(Input::Demand(Demand::Wanted)), [save_wanted(A)], "a restart knows");
    assert_eq!(story.on(Input::Demand(Demand::Ended)), [save(A, None)]);
    assert_eq!(story.tick(10), [], "a replica uses it");
    assert_eq!(story.present(A, 0), [save(A, Some(10))]);
    assert_eq!(story.tick(10), [Action::Release, Action::Erase]);
}

/// Nodes that have one lease in common hear of the Service's end one after the other: the last one gives it back.
#[test]
fn what_nodes_share_is_given_back_by_the_last_one() {
    let renewed_by = |renewer| {
        let mut story = Story::serving(rules());
        story.on(Input::Demand(Demand::Wanted));
        story.on(Input::Renewer(renewer));
        story.present(A, 0);
        story.on(Input::Demand(Demand::Ended));
        story
    };
    assert_eq!(renewed_by(Renewer::Other).tick(0), [Action::Stop, Action::Erase]);
    assert_eq!(renewed_by(Renewer::OwnAlone).tick(0), [Action::Release, Action::Erase]);
    let mut waits = renewed_by(Renewer::OwnForOthers);
    assert_eq!(waits.tick(30), [], "another node may use it on");
    assert_eq!(waits.on(Input::Renewer(Renewer::OwnAlone)), []);
    assert_eq!(waits.tick(30), [Action::Release, Action::Erase]);
    // Pods that have joined by annotation use it on.
    let mut waits = renewed_by(Renewer::OwnForOthers);
    assert_eq!(waits.tick(600), [Action::Stop, Action::Erase]);
}

#[test]
fn a_service_that_gets_no_address_is_tried_on() {
    let mut story = Story::new(rules());
    story.on(Input::Demand(Demand::Wanted));
    story.on(Input::News(News::Failed { why: "none is free".into(), exhausted: false }));
    assert_eq!(story.state.service(&vip(), at(0)), (None, Some("none is free".into())));
    assert_eq!(story.tick(60), [Action::Ask(None)]);
}

/// What only a Service's status says is asked for, and is the VIP's when that is confirmed.
#[test]
fn an_address_that_a_status_says_is_asked_for_first() {
    let mut story = Story::new(rules());
    story.on(Input::Stated(A));
    let asked = story.on(Input::Demand(Demand::Wanted));
    let [Action::Ask(Some(hint))] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(hint.address, A);
    assert!(!hint.is_valid(at(0)), "it isn't used unconfirmed");
    assert_eq!(story.state.service(&vip(), at(0)), (None, None));
    story.bound(A);
    assert_eq!(story.on(Input::Checked(A, Findings::default())), [save_wanted(A)]);
    story.on(Input::Saved(Ok(())));
    assert_eq!(story.state.service(&vip(), at(0)), (Some(A), None));
    assert_eq!(story.on(Input::Stated(B)), [], "what is known counts");
    assert_eq!(story.state.service(&vip(), at(0)), (Some(A), None));
    // One that can't be a VIP's isn't asked for.
    let mut story = Story::new(rules());
    story.on(Input::Stated([192, 0, 2, 9].into()));
    assert_eq!(story.on(Input::Demand(Demand::Wanted)), [Action::Ask(None)]);
}
