//! Several pools, and who is let pass.

use super::*;

fn pool(name: &str, network: &str, auto: bool) -> Pool {
    Pool { auto, ..Pool::open(name, vec![network.parse().unwrap()], Vec::new()) }
}

/// `a` of one address, `b` of two that only who names it gets.
fn two() -> Register {
    let pools = vec![pool("a", "10.118.0.1/32", true), pool("b", "10.118.0.4/30", false)];
    let mut register = Register::new(Pools::new(pools), BTreeMap::new());
    register.on_list(BTreeMap::new());
    register
}

fn ask(register: &mut Register, names: &[&str], now: Instant) {
    for name in names {
        register.on_order(Order::Ask(vip(name), None), now);
    }
}

fn refusal(register: &Register, name: &str) -> Option<Refusal> {
    register.refused(&vip(name)).map(|refused| refused.kind)
}

#[test]
fn each_pool_has_a_queue_of_its_own() {
    let (mut register, mut cluster, now) = (two(), known(&["first", "second", "named"]), Instant::now());
    cluster.named.insert(vip("named"), "b".into());
    ask(&mut register, &["first", "second", "named"], now);
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("first".to_owned(), at(1)), ("named".to_owned(), at(5))]);
    assert_eq!(refusal(&register, "second"), Some(Refusal::UsedUp));
    let said = steps.iter().any(|step| {
        matches!(step, Step::Report(vip, News::Trouble { why, exhausted: true })
            if vip.name() == "second" && why == "no address of pool a (10.118.0.1/32) is free")
    });
    assert!(said, "{steps:?}");
}

#[test]
fn a_pool_that_isnt_there_is_named_and_holds_up_nobody() {
    let (mut register, mut cluster, now) = (two(), known(&["lost", "next"]), Instant::now());
    cluster.named.insert(vip("lost"), "c".into());
    ask(&mut register, &["lost", "next"], now);
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("next".to_owned(), at(1))]);
    assert_eq!(refusal(&register, "lost"), Some(Refusal::Unknown));
    // It names another one by now.
    cluster.named.insert(vip("lost"), "b".into());
    assert_eq!(created(&register.steps(&cluster, now + AGAIN)), [("lost".to_owned(), at(5))]);
    assert_eq!(refusal(&register, "lost"), None);
}

/// The new address is there before the old one goes, on the keeper and on all others.
#[test]
fn a_service_that_names_another_pool_moves_there() {
    for is_keeper in [true, false] {
        let (mut register, mut cluster, now) = (two(), known(&["s"]), Instant::now());
        cluster.is_keeper = is_keeper;
        register.on_entry(at(1), Some(entry("s")), now);
        ask(&mut register, &["s"], now);
        assert_eq!(bound(&register.steps(&cluster, now)), [("s".to_owned(), IpAddr::from(at(1)))]);
        cluster.named.insert(vip("s"), "b".into());
        let made = created(&register.steps(&cluster, now));
        if is_keeper {
            assert_eq!(made, [("s".to_owned(), at(5))]);
            assert!(register.steps(&cluster, now).is_empty(), "it is being made");
            register.on_made(at(5), entry("s"), Answer::Made, now);
        } else {
            assert!(made.is_empty());
            assert!(
                register.steps(&cluster, now + WITHOUT_KEEPER * 3).is_empty(),
                "it has one: that is for its keeper"
            );
            register.on_entry(at(5), Some(entry("s")), now);
        }
        assert_eq!(bound(&register.steps(&cluster, now)), [("s".to_owned(), IpAddr::from(at(5)))]);
        assert!(register.steps(&cluster, now + UNNEEDED / 2).is_empty());
        let later = register.steps(&cluster, now + UNNEEDED * 2);
        let expected = if is_keeper { vec![Step::Delete(at(1), entry("s"))] } else { Vec::new() };
        assert_eq!(later, expected);
    }
}

#[test]
fn a_service_keeps_its_address_while_the_pool_that_it_names_has_none() {
    let (mut register, mut cluster, now) = (two(), known(&["x", "y", "s"]), Instant::now());
    for (last, name) in [(1, "s"), (5, "x"), (6, "y")] {
        register.on_entry(at(last), Some(entry(name)), now);
    }
    ask(&mut register, &["s"], now);
    register.steps(&cluster, now);
    cluster.named.insert(vip("s"), "b".into());
    assert!(register.steps(&cluster, now).is_empty());
    assert_eq!(refusal(&register, "s"), Some(Refusal::UsedUp));
    // One is given back.
    register.on_entry(at(6), None, now);
    cluster.services.remove(&vip("y"));
    assert_eq!(created(&register.steps(&cluster, now)), [("s".to_owned(), at(6))]);
}

/// A Service whose keeper makes no address for it, because its namespace has too many, holds up the others for a moment and no longer.
#[test]
fn who_doesnt_take_its_turn_is_let_pass() {
    let (mut register, cluster, now) = (two(), known(&["over", "next"]), Instant::now());
    ask(&mut register, &["next"], now);
    assert!(created(&register.steps(&cluster, now)).is_empty(), "the older one may just be about to");
    let later = now + WITHOUT_KEEPER + AGAIN;
    assert_eq!(created(&register.steps(&cluster, later)), [("next".to_owned(), at(1))]);
}
