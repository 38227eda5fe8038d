//! A hundred Services: how soon they answer, and what they cost while nothing changes.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::serving;
use crate::bed::{Arrivals, Cluster, Deployment};
use crate::harness::{LONG, PORT, until};

const SERVICES: usize = 100;

/// So many are made one after the other; the rest at once.
const ONE_BY_ONE: usize = 20;

/// A pod is a replica of so many VIPs at most.
const A_POD: usize = 8;

/// What is asked of the API for their sake.
const LABEL: (&str, &str) = ("made-by", "many");

/// Deployments of two pods each, enough for all of them.
fn servers(cluster: &Cluster) -> Vec<Deployment> {
    let names = (0..SERVICES.div_ceil(A_POD)).map(|number| &*format!("web-{number}").leak());
    let servers: Vec<_> = names.map(|name| Deployment::new(name, 2)).collect();
    cluster.control.apply(&list(servers.iter().map(Deployment::object)));
    for server in &servers {
        server.wait(&cluster.control);
    }
    servers
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

/// `many-0` and so on.
fn services(servers: &[Deployment]) -> Vec<Value> {
    let service = |number: usize| {
        let mut service = servers[number / A_POD].service("LoadBalancer", &[(PORT, PORT)]);
        service["metadata"] = json!({ "name": format!("many-{number}"), "labels": { (LABEL.0): LABEL.1 } });
        service
    };
    (0..SERVICES).map(service).collect()
}

fn names(services: &[Value]) -> Vec<String> {
    services.iter().map(|service| service["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

fn said(taken: &[Duration]) -> String {
    let at = |hundredth: usize| taken[(taken.len() * hundredth / 100).min(taken.len() - 1)].as_secs_f64();
    format!("median {:.2} s, 99th of 100 {:.2} s, last {:.2} s", at(50), at(99), at(100))
}

/// KiB that viprouted of the first node has in memory.
fn memory(cluster: &Cluster) -> u64 {
    let machine = &cluster.workers[0].containerd.machine;
    let line = machine.sh("grep VmRSS: /proc/$(cat /run/viprouted.pid)/status");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("VmRSS in KiB")
}

#[test]
fn a_hundred_are_answered_and_go() {
    let cluster = serving();
    let (control, servers) = (&cluster.control, servers(&cluster));
    let (all, before) = (services(&servers), memory(&cluster));
    let arrivals = Arrivals::watch(&cluster);
    let (single, at_once) = all.split_at(ONE_BY_ONE);
    for service in single {
        control.apply(service);
        arrivals.of(&names(std::slice::from_ref(service)));
    }
    eprintln!("from creation to the first answer, one by one: {}", said(&arrivals.of(&names(single))));
    control.apply(&list(at_once.iter().cloned()));
    eprintln!("{} at once: {}", at_once.len(), said(&arrivals.of(&names(at_once))));
    eprintln!("viprouted's memory: {before} KiB without Services, {} KiB with {SERVICES}", memory(&cluster));

    sleep(Duration::from_secs(5));
    let asked = control.asked().len();
    sleep(Duration::from_secs(20));
    let idle: Vec<_> = control.asked().split_off(asked).into_iter().filter(|entry| entry["verb"] != "watch").collect();
    assert_eq!(idle, [Value::Null; 0], "in 20 s in which nothing changed");

    control.run(&["delete", "services", "--selector", &format!("{}={}", LABEL.0, LABEL.1), "--wait=false"]);
    until("no Service is a VIP any more, and no address is held", LONG, || {
        sleep(Duration::from_millis(200));
        let held = control.get(&["ipaddresses", "--selector=ipaddress.kubernetes.io/managed-by=viproute.io"]);
        let vips = cluster.workers[0].ctl(&["status"])["vips"].as_array().expect("VIPs").len();
        (held["items"].as_array().expect("addresses").is_empty() && vips == 0).then_some(())
    });
}
