//! Several pools, and which Service gets an address of which.

use serde_json::{Value, json};

use super::{Scene, named};
use crate::harness::{PATIENCE, Page, SOON, until};

const POOLS: &str = r#"
[[pool]]
name = "open"
cidr = "10.118.0.0/30"
[[pool]]
name = "named"
cidr = ["10.118.1.9-10.118.1.10", "10.118.1.32/31"]
exclude = ["10.118.1.32", "10.118.1.33"]
auto = false
namespaces = ["default"]
[[pool]]
name = "gold"
cidr = "10.118.2.0/30"
labels = { tier = "gold" }
[[pool]]
name = "elsewhere"
cidr = "10.118.3.0/30"
namespaces = ["other"]
"#;

/// One that names a pool.
fn of_pool(name: &str, pool: &str) -> Value {
    let mut service = named(name);
    service["metadata"]["annotations"] = json!({ "viproute.io/pool": pool });
    service
}

impl Scene {
    fn gets(&self, name: &str, address: &str) {
        until(&format!("{name} has {address}"), SOON, || (self.address_of(name)? == address).then_some(()));
    }

    fn remove(&self, names: &[&str]) {
        for name in names {
            self.api.delete(&named(name));
        }
    }

    /// What the metrics say of a pool: its size, and how much of it is given out.
    fn usage(&self, pool: &str) -> Option<(i64, i64)> {
        let (page, labels) = (Page::of(&self.node), [("pool", pool)]);
        let size = page.find("viproute_pool_addresses", &labels)?;
        Some((size, page.find("viproute_pool_addresses_used", &labels)?))
    }
}

#[test]
fn a_service_gets_an_address_of_its_pool() {
    let scene = Scene::with_tables(1, POOLS, |_| {});
    let mut gold = named("gold");
    gold["metadata"]["labels"] = json!({ "tier": "gold", "app": "web" });
    for service in [named("plain"), of_pool("first", "named"), gold, of_pool("second", " named ")] {
        scene.api.set(&service);
    }
    scene.gets("plain", "10.118.0.1");
    scene.gets("gold", "10.118.2.1");
    let named_ones = || {
        let mut found = [scene.address_of("first")?, scene.address_of("second")?];
        found.sort();
        (found == ["10.118.1.10", "10.118.1.9"]).then_some(())
    };
    until("both of the pool that only who names it gets", SOON, named_ones);
    for (pool, used) in [("open", (2, 1)), ("named", (2, 2)), ("gold", (2, 1)), ("elsewhere", (2, 0))] {
        until(&format!("the metrics of {pool}"), SOON, || (scene.usage(pool)? == used).then_some(()));
    }

    scene.api.set(&of_pool("lost", "lost"));
    scene.is_told("UnknownPool", "no address so far: there is no pool lost (viproute.io/pool; there are: open, named");
    scene.api.set(&of_pool("stranger", "elsewhere"));
    scene.is_told("PoolRefused", "pool elsewhere doesn't serve namespace default (it serves: other)");
    scene.api.set(&of_pool("base", "gold"));
    scene.is_told("PoolRefused", "pool gold serves Services with the labels tier=gold alone");
    scene.api.set(&of_pool("third", "named"));
    scene.is_told("PoolExhausted", "no address of pool named (10.118.1.9-10.118.1.10, 10.118.1.32/31) is free");
    let waits = scene.sidecar.ask(&json!({ "kubernetes": {} })).to_string();
    assert!(waits.contains("there is no pool lost"), "status says it too: {waits}");

    // Another name in the annotation.
    scene.api.set(&of_pool("lost", "open"));
    scene.gets("lost", "10.118.0.2");
    scene.remove(&["second"]);
    until("the third has what the second had", SOON, || scene.address_of("third"));
    scene.remove(&["plain", "first", "gold", "lost", "stranger", "base", "third"]);
    scene.ends();
}

/// It is served at the new address before the old one is taken back, and keeps the old one while there is no new one.
#[test]
fn a_service_moves_to_the_pool_that_it_names() {
    let scene = Scene::with_tables(1, POOLS, |_| {});
    scene.api.set(&of_pool("first", "named"));
    scene.api.set(&of_pool("second", "named"));
    scene.api.set(&named("web"));
    scene.gets("web", "10.118.0.1");
    scene.serve(&[(0, true)]);
    scene.waits_for(&[(0, "ready")]);
    scene.api.set(&with_status_of(&scene, of_pool("web", "named")));
    scene.is_told("PoolExhausted", "it keeps 10.118.0.1: no address of pool named");
    assert_eq!(scene.address_of("web").as_deref(), Some("10.118.0.1"));
    let freed = until("it is known", PATIENCE, || scene.address_of("second"));
    scene.remove(&["second"]);
    scene.gets("web", &freed);
    scene.waits_for(&[(0, "ready")]);
    assert!(scene.api.names("IPAddress").contains(&"/10.118.0.1".to_owned()), "it is taken back later");
    scene.remove(&["first"]);
    scene.ends();
}

/// As an edit by kubectl leaves it.
fn with_status_of(scene: &Scene, mut edited: Value) -> Value {
    let now = scene.api.get(&edited);
    edited["metadata"]["uid"] = now["metadata"]["uid"].clone();
    edited["metadata"]["managedFields"] = now["metadata"]["managedFields"].clone();
    edited["status"] = now["status"].clone();
    edited
}

/// The older one can have none: its namespace has as many as it may.
#[test]
fn a_service_over_its_namespaces_limit_holds_up_no_other() {
    let tables = "[pool]\ncidr = \"10.118.0.0/30\"\n[limits]\nvips_per_namespace = 1\n";
    let scene = Scene::with_tables(1, tables, |_| {});
    let made = |namespace: &str, name: &str, second: u32| {
        let mut service = named(name);
        service["metadata"]["namespace"] = json!(namespace);
        service["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{second:02}Z"));
        service
    };
    scene.api.set(&made("default", "first", 1));
    scene.gets("first", "10.118.0.1");
    scene.api.set(&made("default", "over", 2));
    scene.is_told("NoAddress", "limits.vips_per_namespace = 1");
    let youngest = made("other", "youngest", 3);
    scene.api.set(&youngest);
    until("the youngest has the other address", PATIENCE, || {
        let ingress = &scene.api.get(&youngest)["status"]["loadBalancer"]["ingress"][0];
        (ingress["ip"] == "10.118.0.2").then_some(())
    });
    scene.api.delete(&youngest);
    scene.remove(&["first", "over"]);
    scene.ends();
}
