//! The registry as processes use it: side by side, and after crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::{AttachmentId, Backend, NetworkSpec, Source};

use proptest::strategy::Strategy;

use super::record::{Pod, SCHEMA};
use super::*;

/// A registry of its own, removed with it.
pub(super) struct Scratch(pub(super) Registry);

impl Scratch {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("viproute-registry-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let registry = Registry::for_daemon(std::env::temp_dir().join(name));
        registry.begin().unwrap();
        Self(registry)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.dir());
    }
}

fn key(name: &str) -> VipKey {
    VipKey::new("shop", name).unwrap()
}

fn attachment(n: u32) -> AttachmentId {
    AttachmentId { container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn attachment_record() -> AttachmentRecord {
    let netns = Netns { path: "/run/netns/x".into(), device: 4, inode: 7 };
    let network = NetworkSpec { name: "net".into(), ..NetworkSpec::default() };
    AttachmentRecord { vips: vec![key("web").into()], ..AttachmentRecord::new(network, netns) }
}

fn endpoint(n: u32, state: State) -> Endpoint {
    Endpoint {
        schema: SCHEMA,
        network: "net".into(),
        addresses: IpAddr::from([10, 1, 0, 1]).into(),
        backend: Backend::Local,
        node: [192, 0, 2, 1].into(),
        gateway: None,
        pod: Pod::default(),
        netns: "/run/netns/x".into(),
        device: "vip00000000000".into(),
        ifindex: Some(n),
        mac: None,
        nexthop: Some(n),
        netns_id: Some(n),
        ports: Vec::new(),
        source: Source::Annotation,
        udp_reply: false,
        place: None,
        node_source_address: None,
        udp_sticky: false,
        egress: crate::model::Egress::Answer.into(),
        state,
        health: None,
        drained: false,
        admitted: true,
        weight: 1,
        families: None,
        served: None,
        other: BTreeMap::new(),
    }
}

fn vip_record(slot: u32) -> VipRecord {
    VipRecord {
        schema: SCHEMA,
        key: "shop/web".into(),
        addresses: IpAddr::from([10, 118, 0, 7]).into(),
        slot,
        node: [192, 0, 2, 1].into(),
        group: crate::model::GroupSpec::default(),
        flow_owner: None,
        withdrawn: false,
        previous_addresses: Vec::new(),
        policy: crate::model::VipPolicy::default(),
        family: None,
        other: BTreeMap::new(),
    }
}

fn spoil(path: &Path, text: &str) {
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn ready(registry: &Registry) -> Vec<String> {
    let mut vip = registry.vip(&key("web")).unwrap();
    let ready = vip.replicas().unwrap().iter().filter(|(_, replica)| replica.state == State::Ready);
    ready.map(|(name, _)| name.clone()).collect()
}

fn index(registry: &Registry) -> PathBuf {
    registry.vips_dir().join("shop_web/index.json")
}

#[test]
fn the_index_says_what_the_endpoints_say() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.insert_pending("a", &endpoint(1, State::Pending)).unwrap();
    assert!(!vip.is_unused().unwrap());
    vip.write_endpoint("b", &endpoint(2, State::Ready)).unwrap();
    vip.write_endpoint("c", &endpoint(3, State::Ready)).unwrap();
    vip.write_endpoint("c", &endpoint(3, State::Draining)).unwrap();
    drop(vip);
    assert!(index(registry).exists());
    assert_eq!(ready(registry), ["b"]);
    std::fs::remove_file(index(registry)).unwrap();
    assert_eq!(ready(registry), ["b"], "without the index the endpoints are read");
}

#[test]
fn a_crash_in_a_change_leaves_no_index_that_lies() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.write_endpoint("a", &endpoint(1, State::Ready)).unwrap();
    drop(vip);
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.write_endpoint("b", &endpoint(2, State::Ready)).unwrap();
    // What another process finds if this one dies here: an index that says nothing.
    assert_eq!(std::fs::read_to_string(index(registry)).unwrap(), "");
    drop(vip);
    spoil(&index(registry), r#"{"schema":1,"rea"#);
    assert_eq!(ready(registry), ["a", "b"]);
}

/// What a holder of the lock needs to compare: nothing but its own changes where the kernel had all the rest.
#[test]
fn the_index_says_whether_the_kernel_had_it() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let change = |number: u8, reconciled: bool| {
        let mut vip = registry.vip(&key("web")).unwrap();
        vip.write_endpoint(&number.to_string(), &endpoint(number.into(), State::Ready)).unwrap();
        let known = vip.only_changed().unwrap();
        if reconciled {
            vip.reconciled();
        }
        known.map(|known| known.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(change(1, true), None, "there was no index");
    assert_eq!(change(2, true), Some(vec![2]));
    assert_eq!(change(3, false), Some(vec![3]));
    assert_eq!(change(4, true), None, "the kernel may lack the third");
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.remove_endpoint("4").unwrap();
    assert_eq!(vip.only_changed().unwrap(), Some([4].into()));
    vip.reconciled();
    vip.write_endpoint("5", &endpoint(5, State::Ready)).unwrap();
    drop(vip);
    assert_eq!(change(6, true), None, "the kernel may lack the fifth");
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.write_record(vip_record(1)).unwrap();
    assert_eq!(vip.only_changed().unwrap(), None, "another address, say");
    drop(vip);
    assert_eq!(change(7, true), None, "or one that a call was killed at");
    let text = std::fs::read_to_string(index(registry)).unwrap();
    let mut before: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(before.as_object_mut().unwrap().remove("reconciled"), Some(true.into()));
    spoil(&index(registry), &before.to_string());
    assert_eq!(change(8, true), None, "a version before doesn't say");
}

#[test]
fn a_damaged_endpoint_is_told_of_and_left_out() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.write_endpoint("a", &endpoint(1, State::Ready)).unwrap();
    drop(vip);
    std::fs::remove_file(index(registry)).unwrap();
    let path = registry.vips_dir().join("shop_web/endpoints/b.json");
    spoil(&path, r#"{"schema":1"#);
    let mut vip = registry.vip(&key("web")).unwrap();
    assert_eq!(vip.replicas().unwrap().len(), 1);
    let damage = vip.damage().unwrap();
    assert!(matches!(&damage[..], [Error::Torn { path: named, .. }] if *named == path), "{damage:?}");
    vip.remove_endpoint("b").unwrap();
    assert!(vip.damage().unwrap().is_empty());
}

#[test]
fn a_damaged_record_is_not_written_over() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    drop(registry.vip(&key("web")).unwrap());
    let path = registry.vips_dir().join("shop_web/vip.json");
    spoil(&path, r#"{"schema":9}"#);
    let mut vip = registry.vip(&key("web")).unwrap();
    assert!(vip.record.is_none());
    assert!(matches!(record(&mut vip, |_| true), Err(Error::Newer { schema: 9, .. })));
}

#[test]
fn unknown_fields_survive_a_rewrite() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let mut vip = registry.vip(&key("web")).unwrap();
    let mut text = serde_json::to_value(vip_record(1)).unwrap();
    text["later"] = serde_json::json!({"a": [1, 2.5]});
    let record: VipRecord = serde_json::from_value(text.clone()).unwrap();
    vip.write_record(record).unwrap();
    drop(vip);
    let read = registry.vip_record(&key("web")).unwrap().unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), text);
}

#[test]
fn an_attachment_is_claimed_once() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let first = registry.attach(&attachment(1), attachment_record()).unwrap();
    let second = registry.attach(&attachment(1), attachment_record());
    assert!(matches!(second, Err(Error::AlreadyAttached { .. })));
    first.remove().unwrap();
    registry.attach(&attachment(1), attachment_record()).unwrap();
    assert_eq!(registry.attachments().unwrap(), [attachment(1)]);
}

/// The lock is on the file that is replaced: a caller that waits for it, or tries, gets it with the last record and alone.
#[test]
fn a_record_is_replaced_under_its_lock() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    drop(registry.attach(&attachment(1), attachment_record()).unwrap());
    let (at_work, rounds) = (AtomicU32::new(0), 50_usize);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let at_work = &at_work;
            scope.spawn(move || {
                for round in 0..rounds {
                    let mut locked = match (round + n) % 2 {
                        0 => registry.attachment(&attachment(1)).unwrap().expect("a record"),
                        _ => loop {
                            match registry.try_attachment(&attachment(1)).unwrap() {
                                Attempt::Taken(locked) => break locked,
                                Attempt::Busy => std::thread::yield_now(),
                                Attempt::Absent => panic!("there is always a record"),
                            }
                        },
                    };
                    assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "the lock is exclusive");
                    let mut record = locked.record.as_ref().unwrap().clone();
                    record.vips.push(key("web").into());
                    locked.replace(registry, record).unwrap();
                    at_work.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let record = registry.attachment_record(&attachment(1)).unwrap().unwrap();
    assert_eq!(record.vips.len(), 1 + 4 * rounds, "no rewriting is lost");
    let locked = registry.attachment(&attachment(1)).unwrap().unwrap();
    locked.remove().unwrap();
    let left: Vec<_> = std::fs::read_dir(registry.attachments_dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn another_boots_state_is_discarded() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    drop(registry.attach(&attachment(1), attachment_record()).unwrap());
    drop(registry.vip(&key("web")).unwrap());
    spoil(&registry.dir().join("boot-id"), "00000000-0000-0000-0000-000000000000\n");
    assert_eq!(registry.begin().unwrap(), Boot::Discarded);
    assert_eq!(registry.begin().unwrap(), Boot::Same);
    assert!(registry.attachments().unwrap().is_empty() && registry.vips().unwrap().is_empty());
}

/// Records a VIP in a slot of which the kernel says whether it is free; the slot.
fn record(vip: &mut LockedVip, is_free: impl Fn(u32) -> bool) -> Result<u32> {
    vip.record_in_slot::<Error>(|slot| Ok(is_free(slot)), vip_record)?;
    Ok(vip.record.as_ref().unwrap().slot)
}

fn recorded(registry: &Registry, name: &str) -> u32 {
    record(&mut registry.vip(&key(name)).unwrap(), |_| true).unwrap()
}

#[test]
fn slots_are_handed_out_once() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let names: Vec<String> = (0..40).map(|n| format!("v{n}")).collect();
    let slots: BTreeSet<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || recorded(registry, name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(slots.len(), names.len());
    // One that has a slot keeps it.
    assert!(slots.contains(&recorded(registry, "v7")));
    assert_eq!(registry.vip_record(&key("v7")).unwrap().unwrap().slot, recorded(registry, "v7"));
}

/// What a record that can't be read has is known to the kernel alone; a later version's record is read as far as this.
#[test]
fn slots_of_damaged_and_newer_records_are_not_handed_out() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let (torn, newer) = (recorded(registry, "torn"), recorded(registry, "newer"));
    spoil(&registry.vips_dir().join("shop_torn/vip.json"), "{");
    spoil(&registry.vips_dir().join("shop_newer/vip.json"), &format!(r#"{{"schema":9,"slot":{newer}}}"#));
    spoil(&registry.dir().join("lock"), "1\n");
    let slot = record(&mut registry.vip(&key("web")).unwrap(), |slot| slot != torn).unwrap();
    assert!(slot != torn && slot != newer, "{slot} is not {torn}, {newer}");
}

#[test]
fn one_of_two_vips_in_one_slot_gets_another() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    for name in ["a", "b"] {
        registry.vip(&key(name)).unwrap().write_record(vip_record(5)).unwrap();
    }
    assert_eq!(registry.vip(&key("a")).unwrap().other_in_slot(5).unwrap(), Some(key("b")));
    assert_ne!(recorded(registry, "a"), 5);
    assert_eq!(recorded(registry, "b"), 5);
    assert_eq!(registry.vip(&key("b")).unwrap().other_in_slot(5).unwrap(), None);
}

/// What is noted of slots spares the reading of records, and is believed of no VIP but those it is about.
#[test]
fn among_many_vips_slots_are_noted() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let vip = |number: u32| registry.vip(&key(&format!("v{number}"))).unwrap();
    let noted = registry.dir().join("slots");
    let lock = registry.dir().join("lock");
    let slots: Vec<u32> = (0..40).map(|number| record(&mut vip(number), |_| true).unwrap()).collect();
    assert_eq!(slots.iter().collect::<BTreeSet<_>>().len(), slots.len());
    assert!(noted.exists());
    // Its record says nothing any more.
    spoil(&registry.vips_dir().join("shop_v7/vip.json"), r#"{"schema":1"#);
    spoil(&lock, &slots[7].to_string());
    assert!(!slots.contains(&record(&mut vip(40), |_| true).unwrap()));
    // Another directory than the one that is noted.
    std::fs::rename(registry.vips_dir().join("shop_v8"), registry.vips_dir().join(".away")).unwrap();
    drop(vip(8));
    spoil(&lock, &slots[8].to_string());
    assert_eq!(record(&mut vip(41), |_| true).unwrap(), slots[8]);
    // A VIP that is recorded anew in another slot, and one whose slot is free with it.
    spoil(&lock, "100");
    let other = record(&mut vip(8), |_| true).unwrap();
    assert_eq!(other, 100);
    spoil(&lock, "100");
    assert_ne!(record(&mut vip(42), |_| true).unwrap(), other);
    vip(9).remove().unwrap();
    spoil(&lock, &slots[9].to_string());
    assert_eq!(record(&mut vip(43), |_| true).unwrap(), slots[9]);
    // Not whole: the records say it.
    let whole = std::fs::read_to_string(&noted).unwrap();
    for text in ["", "0\n", &whole[..whole.len() / 2], &whole.replace(" 11 ", " 1111 ")] {
        assert_ne!(text, whole);
        spoil(&noted, text);
        spoil(&lock, &slots[10].to_string());
        let mut again = vip(44);
        assert!(!slots[10..].contains(&record(&mut again, |_| true).unwrap()), "{text:?}");
        again.remove().unwrap();
    }
    // Beside a few nothing is noted.
    (12..44).for_each(|number| vip(number).remove().unwrap());
    record(&mut vip(45), |_| true).unwrap();
    assert!(!noted.exists());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever the lock file says, and whichever VIPs there are: each has a slot of its own.
    #[test]
    fn any_lock_file_and_any_vips_give_distinct_slots(
        text in proptest::prop_oneof![
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            proptest::prelude::any::<u32>().prop_map(|number| number.to_string().into_bytes()),
            (0_u32..12).prop_map(|number| format!("{number}\n").into_bytes()),
        ],
        live in proptest::collection::btree_set(1_u32..10, 0..6),
        in_the_kernel in proptest::collection::btree_set(1_u32..10, 0..6),
    ) {
        let scratch = Scratch::new();
        let registry = &scratch.0;
        for slot in &live {
            registry.vip(&key(&format!("live{slot}"))).unwrap().write_record(vip_record(*slot)).unwrap();
        }
        std::fs::File::create(registry.dir().join("lock")).unwrap().write_all(&text).unwrap();
        let mut taken = live;
        for name in ["x", "y", "z"] {
            let mut vip = registry.vip(&key(name)).unwrap();
            let slot = record(&mut vip, |slot| !in_the_kernel.contains(&slot)).unwrap();
            assert!(slot > 0 && slot < 1 << 24 && !in_the_kernel.contains(&slot), "{slot}");
            assert!(taken.insert(slot), "{slot} is taken");
        }
    }
}

#[test]
fn who_gets_the_lock_makes_all_changes_that_wait() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.write_record(vip_record(1)).unwrap();
    for (number, name) in [(1, "a"), (2, "b"), (3, "c")] {
        vip.write_endpoint(name, &endpoint(number, State::Ready)).unwrap();
    }
    drop(vip);
    let served = vec![IpAddr::from([10, 118, 0, 7])];
    assert!(registry.hand_in(&key("web"), "a", &Intent::Leave));
    assert!(registry.hand_in(&key("web"), "b", &Intent::Leave));
    assert!(registry.hand_in(&key("web"), "d", &Intent::Join(&endpoint(4, State::Ready), served.clone())));
    // The address it was given is not the VIP's any more: its own ADD finds that out.
    assert!(registry.hand_in(&key("web"), "e", &Intent::Join(&endpoint(5, State::Ready), Vec::new())));
    let mut vip = registry.vip(&key("web")).unwrap();
    assert!(vip.has_intent("b") && vip.has_intent("d"));
    vip.carry_out_intents().unwrap();
    assert_eq!(vip.removed(), [1, 2]);
    drop(vip);
    assert_eq!(ready(registry), ["c", "d"]);
    // The kernel doesn't have them yet: the next one records them once more.
    let mut vip = registry.vip(&key("web")).unwrap();
    assert!(vip.has_intent("a"));
    vip.carry_out_intents().unwrap();
    vip.intents_done();
    drop(vip);
    let vip = registry.vip(&key("web")).unwrap();
    assert!(!vip.has_intent("a") && vip.has_intent("e"), "that of e waits for its own ADD");
    drop(vip);
    assert_eq!(ready(registry), ["c", "d"]);
}

/// A free lock is taken: nothing is handed in, and what a killed call of the same attachment has left is done with.
#[test]
fn changes_are_handed_in_where_the_lock_is_held() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let none = registry.vip_for(&key("web"), "a", &Intent::Leave).unwrap();
    assert!(matches!(none, Turn::Absent), "{none:?}");
    drop(registry.vip(&key("web")).unwrap().write_record(vip_record(1)));
    let joining = endpoint(1, State::Ready);
    assert!(registry.hand_in(&key("web"), "a", &Intent::Join(&joining, vec![IpAddr::from([10, 118, 0, 7])])));
    let Turn::Taken(mut vip) = registry.vip_for(&key("web"), "a", &Intent::Leave).unwrap() else {
        panic!("its lock is free");
    };
    assert!(!vip.has_intent("a"));
    vip.carry_out_intents().unwrap();
    assert_eq!(vip.names().unwrap(), Vec::<String>::new());
    // One of them is made by the holder, the other one is not: that address isn't the VIP's.
    let other = Intent::Join(&joining, Vec::new());
    std::thread::scope(|scope| {
        let made = scope.spawn(|| registry.vip_for(&key("web"), "b", &Intent::Leave).unwrap());
        let not_made = scope.spawn(|| registry.vip_for(&key("web"), "c", &other).unwrap());
        while !vip.has_intent("b") || !vip.has_intent("c") {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        vip.carry_out_intents().unwrap();
        vip.reconciled();
        assert!(matches!(made.join().unwrap(), Turn::Needless), "while the lock is held");
        drop(vip);
        assert!(matches!(not_made.join().unwrap(), Turn::Taken(_)));
    });
}

#[test]
fn a_change_that_is_made_twice_takes_no_verdict_back() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    drop(registry.vip(&key("web")).unwrap().write_record(vip_record(1)));
    let joining = endpoint(1, State::Pending);
    assert!(registry.hand_in(&key("web"), "a", &Intent::Join(&joining, vec![IpAddr::from([10, 118, 0, 7])])));
    let mut vip = registry.vip(&key("web")).unwrap();
    vip.carry_out_intents().unwrap();
    vip.write_endpoint("a", &endpoint(1, State::Ready)).unwrap();
    // The kernel refused it, so the intent is still there; and the ADD comes to its own turn.
    vip.carry_out_intents().unwrap();
    vip.join("a", &joining).unwrap();
    drop(vip);
    assert_eq!(ready(registry), ["a"]);
}

#[test]
fn the_last_word_of_an_attachment_counts() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    assert!(!registry.hand_in(&key("none"), "a", &Intent::Leave));
    assert!(registry.vips().unwrap().is_empty(), "an intent makes no VIP");
    drop(registry.vip(&key("web")).unwrap().write_record(vip_record(1)));
    let served = vec![IpAddr::from([10, 118, 0, 7])];
    let joining = endpoint(1, State::Ready);
    for (intent, expected) in [
        (Intent::Join(&joining, served.clone()), vec!["a".to_owned()]),
        (Intent::Leave, Vec::new()),
        (Intent::Join(&joining, served.clone()), vec!["a".to_owned()]),
    ] {
        assert!(registry.hand_in(&key("web"), "a", &intent));
        let mut vip = registry.vip(&key("web")).unwrap();
        assert!(vip.has_intent("a"));
        vip.carry_out_intents().unwrap();
        drop(vip);
        assert_eq!(ready(registry), expected);
    }
}

#[test]
fn a_namespace_that_cannot_be_looked_at_is_not_taken_for_gone() {
    let scratch = Scratch::new();
    let at = |name: &str| scratch.0.dir().join(name);
    let netns = |path: PathBuf| record::Netns { path, device: 4, inode: 1 };
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    assert!(netns(at("loop")).is_still_there(), "who knows");
    assert!(!netns(at("missing")).is_still_there());
    assert!(!netns(at("boot-id/below")).is_still_there());
    assert!(!netns(at("boot-id")).is_still_there(), "another one");
}
