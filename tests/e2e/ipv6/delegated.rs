//! IPv6 addresses of a prefix that a `DHCPv6` server delegates to the node: `[dhcp6] delegate = true`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DELEGATED6, DhcpServer, Flows, KEA_POOL6, LONG, Lan, Netns, PATIENCE, PORT, Pod, SOON, connect, until,
};

use super::dhcp::Scene;
use super::web;

const SETTINGS: &str =
    "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]\ndelegate = true";
/// Seconds that a prefix is delegated for.
const LEASE: u32 = 8;

impl Scene {
    fn delegated() -> (Self, DhcpServer) {
        let lan = Lan::new();
        let server = DhcpServer::kea6(&lan, LEASE, KEA_POOL6);
        (Self::on(lan, SETTINGS), server)
    }

    /// What viprouted has on disk.
    fn prefix(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.node.dir.file("state/prefix6.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The routes that refuse what comes for the rest of a prefix.
    fn discards(&self) -> String {
        let routes = self.node.ns.ip("-6 route show type unreachable proto 118");
        routes.lines().filter(|line| line.contains("metric 4278190079")).collect()
    }

    /// The router leads a prefix to the address that it was asked from.
    fn route(&self, prefix: &str) {
        let own = self.node.ns.ip_json("-6 addr show dev eth0 scope link");
        // What doesn't fit is shown as an empty object.
        let mut addresses = own.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        let own = addresses.find_map(|address| address["local"].as_str()).expect("a link-local address");
        self.lan.ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        self.lan.ns.ip(&format!("-6 route replace {prefix} via {own} dev br0"));
    }

    /// A client of the LAN whose way to the prefixes is the router.
    fn client(&self) -> Netns {
        let client = self.lan.client(50, &["10.118.0.0/16 dev eth0"]);
        self.lan.add_ipv6(&client, 50);
        client.ip(&format!("route add {DELEGATED6}/48 via 2001:db8::fe"));
        client
    }
}

fn address_of(pod: &Pod) -> Ipv6Addr {
    until("the VIP has an address of the prefix", PATIENCE, || pod.vips6().first().copied())
}

fn is_refused(client: &Netns, address: Ipv6Addr) {
    let to = SocketAddr::new(IpAddr::V6(address), PORT);
    let error = client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect_err("no VIP has it");
    assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error:?}");
}

#[test]
fn a_vip_has_an_address_of_the_prefix_that_is_delegated() {
    let (scene, _server) = Scene::delegated();
    let pod = scene.node.joined(&web());
    let address = address_of(&pod);
    assert_eq!(address.segments()[..3], [0x2001, 0xdb8, 0x100], "{address}");
    assert_eq!(address.to_bits() & 0xffff_ffff, u128::from(pod.vip().to_bits()), "it ends in the IPv4 address");
    let known = scene.prefix().expect("it is on disk");
    let prefix = known["prefix"].as_str().expect("a prefix").to_owned();
    assert!(prefix.ends_with("/60"), "as long as the server delegates it: {prefix}");
    assert!(scene.discards().contains(&prefix), "{}", scene.discards());
    scene.route(&prefix);
    let (client, _crowd) = (scene.client(), Crowd::of_both(&pod, PORT));
    assert_eq!(connect(&client, address, 30).names.len(), 1);
    is_refused(&client, Ipv6Addr::from_bits(address.to_bits() + 1));
    // The router leads it here: no neighbour is answered for it.
    assert!(!scene.node.ns.ip("-6 neigh show proxy").contains("2001:db8:100:"));
    scene.node.check(&pod, &web()).ok();
    let before = known["expires"].as_u64().expect("it ends");
    until("it is renewed", PATIENCE, || scene.prefix()?["expires"].as_u64().filter(|now| *now > before + 2));
    // After a restart it is in use at once.
    let scene = scene.restarted(SETTINGS);
    assert_eq!(scene.node.joined(&web()).vips6(), [address]);
    assert!(scene.discards().contains(&prefix));
}

#[test]
fn a_prefix_that_is_lost_takes_ipv6_alone_along() {
    let (scene, mut server) = Scene::delegated();
    let pod = scene.node.joined(&web());
    let address = address_of(&pod);
    let (client, _crowd) = (scene.client(), Crowd::of_both(&pod, PORT));
    until("the node answers for it", SOON, || scene.node.ns.ip("neigh show proxy").contains("10.118").then_some(()));
    let mut flows = Flows::open("the client", &client, pod.vip(), 20);
    server.stop();
    until("the prefix is lost", LONG, || {
        scene.node.ns.ip("-6 route show type unreachable proto 118").is_empty().then_some(())
    });
    assert_eq!((scene.prefix(), scene.discards().as_str()), (None, ""));
    let problems = scene.sidecar.ask(&json!({ "status": {} }))["problems"].to_string();
    assert!(problems.contains("prefix"), "{problems}");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
    server.start_again(&scene.lan);
    until("it is delegated again, and the VIP's address is the same", LONG, || {
        let shown = scene.node.ns.ip(&format!("-6 route show {address} proto 118"));
        (!shown.is_empty() && pod.vips6() == [address]).then_some(())
    });
    let problems = scene.sidecar.ask(&json!({ "status": {} }))["problems"].to_string();
    assert!(!problems.contains("prefix"), "{problems}");
}
