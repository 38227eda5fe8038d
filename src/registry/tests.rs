//! The registry as processes use it: side by side, and after crashes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::record::{Former, Pod, SCHEMA};
use super::*;
use crate::cni::env::Attachment;

/// A registry of its own, removed with it.
struct Scratch(Registry);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("viproute-registry-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let registry = Registry::new(std::env::temp_dir().join(name));
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

fn attachment(n: u32) -> Attachment {
    Attachment { container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn attachment_record() -> AttachmentRecord {
    AttachmentRecord {
        schema: SCHEMA,
        network: "net".into(),
        vips: vec!["shop/web".into()],
        netns: Netns { path: "/run/netns/x".into(), device: 4, inode: 7 },
        mtu: None,
        former: Former { arp_ignore: 0, arp_announce: 0 },
        other: BTreeMap::new(),
    }
}

fn endpoint(n: u32, state: State) -> Endpoint {
    Endpoint {
        schema: SCHEMA,
        network: "net".into(),
        address: [10, 1, 0, 1].into(),
        node: [192, 0, 2, 1].into(),
        gateway: None,
        pod: Pod::default(),
        netns: "/run/netns/x".into(),
        device: "vip00000000000".into(),
        ifindex: Some(n),
        mac: String::new(),
        nexthop: Some(n),
        netns_id: Some(n),
        ports: Vec::new(),
        udp_reply: false,
        asked_from: None,
        udp_sticky: false,
        state,
        health: None,
        drained: false,
        weight: 1,
        other: BTreeMap::new(),
    }
}

fn vip_record(slot: u32) -> VipRecord {
    VipRecord {
        schema: SCHEMA,
        key: "shop/web".into(),
        address: [10, 118, 0, 7].into(),
        slot,
        node: [192, 0, 2, 1].into(),
        group: crate::cni::config::Group::default(),
        flow_owner: None,
        withdrawn: false,
        former: Vec::new(),
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
    vip.enrol("a", &endpoint(1, State::Pending)).unwrap();
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
    assert!(matches!(vip.slot(), Err(Error::Newer { schema: 9, .. })));
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

#[test]
fn slots_are_handed_out_once() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let names: Vec<String> = (0..40).map(|n| format!("v{n}")).collect();
    let slots: Vec<u32> = std::thread::scope(|scope| {
        let take = |name: &str| {
            let mut vip = registry.vip(&key(name)).unwrap();
            let slot = vip.slot().unwrap();
            vip.write_record(vip_record(slot)).unwrap();
            slot
        };
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || take(name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let distinct: std::collections::BTreeSet<_> = slots.iter().collect();
    assert_eq!(distinct.len(), slots.len());
    spoil(&registry.dir().join("lock"), "nonsense");
    let slot = registry.vip(&key("late")).unwrap().slot().unwrap();
    assert!(!slots.contains(&slot), "with a lock file that can't be read the VIPs are asked");
}

/// Joining and leaving at random, a VIP's directory vanishing with its last endpoint: nobody ever works in a directory
/// that is being removed, and what is left at the end is right.
#[test]
fn a_vip_that_comes_and_goes_loses_nobody() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                let name = format!("e{n}");
                for round in 0..60 {
                    let mut vip = registry.vip(&key("web")).unwrap();
                    vip.write_endpoint(&name, &endpoint(n, State::Ready)).unwrap();
                    drop(vip);
                    if round == 59 && n % 2 == 0 {
                        break;
                    }
                    let mut vip = registry.vip_if_present(&key("web")).unwrap().expect("it has our endpoint");
                    assert!(vip.replicas().unwrap().contains_key(&name));
                    vip.remove_endpoint(&name).unwrap();
                    if vip.is_unused().unwrap() {
                        vip.remove().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(ready(registry), ["e0", "e2", "e4", "e6"]);
    registry.sweep_removed_vips().unwrap();
    let left: Vec<_> = std::fs::read_dir(registry.vips_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["shop_web"]);
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let scratch = Scratch::new();
    let registry = &scratch.0;
    let target = registry.dir().join("elsewhere");
    spoil(&target, r#"{"schema":1}"#);
    drop(registry.vip(&key("web")).unwrap());
    std::os::unix::fs::symlink(&target, registry.vips_dir().join("shop_web/vip.json")).unwrap();
    assert!(matches!(registry.vip_record(&key("web")), Err(Error::Io { .. })));
}
