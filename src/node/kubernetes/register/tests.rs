//! The register's decisions, one story each.

use super::*;
use crate::lease::pools::Pool;

mod asked;
mod several;

/// A cluster as a test has it.
#[derive(Default)]
struct Known {
    services: BTreeMap<VipKey, (String, i64)>,
    used: BTreeSet<VipKey>,
    stated: BTreeMap<VipKey, Ipv4Addr>,
    is_keeper: bool,
    /// The pools that Services name.
    named: BTreeMap<VipKey, String>,
    /// The addresses that they ask for.
    asked: BTreeMap<VipKey, Ipv4Addr>,
}

impl Cluster for Known {
    fn service(&self, vip: &VipKey) -> Option<(&str, i64)> {
        self.services.get(vip).map(|(uid, created)| (uid.as_str(), *created))
    }

    fn is_keeper(&self, _: &VipKey) -> bool {
        self.is_keeper
    }

    fn is_used(&self, vip: &VipKey) -> bool {
        self.used.contains(vip)
    }

    fn wish<'a>(&'a self, vip: &'a VipKey) -> Wish<'a> {
        let (pool, address) = (self.named.get(vip).map(String::as_str), self.asked.get(vip).copied());
        Wish { pool, address, ..Wish::of(vip) }
    }

    fn services(&self) -> Box<dyn Iterator<Item = Claimant> + '_> {
        let claimant = |(vip, (_, created)): (&VipKey, &(String, i64))| Claimant {
            created: *created,
            vip: vip.clone(),
            stated: self.stated.get(vip).copied(),
        };
        Box::new(self.services.iter().map(claimant))
    }
}

fn vip(name: &str) -> VipKey {
    format!("shop/{name}").parse().unwrap()
}

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 118, 0, last)
}

fn entry(name: &str) -> Entry {
    Entry { vip: vip(name), service: Some(format!("uid-{name}")) }
}

/// Services of these names, the first the oldest.
fn known(names: &[&str]) -> Known {
    let services = (0..).zip(names).map(|(at, name)| (vip(name), (format!("uid-{name}"), at)));
    Known { services: services.collect(), is_keeper: true, ..Known::default() }
}

fn one(network: &str) -> Pools {
    Pools::new(vec![Pool::open("default", vec![network.parse().unwrap()], Vec::new())])
}

/// With two addresses, and nothing given out.
fn register() -> Register {
    let pool = one("10.118.0.0/30");
    let mut register = Register::new(pool, BTreeMap::new());
    register.on_list(BTreeMap::new());
    register
}

fn bound(steps: &[Step]) -> Vec<(String, IpAddr)> {
    let of = |step: &Step| match step {
        Step::Report(vip, News::Bound(lease)) => Some((vip.name().to_owned(), lease.address)),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn created(steps: &[Step]) -> Vec<(String, Ipv4Addr)> {
    let of = |step: &Step| match step {
        Step::Create(address, entry) => Some((entry.vip.name().to_owned(), *address)),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn conflicts(steps: &[Step]) -> Vec<(String, String)> {
    let of = |step: &Step| match step {
        Step::Conflict(vip, why) => Some((vip.name().to_owned(), why.clone())),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

#[test]
fn a_keeper_makes_the_lowest_free_address_and_takes_the_next_where_another_was_faster() {
    let (mut register, cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_order(Order::Ask(vip("a"), None), now);
    assert_eq!(created(&register.steps(&cluster, now)), [("a".to_owned(), at(1))]);
    assert!(register.steps(&cluster, now).is_empty(), "it is being made");
    assert_eq!(register.on_made(at(1), entry("a"), Answer::Taken, now), None);
    assert_eq!(created(&register.steps(&cluster, now)), [("a".to_owned(), at(2))]);
    register.on_made(at(2), entry("a"), Answer::Made, now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
}

#[test]
fn who_is_no_keeper_takes_what_the_keeper_made() {
    let (mut register, mut cluster, now) = (register(), known(&["a"]), Instant::now());
    cluster.is_keeper = false;
    register.on_order(Order::Ask(vip("a"), Some(at(2).into())), now);
    assert!(register.steps(&cluster, now).is_empty());
    register.on_entry(at(1), Some(entry("a")), now);
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(1)))]);
    // Whose keeper does nothing is served all the same.
    register.on_order(Order::Ask(vip("b"), None), now);
    assert!(register.steps(&cluster, now + Duration::from_secs(3)).is_empty());
    assert_eq!(created(&register.steps(&cluster, now + WITHOUT_KEEPER)), [("b".to_owned(), at(2))]);
}

#[test]
fn who_has_waited_longest_is_first() {
    let (mut register, cluster, now) = (register(), known(&["z", "y", "x"]), Instant::now());
    register.on_entry(at(1), Some(entry("other")), now);
    for name in ["x", "y", "z"] {
        register.on_order(Order::Ask(vip(name), None), now);
    }
    assert_eq!(created(&register.steps(&cluster, now)), [("z".to_owned(), at(2))]);
    register.on_made(at(2), entry("z"), Answer::Made, now);
    assert!(created(&register.steps(&cluster, now)).is_empty(), "none is free");
    register.on_entry(at(1), None, now);
    register.on_taken_back(at(1), &entry("other"), true, now);
    assert_eq!(created(&register.steps(&cluster, now)), [("y".to_owned(), at(1))], "at once");
}

#[test]
fn a_service_that_is_gone_gives_its_address_back_at_once() {
    let (mut register, mut cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_entry(at(1), Some(entry("a")), now);
    register.on_entry(at(2), Some(Entry { vip: vip("pods"), service: None }), now);
    cluster.used.insert(vip("pods"));
    assert!(register.steps(&cluster, now).is_empty());
    cluster.services.clear();
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1), entry("a"))]);
    // Pods that name their VIP may just be on their way.
    register.on_entry(at(1), None, now);
    cluster.used.clear();
    assert!(register.steps(&cluster, now).is_empty());
    assert_eq!(
        register.steps(&cluster, now + UNNEEDED),
        [Step::Delete(at(2), Entry { vip: vip("pods"), service: None })]
    );
}

/// A deletion that is repeated, or comes late, must not be the next one's who gets the address.
#[test]
fn an_address_is_taken_back_once_and_given_out_when_that_is_done() {
    let (mut register, mut cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_entry(at(1), Some(entry("a")), now);
    cluster.services.clear();
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1), entry("a"))]);
    assert!(register.steps(&cluster, now).is_empty(), "it is under way");
    register.on_order(Order::Ask(vip("b"), None), now);
    cluster.services.insert(vip("b"), ("uid-b".into(), 9));
    register.on_entry(at(1), None, now);
    assert_eq!(created(&register.steps(&cluster, now)), [("b".to_owned(), at(2))], "the other one is not free yet");
    register.on_made(at(2), entry("b"), Answer::Made, now);
    register.on_taken_back(at(1), &entry("a"), true, now);
    register.on_order(Order::Ask(vip("c"), None), now);
    cluster.services.insert(vip("c"), ("uid-c".into(), 10));
    assert_eq!(created(&register.steps(&cluster, now)), [("c".to_owned(), at(1))]);
    // What could not be deleted is tried again, and what was gone already is known to be.
    cluster.services.remove(&vip("c"));
    register.on_order(Order::Stop(vip("c")), now);
    register.on_made(at(1), entry("c"), Answer::Made, now);
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1), entry("c"))]);
    register.on_taken_back(at(1), &entry("c"), false, now);
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1), entry("c"))]);
    register.on_taken_back(at(1), &entry("c"), true, now);
    register.on_order(Order::Ask(vip("d"), None), now);
    cluster.services.insert(vip("d"), ("uid-d".into(), 11));
    assert_eq!(created(&register.steps(&cluster, now)), [("d".to_owned(), at(1))]);
}

#[test]
fn an_address_outlives_the_service_that_it_was_given_out_for() {
    let (mut register, mut cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_entry(at(1), Some(entry("a")), now);
    // Another one has the VIP by now.
    cluster.services.insert(vip("a"), ("uid-other".into(), 7));
    assert!(register.steps(&cluster, now).is_empty());
    cluster.services.clear();
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1), entry("a"))]);
}

#[test]
fn an_address_in_conflict_is_left_and_given_back() {
    let (mut register, cluster, now) = (register(), known(&["a"]), Instant::now());
    register.on_order(Order::Ask(vip("a"), None), now);
    register.steps(&cluster, now);
    register.on_made(at(1), entry("a"), Answer::Made, now);
    register.steps(&cluster, now);
    register.on_order(Order::Another(vip("a")), now);
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("a".to_owned(), at(2))], "{steps:?}");
}

#[test]
fn nothing_is_made_before_everything_is_known() {
    let pool = one("10.118.0.0/30");
    let (mut register, cluster, now) = (Register::new(pool, BTreeMap::new()), known(&["a"]), Instant::now());
    register.on_order(Order::Ask(vip("a"), None), now);
    assert!(register.steps(&cluster, now).is_empty());
    register.on_list(BTreeMap::from([(at(2), entry("a"))]));
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
}

/// The register was lost: what statuses say is adopted before anyone who waits gets an address, however old.
#[test]
fn addresses_that_only_statuses_say_are_adopted_first() {
    let (mut register, mut cluster, now) = (register(), known(&["old", "served", "late"]), Instant::now());
    cluster.stated.insert(vip("served"), at(1));
    for name in ["old", "late"] {
        register.on_order(Order::Ask(vip(name), Some(at(1).into())), now);
    }
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("old".to_owned(), at(2))], "the other address is spoken for, whoever its keeper is");
    register.on_order(Order::Ask(vip("served"), None), now);
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("served".to_owned(), at(1))]);
    assert!(conflicts(&steps).is_empty(), "{steps:?}");
}

/// Of two Services that say one address the older one keeps it, and the other is told.
#[test]
fn the_older_keeps_an_address_that_two_say() {
    let (mut register, mut cluster, now) = (register(), known(&["z", "a"]), Instant::now());
    for name in ["a", "z"] {
        cluster.stated.insert(vip(name), at(2));
        register.on_order(Order::Ask(vip(name), Some(at(2).into())), now);
    }
    let steps = register.steps(&cluster, now);
    assert_eq!(created(&steps), [("z".to_owned(), at(2)), ("a".to_owned(), at(1))]);
    let [(name, why)] = &conflicts(&steps)[..] else { panic!("{steps:?}") };
    assert!(name == "a" && why.contains("10.118.0.2, is shop/z's"), "{name}: {why}");
}

/// What a register says goes before statuses; an address that something else has, or that isn't the pool's, can't be kept.
#[test]
fn an_address_that_cant_be_adopted_is_named() {
    let now = Instant::now();
    let outside = Ipv4Addr::new(192, 0, 2, 7);
    for (stated, given, words) in [
        (at(1), Some(Some(entry("other"))), "shop/other's"),
        (at(1), Some(None), "used by something else"),
        (outside, None, "isn't of pool default (10.118.0.0/30)"),
    ] {
        let (mut register, mut cluster) = (register(), known(&["a", "other"]));
        cluster.stated.insert(vip("a"), stated);
        if let Some(given) = given {
            register.given.insert(stated, given);
        }
        register.on_order(Order::Ask(vip("a"), Some(stated.into())), now);
        let steps = register.steps(&cluster, now);
        assert_eq!(created(&steps).len(), 1, "{steps:?}");
        assert!(conflicts(&steps)[0].1.contains(words), "{steps:?}");
    }
}

/// An address by the configuration isn't waited for.
#[test]
fn a_pinned_service_holds_up_no_other() {
    let pool = one("10.118.0.0/30");
    let (cluster, now) = (known(&["pinned", "a"]), Instant::now());
    let mut register = Register::new(pool, BTreeMap::from([(vip("pinned"), at(1).into())]));
    register.on_list(BTreeMap::new());
    register.on_order(Order::Ask(vip("a"), None), now);
    assert_eq!(created(&register.steps(&cluster, now)), [("a".to_owned(), at(2))]);
}

/// An API that doesn't know such objects (Kubernetes 1.32 and before).
#[test]
fn who_waits_is_told_that_the_register_cant_be_read() {
    let pool = one("10.118.0.0/30");
    let (mut register, cluster, now) = (Register::new(pool, BTreeMap::new()), known(&["a"]), Instant::now());
    register.on_order(Order::Ask(vip("a"), None), now);
    register.on_failed("the server could not find the requested resource (404)");
    let [Step::Report(_, News::Trouble { why, .. })] = &register.steps(&cluster, now)[..] else { panic!() };
    assert!(why.ends_with("can't be read: the server could not find the requested resource (404)"), "{why}");
    assert!(register.steps(&cluster, now).is_empty(), "once in a while");
    register.on_list(BTreeMap::new());
    assert_eq!(created(&register.steps(&cluster, now + AGAIN)), [("a".to_owned(), at(1))]);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    proptest! {
        /// Whatever statuses say: no address goes to two, an address that a status says goes to nobody else while one that says it has none,
        /// and who says nothing gets one in order of age.
        #[test]
        fn adoption_takes_nothing_from_anybody(
            stated in proptest::collection::vec(proptest::option::of(1u8..6), NAMES.len()),
            asked in proptest::collection::vec(any::<bool>(), NAMES.len()),
        ) {
            let pool = one("10.118.0.0/29");
            let mut register = Register::new(pool, BTreeMap::new());
            register.on_list(BTreeMap::new());
            let (mut cluster, now) = (known(&NAMES), Instant::now());
            for (name, stated) in NAMES.iter().zip(&stated) {
                cluster.stated.extend(stated.map(|last| (vip(name), at(last))));
            }
            for (name, _) in NAMES.iter().zip(&asked).filter(|(_, asked)| **asked) {
                register.on_order(Order::Ask(vip(name), None), now);
            }
            let made = created(&register.steps(&cluster, now));
            let addresses: BTreeSet<_> = made.iter().map(|(_, address)| *address).collect();
            prop_assert_eq!(addresses.len(), made.len());
            for (name, address) in &made {
                let first = NAMES.iter().find(|other| cluster.stated.get(&vip(other)) == Some(address));
                prop_assert!(first.is_none_or(|first| *first == name), "{name} has {address}, which {first:?} says");
            }
            let is_adopted = |name: &&str| cluster.stated.get(&vip(name)).is_some_and(|address| {
                NAMES.iter().find(|other| cluster.stated.get(&vip(other)) == Some(address)) == Some(name)
            });
            for name in NAMES.iter().zip(&asked).filter(|(name, asked)| **asked && is_adopted(name)).map(|(name, _)| name) {
                prop_assert!(made.contains(&((*name).to_owned(), cluster.stated[&vip(name)])), "{name}");
            }
        }
    }
}
