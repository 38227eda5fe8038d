//! The register's decisions, one story each.

use super::*;

/// A cluster as a test has it.
#[derive(Default)]
struct Known {
    services: BTreeMap<VipKey, (String, i64)>,
    used: BTreeSet<VipKey>,
    is_keeper: bool,
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

    fn services(&self) -> Box<dyn Iterator<Item = (VipKey, i64)> + '_> {
        Box::new(self.services.iter().map(|(vip, (_, created))| (vip.clone(), *created)))
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

/// With two addresses, and nothing given out.
fn register() -> Register {
    let pool = Pool { cidr: "10.118.0.0/30".parse().unwrap(), exclude: Vec::new() };
    let mut register = Register::new(pool, BTreeSet::new());
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
    assert_eq!(register.steps(&cluster, now), [Step::Delete(at(1))]);
    // Pods that name their VIP may just be on their way.
    register.on_entry(at(1), None, now);
    cluster.used.clear();
    assert!(register.steps(&cluster, now).is_empty());
    assert_eq!(register.steps(&cluster, now + UNNEEDED), [Step::Delete(at(2))]);
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
    let pool = Pool { cidr: "10.118.0.0/30".parse().unwrap(), exclude: Vec::new() };
    let (mut register, cluster, now) = (Register::new(pool, BTreeSet::new()), known(&["a"]), Instant::now());
    register.on_order(Order::Ask(vip("a"), None), now);
    assert!(register.steps(&cluster, now).is_empty());
    register.on_list(BTreeMap::from([(at(2), entry("a"))]));
    assert_eq!(bound(&register.steps(&cluster, now)), [("a".to_owned(), IpAddr::from(at(2)))]);
}
