//! Endpoints of the VIP web that a test records by itself: other nodes' replicas, and states.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::json;

use super::Node;

/// Of the next hops to other nodes: one by each node's number.
pub const FAR_NEXTHOPS: u32 = 0x7800_0000;

/// The directory of the VIP's records.
pub fn vip_dir(node: &Node) -> String {
    format!("{}/vips/default_web", node.data())
}

/// Records an endpoint, or removes it (`None`), as a holder of the VIP's lock does it: the index is no longer right. Where the VIP
/// isn't recorded nothing happens.
pub fn write_endpoint(node: &Node, file: &str, text: Option<String>) {
    let dir = vip_dir(node);
    let Ok(lock) = File::open(format!("{dir}/lock")) else { return };
    lock.lock().expect("the VIP's lock");
    let path = format!("{dir}/endpoints/{file}");
    // First: who hears of the change reads the index where there is one.
    fs::write(format!("{dir}/index.json"), "").expect("write the index");
    let Some(text) = text else {
        let _ = fs::remove_file(path);
        return;
    };
    let temporary = format!("{dir}/endpoints/.{file}.tmp");
    fs::write(&temporary, text).expect("write an endpoint");
    fs::rename(temporary, path).expect("put the endpoint in its place");
}

/// The name of the record of the node with that number.
pub fn far_endpoint(number: u32) -> String {
    format!("node-{number}@peer.json")
}

/// Another node's replicas.
pub struct FarReplicas<'a> {
    /// The number that this node has given to that one.
    pub number: u32,
    /// That node's address.
    pub node: Ipv4Addr,
    /// The next hop to it.
    pub via: Ipv4Addr,
    /// The device that leads there.
    pub device: &'a str,
    /// The device's index.
    pub ifindex: u64,
    /// How many are ready; none: they drain.
    pub ready: usize,
    /// Their VIP has `udp-sticky`.
    pub sticky: bool,
    /// How many of them serve which port, `8080/tcp=2`; none: all of them every port.
    pub served: Option<String>,
    /// It serves the VIP's address of IPv6 too, and is reached for that by this one on the tunnel's device.
    pub via6: Option<Ipv6Addr>,
}

impl FarReplicas<'_> {
    /// Records them on a node, as viprouted does.
    pub fn write(self, on: &Node) {
        let Self { number, node, via, device, ifindex, ready, sticky, served, via6 } = self;
        let addresses: Vec<IpAddr> = [node.into()].into_iter().chain(via6.map(IpAddr::V6)).collect();
        let mut record = json!({
            "schema": 2, "network": "", "addresses": addresses, "node": node, "gateway": null,
            "backend": { "remote": { "number": number, "address": via } }, "source": "peer",
            "device": device, "ifindex": ifindex, "nexthop": FAR_NEXTHOPS | number,
            "state": if ready > 0 { "ready" } else { "draining" }, "weight": ready.max(1),
            "udp_sticky": sticky,
        });
        if let Some(served) = served {
            record["served"] = json!(served);
        }
        write_endpoint(on, &far_endpoint(number), Some(record.to_string()));
    }
}
