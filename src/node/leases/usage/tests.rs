//! A registry that changes under the watcher's eyes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::registry::watch::{self, Follower, Watch};
use tokio::sync::mpsc;

/// A registry of its own for each test, removed with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("viproute-watch-{name}-{}", std::process::id())))
    }

    fn registry(&self) -> Registry {
        Registry::new(&self.0)
    }

    fn vip(&self, name: &str) -> PathBuf {
        self.0.join("vips").join(name)
    }

    fn record(&self, name: &str, withdrawn: bool) {
        fs::create_dir_all(self.vip(name).join("endpoints")).unwrap();
        let text = format!(
            r#"{{"schema":1,"key":"a/b","address":"10.118.0.7","slot":1,"node":"192.0.2.1","withdrawn":{withdrawn},
                "group":{{"buckets":1024,"idleTimer":1,"unbalancedTimer":10}}}}"#
        );
        replace(&self.vip(name).join("vip.json"), &text);
    }

    fn endpoint(&self, name: &str, container: &str, state: &str) {
        let text = format!(
            r#"{{"schema":1,"network":"n","address":"10.1.0.5","node":"192.0.2.1","gateway":null,
                "pod":{{"namespace":"","name":"","uid":""}},"netns":"/x","device":"vip0","ifindex":3,"mac":"",
                "nexthop":1,"ports":[],"state":"{state}","weight":1}}"#
        );
        replace(&self.vip(name).join("endpoints").join(format!("{container}@eth0.json")), &text);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// As the registry writes.
fn replace(path: &Path, text: &str) {
    let temporary = path.with_file_name(".new.tmp");
    fs::File::create(&temporary).unwrap().write_all(text.as_bytes()).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// Batches as the leases' loop gets them, from a watcher on a thread of its own.
fn start(registry: Registry) -> mpsc::UnboundedReceiver<Batch> {
    let (watch, (sender, batches)) = (Watch::default(), mpsc::unbounded_channel());
    watch.subscribe(move |update| sender.send(Batch::of(&update)).is_ok());
    let nothing_else = Follower { dirs: Box::new(BTreeSet::new), tell: Box::new(|| ()) };
    thread::spawn(move || watch::run(&registry, &watch, nothing_else, || ()));
    batches
}

fn key() -> VipKey {
    VipKey::new("a", "b").unwrap()
}

fn seen(endpoints: usize, ready: usize) -> LocalUsage {
    LocalUsage { address: Some(IpAddr::from([10, 118, 0, 7])), endpoints, ready, previous: Vec::new() }
}

/// Takes batches until one is as expected, or gives up.
fn expect(batches: &mut mpsc::UnboundedReceiver<Batch>, expected: &LocalUsage) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut last = None;
    while Instant::now() < deadline {
        match batches.try_recv() {
            Ok(batch) => {
                last = batch.vips.into_iter().find(|(vip, _)| *vip == key()).map(|(_, usage)| usage).or(last);
                if last.as_ref() == Some(expected) {
                    return;
                }
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    panic!("expected {expected:?}, last seen {last:?}");
}

#[test]
fn changes_are_seen_at_once_also_in_a_registry_that_comes_later() {
    let place = Place::new("changes");
    let mut batches = start(place.registry());
    place.record("a_b", false);
    place.endpoint("a_b", "c1", "pending");
    expect(&mut batches, &seen(1, 0));
    place.endpoint("a_b", "c1", "ready");
    expect(&mut batches, &seen(1, 1));
    place.endpoint("a_b", "c2", "draining");
    expect(&mut batches, &seen(2, 1));
    place.record("a_b", true);
    expect(&mut batches, &LocalUsage { address: None, ..seen(2, 1) });
    place.record("a_b", false);
    expect(&mut batches, &seen(2, 1));
    // As the registry removes a VIP, and makes it anew.
    fs::rename(place.vip("a_b"), place.vip(".a_b.1.gone")).unwrap();
    fs::remove_dir_all(place.vip(".a_b.1.gone")).unwrap();
    expect(&mut batches, &LocalUsage::default());
    place.record("a_b", false);
    place.endpoint("a_b", "c3", "ready");
    expect(&mut batches, &seen(1, 1));
}

#[test]
fn the_first_batch_is_everything_and_damage_counts_as_a_replica() {
    let place = Place::new("damage");
    place.record("a_b", false);
    place.endpoint("a_b", "c1", "ready");
    replace(&place.vip("a_b").join("endpoints/c2@eth0.json"), "{\"schema\":1,");
    let mut batches = start(place.registry());
    let first = batches.blocking_recv().unwrap();
    assert_eq!(first, Batch { full: true, vips: vec![(key(), seen(2, 1))], others: [(key(), Vec::new())].into() });
}

#[test]
fn a_registry_that_comes_later_is_noticed_as_it_comes() {
    let place = Place::new("later");
    let mut batches = start(place.registry());
    batches.blocking_recv().unwrap();
    // Long enough for the thread to wait, and for no retry to be near.
    thread::sleep(Duration::from_millis(100));
    place.record("a_b", false);
    place.endpoint("a_b", "c1", "ready");
    let before = Instant::now();
    expect(&mut batches, &seen(1, 1));
    // Half of what a watcher waits between two tries to find one.
    assert!(before.elapsed() < Duration::from_millis(500), "{:?}", before.elapsed());
}
