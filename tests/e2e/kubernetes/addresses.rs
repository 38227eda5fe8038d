//! Which Service gets which address, and when.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Scene, named};
use crate::harness::{LONG, PATIENCE, SOON, until};

/// One that was made that many seconds after the first.
fn made(name: &str, second: usize) -> Value {
    let mut service = named(name);
    service["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60));
    service
}

/// And whose status says this.
fn stated(name: &str, second: usize, address: &str) -> Value {
    let mut service = made(name, second);
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address, "ipMode": "Proxy" }] } });
    service
}

impl Scene {
    fn has(&self, name: &str, address: &str) {
        until(&format!("{name} has {address}"), SOON, || (self.address_of(name)? == address).then_some(()));
        // A status may have said it before.
        until(&format!("{address} is entered"), SOON, || {
            self.api.names("IPAddress").contains(&format!("/{address}")).then_some(())
        });
    }

    fn ends_with(self, names: &[&str]) {
        for name in names {
            self.api.delete(&named(name));
        }
        self.ends();
    }
}

/// The register is lost, or was another installation's: statuses alone say what Services have.
#[test]
fn addresses_that_only_statuses_say_are_adopted() {
    let scene = Scene::with(1, "cidr = \"10.118.0.0/29\"", |api| {
        api.set(&made("oldest", 0));
        api.set(&stated("a", 10, "10.118.0.1"));
        api.set(&stated("b", 20, "10.118.0.2"));
        api.set(&stated("c", 30, "10.118.0.1"));
        api.set(&stated("d", 40, "192.0.2.77"));
    });
    scene.has("a", "10.118.0.1");
    scene.has("b", "10.118.0.2");
    // Who waits gets another, however old.
    let others: Vec<String> = ["oldest", "c", "d"]
        .map(|name| {
            until(name, SOON, || {
                scene.address_of(name).filter(|address| *address != "10.118.0.1" && *address != "192.0.2.77")
            })
        })
        .into();
    assert!(others.iter().all(|address| address.starts_with("10.118.0.") && *address != "10.118.0.2"), "{others:?}");
    scene.is_told("AddressConflict", "10.118.0.1, is default/a's, which has had it for longer: it gets 10.118.0.");
    scene.is_told("AddressConflict", "192.0.2.77, isn't of pool default (10.118.0.0/29): it gets 10.118.0.");
    let conflicts = scene.api.reasons().iter().filter(|reason| *reason == "AddressConflict").count();
    assert_eq!(conflicts, 2, "{:?}", scene.api.events());
    scene.ends_with(&["oldest", "a", "b", "c", "d"]);
}

/// A range of 20, and three Services more than it has addresses.
#[test]
fn those_that_wait_get_an_address_in_order_of_their_making() {
    const NAMES: usize = 23;
    let names: Vec<String> = (0..NAMES).map(|number| format!("s{number}")).collect();
    let scene = Scene::with(1, &twenty(), |_| {});
    for (second, name) in names.iter().enumerate().take(20) {
        scene.api.set(&made(name, second));
    }
    let waits = |name: &String| scene.address_of(name).is_none();
    until("20 have addresses", PATIENCE, || (!names[..20].iter().any(waits)).then_some(()));
    // The youngest is made first.
    for second in [22, 21, 20] {
        scene.api.set(&made(&names[second], second));
        let entry = || {
            let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
            let services = found["services"].as_array()?.clone();
            let entry = services.into_iter().find(|entry| entry["service"] == format!("default/{}", names[second]))?;
            entry["waits"]
                .as_str()
                .filter(|why| why.contains("no address of pool default (10.118.0.0/27) is free"))
                .map(str::to_owned)
        };
        until("status says what it waits for", SOON, entry);
    }
    scene.is_told("PoolExhausted", "no address of pool default (10.118.0.0/27) is free");
    for (freed, next) in [(3, 20), (7, 21), (11, 22)] {
        let address = scene.address_of(&names[freed]).expect("an address");
        scene.api.delete(&named(&names[freed]));
        let begun = Instant::now();
        until("the oldest that waits has the address", PATIENCE, || {
            (scene.address_of(&names[next])? == address).then_some(())
        });
        eprintln!("an address that was given back is another Service's after {:?}", begun.elapsed());
        assert!(begun.elapsed() < crate::harness::scaled(Duration::from_secs(2)), "{:?}", begun.elapsed());
        assert!(names[next + 1..].iter().all(waits), "the others wait on");
    }
    scene.ends_with(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// 10.118.0.1 to 10.118.0.20.
fn twenty() -> String {
    let excluded: Vec<String> = (21..31).map(|last| format!("10.118.0.{last}")).collect();
    format!("cidr = \"10.118.0.0/27\"\nexclude = {excluded:?}")
}

/// Each deletion gives an address back: 300 Services one after the other, 20 at a time, on a range of 20.
#[test]
fn three_hundred_services_come_and_go_on_a_range_of_twenty() {
    let scene = Scene::with(1, &twenty(), |_| {});
    for round in 0..15 {
        let names: Vec<String> = (0..20).map(|number| format!("r{round}-{number}")).collect();
        for name in &names {
            scene.api.set(&named(name));
        }
        until(&format!("all of round {round} have addresses"), LONG, || {
            names.iter().all(|name| scene.address_of(name).is_some()).then_some(())
        });
        let mut addresses: Vec<String> = names.iter().filter_map(|name| scene.address_of(name)).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 20, "round {round}");
        for name in &names {
            scene.api.delete(&named(name));
        }
    }
    until("none is known any more", SOON, || {
        let found = scene.sidecar.ask(&json!({ "leases": {} }));
        found["leases"].as_array()?.is_empty().then_some(())
    });
    assert_eq!(scene.sidecar.ask(&json!({ "kubernetes": {} }))["services"], json!([]));
    scene.ends_with(&[]);
}
