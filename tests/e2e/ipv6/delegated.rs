//! IPv6 addresses of a prefix that a `DHCPv6` server delegates to the node: `[dhcp6] delegate = true`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Crowd, DELEGATED6, DhcpServer, Flows, KEA_POOL6, LONG, Lan, Netns, PATIENCE, PORT, Pod, Run, SOON, connect, until,
};

use super::dhcp::Scene;
use super::web;

const SETTINGS: &str =
    "backend = \"pool\"\nannounce = \"arp\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]\ndelegate = true";
/// Seconds that a prefix is delegated for.
const LEASE: u32 = 8;
/// What the server delegates of once it is configured anew.
const ANOTHER6: &str = "2001:db8:200::";

impl Scene {
    fn delegated() -> (Self, DhcpServer) {
        Self::delegated_with(SETTINGS)
    }

    fn delegated_with(settings: &str) -> (Self, DhcpServer) {
        let lan = Lan::new();
        let server = DhcpServer::kea6(&lan, LEASE, KEA_POOL6);
        (Self::on(lan, settings), server)
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
        client.ip(&format!("route add {ANOTHER6}/48 via 2001:db8::fe"));
        client
    }

    /// The prefix is another one from now on; `forgets`: the server knows nothing any more of the one that it has delegated.
    fn exchanged(&self, server: &mut DhcpServer, forgets: bool) {
        server.stop();
        if forgets {
            server.wipe();
        }
        server.change_delegated6(LEASE, ANOTHER6);
        server.start_again(&self.lan);
    }

    /// The VIP's address of the other prefix, once the pod serves by it.
    fn moved(&self, pod: &Pod) -> Ipv6Addr {
        until("the VIP has an address of the other prefix", LONG, || {
            let moved = pod.vips6().into_iter().find(|now| now.segments()[..3] == [0x2001, 0xdb8, 0x200]);
            moved.filter(|_| self.node.check(pod, &web()).succeeded())
        })
    }

    /// Counts what neighbours are told of addresses in the client's namespace (RFC 4861 section 4.4: the target is behind eight octets).
    fn counts_advertisements(client: &Netns) {
        let of = |prefix: &str| format!("icmpv6 type nd-neighbor-advert @th,64,48 {prefix} counter name told;");
        let rules = format!(
            "table ip6 seen {{ counter told {{ }}\nchain input {{ type filter hook input priority 0; {} {} }}\n}}",
            of("0x20010db80100"),
            of("0x20010db80200")
        );
        client.cmd("nft").args(["-f", "-"]).finish(&rules).ok();
    }

    /// The router leads the prefixes here: at no time neighbours are told of their addresses.
    fn is_not_advertised(client: &Netns) {
        let told = client.cmd("nft").args(["list", "counter", "ip6", "seen", "told"]).finish("").ok();
        assert!(told.contains("packets 0 "), "{told}");
    }

    /// What viprouted says of the prefix now.
    fn said_of_prefix(&self) -> String {
        let problems = self.sidecar.ask(&json!({ "status": {} }))["problems"].as_array().cloned().unwrap_or_default();
        let said = problems.iter().map(Value::to_string).filter(|problem| problem.contains("prefix"));
        said.collect()
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
    Scene::counts_advertisements(&client);
    let mut flows = Flows::open("the client", &client, pod.vip(), 20);
    server.stop();
    until("the prefix is lost", LONG, || {
        scene.node.ns.ip("-6 route show type unreachable proto 118").is_empty().then_some(())
    });
    assert_eq!((scene.prefix(), scene.discards().as_str()), (None, ""));
    assert!(scene.said_of_prefix().contains("is lost"), "{}", scene.said_of_prefix());
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
    server.start_again(&scene.lan);
    until("it is delegated again, and the VIP's address is the same", LONG, || {
        let shown = scene.node.ns.ip(&format!("-6 route show {address} proto 118"));
        (!shown.is_empty() && pod.vips6() == [address]).then_some(())
    });
    assert_eq!(scene.said_of_prefix(), "");
    Scene::is_not_advertised(&client);
}

/// The server has another one configured, or has lost what it knew as well.
#[test]
fn vips_move_to_another_prefix() {
    for forgets in [false, true] {
        let (scene, mut server) = Scene::delegated();
        let pod = scene.node.joined(&web());
        let address = address_of(&pod);
        let before = scene.prefix().expect("it is on disk")["prefix"].as_str().expect("a prefix").to_owned();
        scene.route(&before);
        let (client, _crowd) = (scene.client(), Crowd::of_both(&pod, PORT));
        until("the node answers for IPv4", SOON, || {
            scene.node.ns.ip("neigh show proxy").contains("10.118").then_some(())
        });
        Scene::counts_advertisements(&client);
        let mut flows = [IpAddr::V4(pod.vip()), address.into()].map(|vip| Flows::open("the client", &client, vip, 20));
        scene.exchanged(&mut server, forgets);
        let now = scene.moved(&pod);
        for flows in &mut flows {
            flows.ask();
            flows.hear();
            assert_eq!(flows.complaint(&[]), None, "connections of before, forgets: {forgets}");
        }
        let [mut flows, of_before] = flows;
        // While there are such by the address of before the pod has that, too.
        drop(of_before);
        until("the pod has the new address alone", PATIENCE, || (pod.vips6() == [now]).then_some(()));
        assert_eq!(now.to_bits() & 0xffff_ffff, address.to_bits() & 0xffff_ffff, "it ends in the IPv4 address still");
        let known = until("it is on disk", SOON, || scene.prefix().filter(|known| known["prefix"] != before.as_str()));
        let prefix = known["prefix"].as_str().expect("a prefix").to_owned();
        // Nothing of the one before is left, and the rest of the new one is refused.
        let routes = until("the address of before has gone", SOON, || {
            let routes = scene.node.ns.ip("-6 route show proto 118");
            (!routes.contains(&address.to_string())).then_some(routes)
        });
        assert!(routes.contains(&now.to_string()), "{routes}");
        until("the rest of the prefix is refused", SOON, || {
            let discards = scene.discards();
            (discards.contains(&prefix) && !discards.contains(&before)).then_some(())
        });
        assert!(!pod.ns.ip("-6 rule").contains(&address.to_string()), "{}", pod.ns.ip("-6 rule"));
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&[]), None, "IPv4's connections");
        scene.route(&prefix);
        assert_eq!(connect(&client, now, 30).names.len(), 1);
        is_refused(&client, Ipv6Addr::from_bits(now.to_bits() + 1));
        Scene::is_not_advertised(&client);
        assert_eq!(scene.said_of_prefix(), "");
    }
}

/// And so do connections, for as long as the router leads it here.
#[test]
fn a_prefix_that_is_lost_stays_where_on_lost_says_so() {
    let settings = format!("{SETTINGS}\n[dhcp]\non_lost = \"keep\"");
    let (scene, mut server) = Scene::delegated_with(&settings);
    let pod = scene.node.joined(&web());
    let address = address_of(&pod);
    let prefix = scene.prefix().expect("it is on disk")["prefix"].as_str().expect("a prefix").to_owned();
    scene.route(&prefix);
    let (client, _crowd) = (scene.client(), Crowd::of_both(&pod, PORT));
    let mut flows = Flows::open("the client", &client, address, 20);
    server.stop();
    let said = until("the prefix is lost", LONG, || {
        Some(scene.said_of_prefix()).filter(|said| said.contains("VIPs have its addresses still"))
    });
    assert!(said.contains("is lost"), "{said}");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "connections");
    assert_eq!(connect(&client, address, 30).names.len(), 1, "new ones");
    let second = scene.node.joined(&web());
    assert_eq!(second.vips6(), [address], "one that joins has it, too");
    assert!(scene.discards().contains(&prefix), "{}", scene.discards());
    // Also after a restart, though it has run out.
    let scene = scene.restarted(&settings);
    let third = scene.node.joined(&web());
    for pod in [&pod, &second, &third] {
        assert_eq!(pod.vips6(), [address]);
    }
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "connections");
    // What is delegated afterwards takes its place.
    drop(flows);
    scene.exchanged(&mut server, true);
    let now = scene.moved(&pod);
    until("the pod has the new address alone", PATIENCE, || (pod.vips6() == [now]).then_some(()));
    assert_eq!(scene.said_of_prefix(), "");
}
