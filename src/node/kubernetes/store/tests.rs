//! When what is heard counts.

use super::*;
use proptest::prelude::*;

fn service(uid: &str) -> Service {
    Service { uid: uid.into(), ..Service::default() }
}

fn slice() -> Slice {
    Slice {
        service: String::new(),
        ports: Vec::new(),
        here: Vec::new(),
        ready_elsewhere: false,
        serving_elsewhere: false,
        hints: super::super::zones::Hints::default(),
        has_foreign: false,
        api_servers: Vec::new(),
    }
}

fn services(names: &[&str]) -> Heard {
    Heard::Services(Box::new(Change::All(names.iter().map(|name| ((*name).to_owned(), service(name))).collect())))
}

fn cluster(uid: &str) -> Heard {
    Heard::Cluster { uid: uid.into(), has_api: true }
}

fn others(store: &mut Store) -> bool {
    let slices = store.hear(Heard::Slices(Change::All(BTreeMap::new())));
    let pods = store.hear(Heard::Pods(Change::All(BTreeMap::new())))
        | store.hear(Heard::Policies(Change::All(BTreeMap::new())));
    store.hear(Heard::Nodes(Change::All(BTreeMap::new()))) || slices || pods
}

fn remembered() -> Objects {
    Objects { services: BTreeMap::from([("shop/old".to_owned(), service("old"))]), ..Objects::default() }
}

#[test]
fn what_is_known_stays_until_every_list_is_whole() {
    let mut store = Store::new(Some("c1".into()), remembered());
    assert!(!store.hear(cluster("c1")) && !store.hear(services(&["shop/web"])));
    assert!(store.objects().services.contains_key("shop/old") && !store.is_live());
    assert!(others(&mut store), "now it is whole");
    assert!(store.is_live());
    assert_eq!(store.objects().services.keys().collect::<Vec<_>>(), ["shop/web"]);
    assert!(store.hear(Heard::Services(Box::new(Change::One("shop/web".into(), None)))), "what the watch says, counts");
    assert!(!store.hear(Heard::Services(Box::new(Change::One("shop/web".into(), None)))), "once");
    // A watch that fails takes nothing away.
    store.hear(Heard::Failed(Kind::Pods, "no route to host".into()));
    assert!(store.is_live());
    let problem = store.problem().unwrap();
    assert!(problem.starts_with("Kubernetes' pods can't be watched: no route to host"), "{problem}");
    store.hear(Heard::Pods(Change::All(BTreeMap::new())));
    assert_eq!(store.problem(), None);
}

#[test]
fn another_cluster_changes_nothing() {
    let mut store = Store::new(Some("c1".into()), remembered());
    store.hear(cluster("c2"));
    store.hear(services(&[]));
    others(&mut store);
    assert!(store.objects().services.contains_key("shop/old") && !store.is_live() && store.is_held());
    assert!(store.problem().unwrap().contains("another cluster's"));
    // The right one is back, and says everything anew.
    store.restart();
    store.hear(cluster("c1"));
    assert!(!store.hear(services(&["shop/web"])));
    assert!(others(&mut store) && store.is_live() && store.problem().is_none());
    // And is gone again, under a running viprouted.
    store.hear(cluster("c3"));
    assert!(!store.hear(services(&[])));
    assert!(store.objects().services.contains_key("shop/web"));
}

#[test]
fn an_api_that_is_suddenly_empty_changes_nothing() {
    let mut store = Store::new(None, Objects::default());
    store.hear(cluster("c1"));
    store.hear(services(&["shop/web"]));
    others(&mut store);
    store.hear(Heard::Cluster { uid: "c1".into(), has_api: false });
    assert!(!store.hear(services(&[])));
    assert!(store.objects().services.contains_key("shop/web") && store.is_held());
    // Its last Service is gone, and the API's own is there: that is the truth.
    store.restart();
    store.hear(cluster("c1"));
    assert!(!store.hear(services(&[])));
    assert!(others(&mut store) && store.objects().services.is_empty());
}

#[test]
fn a_restart_of_the_watches_waits_for_whole_lists_again() {
    let mut store = Store::new(None, Objects::default());
    store.hear(cluster("c1"));
    store.hear(services(&["shop/web"]));
    others(&mut store);
    store.restart();
    assert!(!store.hear(services(&[])) && store.objects().services.contains_key("shop/web"));
    assert!(others(&mut store) && store.objects().services.is_empty());
}

#[test]
fn there_is_an_end_to_what_is_kept() {
    let mut known = BTreeMap::new();
    assert!(Taken::of(&mut known, Change::All(BTreeMap::from([("a".into(), 1), ("b".into(), 2)])), 1).is_full);
    assert_eq!(known, BTreeMap::from([("a".to_owned(), 1)]));
    let another = Taken::of(&mut known, Change::One("c".into(), Some(3)), 1);
    assert!(another.is_full && !another.is_other);
    assert!(Taken::of(&mut known, Change::One("a".into(), Some(3)), 1).is_other, "one that is known follows");
}

proptest! {
    /// In whatever order a kind's changes come between the lists, the last word on each object counts.
    #[test]
    fn the_last_word_counts(words in proptest::collection::vec((0u8..4, proptest::option::of(0u8..3)), 0..20)) {
        let mut store = Store::new(None, Objects::default());
        let mut wanted = BTreeMap::new();
        let (before, after) = words.split_at(words.len() / 2);
        let one = |(name, uid): &(u8, Option<u8>)| {
            let service = uid.map(|uid| service(&format!("u{uid}")));
            (format!("shop/s{name}"), service)
        };
        store.hear(cluster("c1"));
        store.hear(services(&[]));
        for word in before {
            let (key, service) = one(word);
            match &service { Some(service) => wanted.insert(key.clone(), service.clone()), None => wanted.remove(&key) };
            store.hear(Heard::Services(Box::new(Change::One(key, service))));
        }
        others(&mut store);
        for word in after {
            let (key, service) = one(word);
            let before = wanted.clone();
            match &service { Some(service) => wanted.insert(key.clone(), service.clone()), None => wanted.remove(&key) };
            let changed = store.hear(Heard::Services(Box::new(Change::One(key, service))));
            prop_assert_eq!(changed, before != wanted);
        }
        prop_assert_eq!(&store.objects().services, &wanted);
    }
}

/// Where an API is empty of a sudden, or another's, any kind may be listed first.
#[test]
fn no_list_of_another_cluster_counts_whichever_comes_first() {
    let mut store = Store::new(None, Objects::default());
    store.hear(cluster("c1"));
    store.hear(services(&["shop/web"]));
    let slices = BTreeMap::from([("shop/web-1".to_owned(), Slice { service: "shop/web".into(), ..slice() })]);
    store.hear(Heard::Slices(Change::All(slices.clone())));
    store.hear(Heard::Pods(Change::All(BTreeMap::new())));
    store.hear(Heard::Policies(Change::All(BTreeMap::new())));
    assert!(store.hear(Heard::Nodes(Change::All(BTreeMap::new()))));
    store.hear(Heard::Cluster { uid: "c1".into(), has_api: false });
    assert!(!store.hear(Heard::Slices(Change::All(BTreeMap::new()))) && !store.is_live());
    assert_eq!(store.objects().slices, slices);
    // The right one is back: what was heard meanwhile is heard anew first.
    store.hear(cluster("c1"));
    assert!(!store.hear(services(&["shop/web"])) && store.is_held());
    store.restart();
    for heard in [
        services(&["shop/web"]),
        Heard::Slices(Change::All(slices.clone())),
        Heard::Pods(Change::All(BTreeMap::new())),
        Heard::Policies(Change::All(BTreeMap::new())),
    ] {
        store.hear(cluster("c1"));
        assert!(!store.hear(heard));
    }
    assert!(store.hear(Heard::Nodes(Change::All(BTreeMap::new()))) && store.is_live());
    assert_eq!(store.objects().slices, slices);
}
