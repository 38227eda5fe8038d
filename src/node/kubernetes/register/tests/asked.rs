//! Addresses that Services ask for.

use super::*;

fn why<'a>(register: &'a Register, name: &str) -> Option<&'a str> {
    register.refused(&vip(name)).map(|refused| refused.why.as_str())
}

#[test]
fn what_a_service_asks_for_is_its_and_what_it_had_stays_until_then() {
    let (mut register, mut cluster, now) = (register(), known(&["b", "a"]), Instant::now());
    cluster.asked.insert(vip("a"), at(1));
    register.on_order(Order::Ask(vip("a"), None), now);
    register.on_order(Order::Ask(vip("b"), None), now);
    // Nobody else is given it, however long that one waits.
    let mut first = created(&register.steps(&cluster, now));
    first.sort();
    assert_eq!(first, [("a".to_owned(), at(1)), ("b".to_owned(), at(2))]);
    register.on_made(at(1), entry("a"), Answer::Made, now);
    register.on_made(at(2), entry("b"), Answer::Made, now);
    register.steps(&cluster, now);
    // What another one has, it keeps.
    cluster.asked.insert(vip("a"), at(2));
    assert!(created(&register.steps(&cluster, now)).is_empty());
    assert_eq!(why(&register, "a"), Some("10.118.0.2 is shop/b's"));
    cluster.services.remove(&vip("b"));
    register.on_order(Order::Stop(vip("b")), now);
    let steps = register.steps(&cluster, now);
    assert!(steps.contains(&Step::Delete(at(2), entry("b"))), "{steps:?}");
    register.on_taken_back(at(2), &entry("b"), true, now);
    let now = now + AGAIN;
    assert_eq!(created(&register.steps(&cluster, now)), [("a".to_owned(), at(2))]);
    assert_eq!(why(&register, "a"), None);
    register.on_made(at(2), entry("a"), Answer::Made, now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
    assert_eq!(register.given.len(), 2, "the one of before is still its");
    assert_eq!(register.steps(&cluster, now + UNNEEDED), [Step::Delete(at(1), entry("a"))]);
}

#[test]
fn an_address_that_is_asked_for_and_in_conflict_is_left() {
    let (mut register, mut cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_entry(at(2), Some(entry("a")), now);
    register.on_order(Order::Ask(vip("a"), None), now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
    cluster.asked.insert(vip("a"), at(1));
    assert_eq!(created(&register.steps(&cluster, now)), [("a".to_owned(), at(1))]);
    register.on_made(at(1), entry("a"), Answer::Made, now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(1)))]);
    register.on_order(Order::Another(vip("a")), now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
    assert_eq!(why(&register, "a"), Some("10.118.0.1 is used by another host of the network"));
    // It asks for nothing else any more.
    cluster.asked.remove(&vip("a"));
    register.steps(&cluster, now + AGAIN);
    assert_eq!(why(&register, "a"), None);
}
