//! The link that nodes, clients and DHCP servers share.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::netns::Netns;
use super::wait::{SOON, until};

/// A bridge in a namespace of its own; the namespace is the LAN's gateway and runs its DHCP server.
pub struct Lan {
    pub ns: Netns,
    ports: AtomicUsize,
    ipv6: Once,
}

/// The gateway's address. Nodes are 192.0.2.1 to .9, clients .50 and up; servers hand out .100 to .150.
pub const GATEWAY: &str = "192.0.2.254";

impl Lan {
    pub fn new() -> Self {
        let ns = Netns::new();
        ns.ip("link add br0 type bridge forward_delay 0");
        ns.ip(&format!("addr add {GATEWAY}/24 dev br0"));
        ns.ip("link set br0 up");
        Self { ns, ports: AtomicUsize::new(0), ipv6: Once::new() }
    }

    /// Plugs `ns` in: its device is called `eth0` and has the address 192.0.2.`host`/24.
    pub fn plug(&self, ns: &Netns, host: u8) {
        let port = format!("port{}", self.ports.fetch_add(1, Ordering::Relaxed));
        self.ns.ip(&format!("link add name {port} type veth peer name eth0 netns {}", ns.path()));
        self.ns.ip(&format!("link set {port} master br0 up"));
        ns.ip(&format!("addr add 192.0.2.{host}/24 dev eth0"));
        ns.ip("link set eth0 up");
    }

    /// The gateway has IPv6: `2001:db8::fe`. Nodes may be plugged in side by side.
    pub fn has_ipv6(&self) {
        self.ipv6.call_once(|| {
            self.ns.ip("addr add 2001:db8::fe/64 dev br0 nodad");
            // Servers want a link-local address to bind, which a bridge has once it has a carrier.
            self.ns.set_sysctl("net/ipv6/conf/br0/accept_dad", "0");
            self.ns.ip("link add first type veth peer name nobody");
            self.ns.ip("link set nobody up");
            self.ns.ip("link set first master br0 up");
            until("the gateway has a link-local address", SOON, || {
                (!self.ns.ip("-6 addr show dev br0 scope link -tentative").is_empty()).then_some(())
            });
        });
    }

    /// A machine that is plugged in has IPv6 too: `2001:db8::HOST/64`, and the LAN's gateway `2001:db8::fe`.
    pub fn add_ipv6(&self, ns: &Netns, host: u8) {
        self.has_ipv6();
        ns.ip(&format!("addr add 2001:db8::{host:x}/64 dev eth0 nodad"));
    }

    /// A machine on the LAN that is no node: 192.0.2.`host`, with `routes` (`PREFIX via ADDRESS`) to the VIPs.
    pub fn client(&self, host: u8, routes: &[&str]) -> Netns {
        let ns = Netns::new();
        self.plug(&ns, host);
        for route in routes {
            ns.ip(&format!("route add {route}"));
        }
        ns
    }

    /// A machine behind the gateway, which forwards: 198.51.100.2, on a link of its own.
    pub fn routed_client(&self) -> Netns {
        let ns = Netns::new();
        self.ns.ip(&format!("link add clients type veth peer name eth0 netns {}", ns.path()));
        self.ns.ip("addr add 198.51.100.1/24 dev clients");
        self.ns.ip("link set clients up");
        self.ns.set_sysctl("net/ipv4/ip_forward", "1");
        ns.ip("addr add 198.51.100.2/24 dev eth0");
        ns.ip("link set eth0 up");
        ns.ip("route add default via 198.51.100.1");
        ns
    }

    /// That machine has IPv6 too: `2001:db8:51::2`, and the gateway forwards it.
    pub fn route_ipv6(&self, ns: &Netns) {
        self.has_ipv6();
        self.ns.ip("addr add 2001:db8:51::1/64 dev clients nodad");
        self.ns.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        ns.ip("addr add 2001:db8:51::2/64 dev eth0 nodad");
        ns.ip("route add default via 2001:db8:51::1");
    }
}
