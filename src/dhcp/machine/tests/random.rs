//! Events at random: whatever comes, the machine goes on.

use proptest::prelude::*;

use super::*;

/// Anything at all, in any order.
#[derive(Clone, Debug)]
enum Any {
    Wait(u64),
    Due,
    Reply { answer: Answer, ours: bool },
    Decline,
    Restart,
    Release,
    Learn { address: IpAddr, from: f64, long: f64 },
    Turn(Turn),
}

fn any_event() -> impl Strategy<Value = Any> {
    let address = prop_oneof![Just(A), Just(B)];
    let times =
        (prop_oneof![1u32..20, any::<u32>().prop_map(|n| n.max(1))], any::<Option<u32>>(), any::<Option<u32>>());
    let answer = prop_oneof![
        address.clone().prop_map(offer),
        (address.clone(), times).prop_map(|(address, (lease, t1, t2))| Answer::Ack(Grant {
            address,
            server: SERVER,
            lease,
            t1,
            t2,
            infrastructure: Vec::new(),
            prefix: None,
        })),
        Just(nak()),
        Just(nak_of(OTHER)),
    ];
    prop_oneof![
        (0u64..1_000_000_000).prop_map(Any::Wait),
        Just(Any::Due),
        (answer, prop::bool::weighted(0.9)).prop_map(|(answer, ours)| Any::Reply { answer, ours }),
        Just(Any::Decline),
        Just(Any::Restart),
        Just(Any::Release),
        (address, -100.0..100.0, 0.0..1000.0).prop_map(|(address, from, long)| Any::Learn { address, from, long }),
        prop_oneof![Just(Turn::Own), Just(Turn::Others)].prop_map(Any::Turn),
    ]
}

proptest! {
    #[test]
    fn nothing_panics_and_the_deadline_is_ahead(
        events in prop::collection::vec(any_event(), 0..60),
        seed: u64,
        own_turn: bool,
        remembered in prop::option::of((-1000.0..1000.0, 0.0..1000.0)),
    ) {
        let remembered = remembered.map(|(from, long)| lease(A, from, long));
        let mut now = at(0.0);
        let turn = if own_turn { Turn::Own } else { Turn::Others };
        let mut machine = Machine::new(Acquisition { identity: identity(), remembered, wish: None, turn, prefix: None }, seed, now);
        for event in events {
            let (reply, told);
            let event = match event {
                Any::Wait(nanos) => { now += Duration::from_nanos(nanos); Event::Timer }
                Any::Due => { now = now.max(machine.deadline().unwrap_or(now)); Event::Timer }
                Any::Reply { answer, ours } => {
                    let xid = machine.xid ^ u32::from(!ours);
                    reply = Reply { xid, client: Client::Mac(identity().chaddr), client_id: None, answer };
                    Event::Reply(&reply)
                }
                Any::Decline => Event::Decline,
                Any::Restart => Event::Restart,
                Any::Release => Event::Release,
                Any::Turn(turn) => Event::Turn(turn),
                Any::Learn { address, from, long } => {
                    let since = now.duration_since(at(0.0)).unwrap().as_secs_f64();
                    told = lease(address, since + from, long);
                    Event::Learn(&told)
                }
            };
            let valid = machine.held.clone().filter(|lease| lease.expires.is_none_or(|end| end > now));
            let foreign = matches!(&event, Event::Reply(Reply { answer: Answer::Nak { server: OTHER, .. }, .. }));
            let actions = machine.step(event, now);
            prop_assert!(machine.deadline().is_none_or(|due| due > now), "{machine:?}");
            prop_assert!(machine.end().is_none_or(|end| end > now));
            if let (true, Some(lease), Some(_)) = (foreign, &valid, valid.as_ref().and_then(|lease| lease.server)) {
                prop_assert_eq!(machine.held.as_ref().map(|held| held.address), Some(lease.address), "{:?}", actions);
            }
            let sends = actions.iter().filter(|action| matches!(action, Action::Send(_))).count();
            prop_assert!(sends <= 2, "{actions:?}");
        }
    }
}
