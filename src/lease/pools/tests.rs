use proptest::prelude::*;

use super::*;

fn range(text: &str) -> Range {
    text.parse().unwrap_or_else(|()| panic!("{text}"))
}

fn pool(name: &str, namespaces: &[&str], labels: &[(&str, &str)]) -> Pool {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
    Pool { namespaces, labels, ..Pool::open(name, vec![range("10.118.0.0/29")], Vec::new()) }
}

fn manual(pool: Pool) -> Pool {
    Pool { auto: false, ..pool }
}

fn names(found: Result<Vec<&Pool>, Unserved>) -> Result<Vec<String>, String> {
    found.map(|pools| pools.iter().map(|pool| pool.name.clone()).collect()).map_err(|error| error.to_string())
}

#[test]
fn a_vip_that_names_no_pool_has_those_that_mean_it_first() {
    let pools = Pools::new(vec![
        pool("open", &[], &[]),
        manual(pool("manual", &["shop"], &[])),
        pool("shop", &["shop", "pay"], &[]),
        pool("gold", &[], &[("tier", "gold")]),
        pool("both", &["shop"], &[("tier", "gold"), ("zone", "a")]),
    ]);
    let gold = Labels::from([("tier".into(), "gold".into())]);
    let of = |namespace, labels| names(pools.serving(&Wish { namespace, labels, ..Wish::default() }));
    assert_eq!(of("shop", Some(&gold)).unwrap(), ["shop", "gold", "open"]);
    assert_eq!(of("shop", None).unwrap(), ["shop", "open"]);
    assert_eq!(of("ops", None).unwrap(), ["open"]);
    let both = Labels::from([("tier".into(), "gold".into()), ("zone".into(), "a".into())]);
    assert_eq!(of("shop", Some(&both)).unwrap(), ["shop", "gold", "both", "open"]);
    let closed = Pools::new(vec![manual(pool("manual", &[], &[])), pool("shop", &["shop"], &[])]);
    let refused = names(closed.serving(&Wish { namespace: "ops", ..Wish::default() })).unwrap_err();
    assert!(refused.starts_with("no pool serves namespace ops without being named"), "{refused}");
}

#[test]
fn a_pool_that_is_named_must_be_there_and_serve_the_service() {
    let pools = Pools::new(vec![manual(pool("manual", &["shop"], &[("tier", "gold")])), pool("open", &[], &[])]);
    let gold = Labels::from([("tier".into(), "gold".into())]);
    let of = |name, namespace, labels| pools.serving(&Wish { namespace, pool: Some(name), labels, ..Wish::default() });
    assert_eq!(names(of("manual", "shop", Some(&gold))).unwrap(), ["manual"]);
    for (found, refusal, words) in [
        (
            of("other", "shop", None),
            Refusal::Unknown,
            "there is no pool other (viproute.io/pool; there are: manual, open)",
        ),
        (of("manual", "ops", Some(&gold)), Refusal::Unserved, "doesn't serve namespace ops (it serves: shop)"),
        (of("manual", "shop", None), Refusal::Unserved, "serves Services with the labels tier=gold alone"),
    ] {
        let error = found.unwrap_err();
        assert_eq!(error.refusal(), refusal);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn ranges_are_read_and_counted() {
    for bad in ["", "10.0.0.1", "10.0.0.1/24", "10.0.0.9-10.0.0.1", "10.0.0.1-", "10.0.0.0/33", "a-b"] {
        assert!(bad.parse::<Range>().is_err(), "{bad}");
    }
    let size = |text: &str| Pool::open("p", vec![range(text)], Vec::new()).size();
    let all = ["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30", "10.0.0.0 - 10.0.0.3", "0.0.0.0/0"];
    assert_eq!(all.map(size), [1, 2, 2, 4, 4_294_967_294]);
    let excluded = ["10.0.0.1", "10.0.0.1", "10.0.0.0", "10.9.9.9"].map(|text| text.parse().unwrap());
    let pool = Pool::open("p", vec![range("10.0.0.0/29"), range("10.0.0.16-10.0.0.17")], excluded.to_vec());
    assert_eq!((pool.size(), pool.addresses().count()), (7, 7));
    let used = BTreeSet::from(["10.0.0.2", "10.0.0.3", "10.0.0.99"].map(|text| text.parse().unwrap()));
    let pins = BTreeSet::from(["10.0.0.3".parse().unwrap()]);
    assert_eq!(Pools::new(vec![pool]).usage(&used, &pins), [Usage { pool: "p".into(), size: 6, used: 1 }]);
}

proptest! {
    /// A range's networks have its addresses, each once.
    #[test]
    fn networks_of_a_range(first in any::<u32>(), length in 0u32..5_000) {
        let last = first.saturating_add(length);
        let networks = Range::Span(first.into(), last.into()).networks();
        let mut next = u64::from(first);
        for network in &networks {
            prop_assert_eq!(u64::from(u32::from(network.network())), next);
            next = u64::from(u32::from(network.broadcast())) + 1;
        }
        prop_assert_eq!(next, u64::from(last) + 1);
        prop_assert!(networks.len() <= 62);
    }
}
