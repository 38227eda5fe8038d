//! How soon new Services answer.

use std::time::Duration;

use super::report::Column;
use super::{Contender, Stage};
use crate::bed::{Arrivals, Deployment};
use crate::harness::PORT;
use serde_json::{Value, json};

const ONE_BY_ONE: usize = 20;
const AT_ONCE: usize = 100;
/// A pod is a replica of so many VIPs at most.
const A_POD: usize = 8;

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

pub fn measure(stage: &Stage, column: &mut Column) {
    let control = &stage.cluster.control;
    let names = (0..(ONE_BY_ONE + AT_ONCE).div_ceil(A_POD)).map(|number| &*format!("many-{number}").leak());
    let servers: Vec<_> = names.map(|name| Deployment::new(name, 1)).collect();
    control.apply(&list(servers.iter().map(Deployment::object)));
    for server in &servers {
        server.wait(control);
    }
    let service = |number: usize| {
        let mut service = servers[number / A_POD].service("LoadBalancer", &[(PORT, PORT)]);
        service["metadata"]["name"] = format!("service-{number}").into();
        if let Contender::MetalLb(policy) = stage.contender {
            service["spec"]["externalTrafficPolicy"] = policy.into();
        }
        service
    };
    let arrivals = Arrivals::watch(&stage.cluster);
    let name = |number: usize| format!("service-{number}");
    for number in 0..ONE_BY_ONE {
        control.apply(&service(number));
        arrivals.of(&[name(number)]);
    }
    let single = arrivals.of(&(0..ONE_BY_ONE).map(name).collect::<Vec<_>>());
    column.say("a new Service, to its first answer (20, one by one)", said(&single));
    let rest = ONE_BY_ONE..ONE_BY_ONE + AT_ONCE;
    control.apply(&list(rest.clone().map(service)));
    let many = arrivals.of(&rest.map(name).collect::<Vec<_>>());
    column.say("100 at once, each from its own creation", said(&many));
}

fn said(taken: &[Duration]) -> String {
    let last = taken.last().expect("some").as_secs_f64();
    format!("median {:.2} s, last {last:.2} s", taken[taken.len() / 2].as_secs_f64())
}
