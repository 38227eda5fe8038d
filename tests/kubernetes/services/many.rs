//! A hundred Services: how soon they answer, and what they cost while nothing changes.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use super::serving;
use crate::bed::many::{list, names, shown};
use crate::bed::{Arrivals, Many};
use crate::harness::{LONG, until};

const SERVICES: usize = 100;

/// So many are made one after the other; the rest at once.
const ONE_BY_ONE: usize = 20;

#[test]
fn a_hundred_are_answered_and_go() {
    let cluster = serving();
    let (control, many) = (&cluster.control, Many::of(&cluster, SERVICES, 2));
    let before = cluster.workers[0].viprouted().memory;
    let arrivals = Arrivals::watch(&cluster);
    let (single, at_once) = many.services.split_at(ONE_BY_ONE);
    for service in single {
        control.apply(service);
        arrivals.of(&names(std::slice::from_ref(service)));
    }
    eprintln!("from creation to the first answer, one by one: {}", shown(&arrivals.of(&names(single))));
    control.apply(&list(at_once.iter().cloned()));
    eprintln!("{} at once: {}", at_once.len(), shown(&arrivals.of(&names(at_once))));
    eprintln!(
        "viprouted's memory: {before} KiB without Services, {} KiB with {SERVICES}",
        cluster.workers[0].viprouted().memory
    );

    sleep(Duration::from_secs(5));
    let asked = control.asked().len();
    sleep(Duration::from_secs(20));
    let idle: Vec<_> = control.asked().split_off(asked).into_iter().filter(|entry| entry["verb"] != "watch").collect();
    assert_eq!(idle, [Value::Null; 0], "in 20 s in which nothing changed");

    Many::delete(&cluster);
    until("no Service is a VIP any more, and no address is held", LONG, || {
        sleep(Duration::from_millis(200));
        let held = control.get(&["ipaddresses", "--selector=ipaddress.kubernetes.io/managed-by=viproute.io"]);
        let vips = cluster.workers[0].ctl(&["status"])["vips"].as_array().expect("VIPs").len();
        (held["items"].as_array().expect("addresses").is_empty() && vips == 0).then_some(())
    });
}
