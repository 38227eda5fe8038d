//! A pod: a namespace and what the runtime knows of it.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Mutex;

use serde_json::Value;

use super::netns::Netns;
use super::snapshot;

pub struct Pod {
    pub ns: Netns,
    /// The container ID.
    pub id: String,
    /// `p1`, `p2`, …
    pub name: String,
    /// The base plugin's result.
    pub base: Mutex<Value>,
    /// The chain's result, once the pod has joined.
    pub result: Mutex<Option<Value>>,
}

impl Pod {
    pub fn new(number: usize) -> Self {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel's random numbers");
        let id = format!("{}{number:032x}", uuid.trim().replace('-', ""));
        Self { ns: Netns::new(), id, name: format!("p{number}"), base: Mutex::default(), result: Mutex::default() }
    }

    /// The address the base plugin gave it.
    pub fn address(&self) -> Ipv4Addr {
        let base = self.base.lock().unwrap();
        let address = base["ips"][0]["address"].as_str().expect("the base result has an address");
        address.split('/').next().unwrap().parse().expect("an IPv4 address")
    }

    /// The IPv6 address that the base plugin gave it.
    pub fn address6(&self) -> Ipv6Addr {
        let base = self.base.lock().unwrap();
        let ips = base["ips"].as_array().expect("the base result's addresses");
        let mut addresses = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
        addresses.next_back().expect("an IPv6 address")
    }

    /// The addresses of its `vip0`, sorted; none, if it has no such device.
    pub fn vips(&self) -> Vec<Ipv4Addr> {
        self.vips_of("-4 addr")
    }

    /// The IPv6 addresses of its `vip0`, sorted.
    pub fn vips6(&self) -> Vec<Ipv6Addr> {
        self.vips_of("-6 addr")
    }

    fn vips_of<A: FromStr + Ord>(&self, shown: &str) -> Vec<A> {
        let devices = self.ns.ip_json(shown);
        let ours = devices.iter().filter(|device| device["ifname"] == "vip0");
        let addresses = ours.flat_map(|device| device["addr_info"].as_array().expect("a device's addresses"));
        let local = |info: &Value| info["local"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        let mut vips: Vec<_> = addresses.map(local).collect();
        vips.sort();
        vips
    }

    /// Its one VIP.
    pub fn vip(&self) -> Ipv4Addr {
        let vips = self.vips();
        assert_eq!(vips.len(), 1, "the VIPs of {}", self.name);
        vips[0]
    }
}

thread_local! {
    /// A few pods of a failed test tell enough.
    static DUMPS_LEFT: Cell<u8> = const { Cell::new(4) };
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() && DUMPS_LEFT.get() > 0 {
            DUMPS_LEFT.set(DUMPS_LEFT.get() - 1);
            eprintln!("--- pod {} {}", self.name, self.id);
            snapshot::dump(
                &self.ns,
                &["addr", "-4 rule", "-4 route show table all", "-6 rule", "-6 route show table all", "neigh"],
            );
        }
    }
}
