//! Whatever happens in whatever order: what must hold all the same.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

/// An input, or time passing.
#[derive(Clone, Debug)]
enum Event {
    Input(Happening),
    Seconds(u64),
}

/// [`Input`] without what can't be cloned.
#[derive(Clone, Debug)]
enum Happening {
    LoadNothing,
    LoadLease(u8),
    LoadBad,
    Acquire,
    Bound(u8),
    Renewed(u8),
    Lost,
    Trouble(bool),
    Failed(bool),
    Checked(u8, bool),
    Saved(bool),
    Present(Option<u8>, usize, usize),
    Demand(u8),
    Renewer(u8),
    DataplaneFailed,
}

fn address(octet: u8) -> IpAddr {
    IpAddr::from([10, 118, 0, octet])
}

fn lease(octet: u8, now: SystemTime) -> Lease {
    Lease { expires: Some(now + Duration::from_secs(100)), ..Lease::permanent(address(octet), now) }
}

fn input(happening: &Happening, caller: Caller, now: SystemTime) -> Input {
    let word = || "so".to_string();
    match *happening {
        Happening::LoadNothing => Input::Loaded(Ok(None)),
        Happening::LoadLease(a) => {
            Input::Loaded(Ok(Some(Record { lease: lease(a, now), left: Some(now), service: false })))
        }
        Happening::LoadBad => Input::Loaded(Err(word())),
        Happening::Acquire => Input::Acquire(caller),
        Happening::Bound(a) => Input::News(News::Bound(lease(a, now))),
        Happening::Renewed(a) => Input::News(News::Renewed(lease(a, now))),
        Happening::Lost => Input::News(News::Lost { reason: word() }),
        Happening::Trouble(exhausted) => Input::News(News::Trouble { why: word(), exhausted }),
        Happening::Failed(exhausted) => Input::News(News::Failed { why: word(), exhausted }),
        Happening::Checked(a, good) => {
            let conflicts = if good { vec![] } else { vec![word()] };
            Input::Checked(address(a), Findings { conflicts, ..Findings::default() })
        }
        Happening::Saved(good) => Input::Saved(if good { Ok(()) } else { Err(word()) }),
        Happening::Present(a, endpoints, ready) => Input::LocalUsage(LocalUsage {
            address: a.map(address),
            endpoints,
            ready: ready.min(endpoints),
            previous: Vec::new(),
        }),
        Happening::Demand(0) => Input::Demand(Demand::Wanted),
        Happening::Demand(1) => Input::Demand(Demand::Ended),
        Happening::Demand(_) => Input::Demand(Demand::Elsewhere),
        Happening::Renewer(0) => Input::Renewer(Renewer::Other),
        Happening::Renewer(1) => Input::Renewer(Renewer::OwnAlone),
        Happening::Renewer(_) => Input::Renewer(Renewer::OwnForOthers),
        Happening::DataplaneFailed => Input::DataplaneFailed(word()),
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let happening = prop_oneof![
        Just(Happening::LoadNothing),
        (1..4_u8).prop_map(Happening::LoadLease),
        Just(Happening::LoadBad),
        (0..3_u8).prop_map(Happening::Demand),
        (0..3_u8).prop_map(Happening::Renewer),
        Just(Happening::Acquire),
        Just(Happening::Acquire),
        (1..4_u8).prop_map(Happening::Bound),
        (1..4_u8).prop_map(Happening::Bound),
        (1..4_u8).prop_map(Happening::Renewed),
        Just(Happening::Lost),
        any::<bool>().prop_map(Happening::Trouble),
        any::<bool>().prop_map(Happening::Failed),
        (1..4_u8, any::<bool>()).prop_map(|(a, good)| Happening::Checked(a, good)),
        (1..4_u8, any::<bool>()).prop_map(|(a, good)| Happening::Checked(a, good)),
        any::<bool>().prop_map(Happening::Saved),
        (proptest::option::of(1..4_u8), 0..3_usize, 0..3_usize).prop_map(|(a, e, r)| Happening::Present(a, e, r)),
        Just(Happening::DataplaneFailed),
    ];
    let event = prop_oneof![4 => happening.prop_map(Event::Input), 1 => (0..200_u64).prop_map(Event::Seconds)];
    proptest::collection::vec(event, 0..80)
}

/// Follows what is done to the world.
#[derive(Default)]
struct World {
    /// Callers without an answer yet, and since when.
    open: BTreeMap<Caller, SystemTime>,
    /// Whether the source asks.
    asking: bool,
    ready: usize,
}

impl World {
    fn apply(&mut self, steps: Vec<Step>) {
        for (_, action) in steps {
            match action {
                Action::Answer(caller, _) => assert!(self.open.remove(&caller).is_some(), "answered twice"),
                Action::Ask(_) => {
                    assert!(!self.asking, "asked twice");
                    self.asking = true;
                }
                Action::Stop | Action::Release => {
                    assert!(self.asking, "stopped what doesn't run");
                    self.asking = false;
                }
                Action::Decline | Action::Restart => assert!(self.asking, "declined what isn't ours"),
                Action::Check(_) | Action::Save(_) | Action::Erase | Action::Serve(_) | Action::Withdraw => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn every_caller_is_answered_once_and_in_time(events in events(), keep: bool, has_peers: bool, gives_back: bool) {
        let on_lost = if keep { OnLost::Keep } else { OnLost::Withdraw };
        let (allow, hold, limits) = (Allow::default(), Duration::from_secs(60), Limits::default());
        let rules = Rules { allow, hold, on_lost, has_peers, gives_back, trusts_memory: true, limits };
        let mut state = State::new(rules);
        let mut world = World::default();
        let mut now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let vip = VipKey::new("shop", "web").unwrap();
        for (n, event) in (0..).zip(&events) {
            match event {
                Event::Seconds(seconds) => {
                    let end = now + Duration::from_secs(*seconds);
                    while let Some(next) = state.next_tick().filter(|next| *next <= end) {
                        prop_assert!(next > now, "would spin");
                        now = next;
                        world.apply(state.tick(now));
                    }
                    now = end;
                }
                Event::Input(happening) => {
                    let loads = matches!(happening, Happening::LoadNothing | Happening::LoadLease(_) | Happening::LoadBad);
                    // Files are read when that is asked for, and before anything else about a VIP.
                    if state.needs_record(&vip) && !loads {
                        world.apply(state.step(&vip, Input::Loaded(Ok(None)), now));
                    } else if !state.needs_record(&vip) && loads {
                        continue;
                    }
                    let caller = Caller(n);
                    match happening {
                        Happening::Acquire => drop(world.open.insert(caller, now)),
                        Happening::Present(_, endpoints, ready) => world.ready = (*ready).min(*endpoints),
                        _ => {}
                    }
                    world.apply(state.step(&vip, input(happening, caller, now), now));
                }
            }
            world.apply(state.tick(now));
            for since in world.open.values() {
                prop_assert!(now < *since + ANSWER_WITHIN, "left waiting");
                prop_assert!(state.next_tick().is_some_and(|at| at <= *since + ANSWER_WITHIN), "will be left waiting");
            }
            prop_assert!(state.next_tick().is_none_or(|at| at > now), "would spin");
            prop_assert!(state.announced().next().is_none() || world.ready > 0);
        }
    }
}
