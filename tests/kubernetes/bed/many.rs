//! Many Services at once.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::manifest::Deployment;
use crate::harness::PORT;

/// A pod is a replica of so many VIPs at most.
const A_POD: usize = 8;

/// By it they are found again.
const LABEL: (&str, &str) = ("made-by", "many");

/// Services `many-0` and so on, and what serves them.
pub struct Many {
    pub services: Vec<Value>,
}

impl Many {
    /// So many, of Deployments that are ready, of so many pods each. They aren't given to the API.
    pub fn of(cluster: &Cluster, count: usize, pods: u32) -> Self {
        let names = (0..count.div_ceil(A_POD)).map(|number| &*format!("server-{number}").leak());
        let servers: Vec<_> = names.map(|name| Deployment::new(name, pods)).collect();
        cluster.control.apply(&list(servers.iter().map(Deployment::object)));
        for server in &servers {
            server.wait(&cluster.control);
        }
        let service = |number: usize| {
            let mut service = servers[number / A_POD].service("LoadBalancer", &[(PORT, PORT)]);
            service["metadata"] = json!({ "name": format!("many-{number}"), "labels": { (LABEL.0): LABEL.1 } });
            service
        };
        Self { services: (0..count).map(service).collect() }
    }

    /// Deletes them, and waits for nothing.
    pub fn delete(cluster: &Cluster) {
        let label = format!("{}={}", LABEL.0, LABEL.1);
        cluster.control.run(&["delete", "services", "--selector", &label, "--wait=false"]);
    }
}

/// Their names.
pub fn names(services: &[Value]) -> Vec<String> {
    services.iter().map(|service| service["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

/// All of them by one call.
pub fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

/// Of times, the shortest first.
pub fn shown(taken: &[Duration]) -> String {
    let at = |hundredth: usize| taken[(taken.len() * hundredth / 100).min(taken.len() - 1)].as_secs_f64();
    format!("median {:.2} s, 99th of 100 {:.2} s, last {:.2} s", at(50), at(99), at(100))
}
