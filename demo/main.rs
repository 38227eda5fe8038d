//! viproute on real parts, in namespaces: a LAN with a DHCP server, a node with pods, a client. Run by `./install.sh demo`, which
//! starts it in namespaces of its own; nothing of it can outlive this program.

#![allow(clippy::print_stdout)]

// The tests' bed: what fails in it ends the demo and says why.
#[path = "../tests/bed/mod.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]
mod bed;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bed::dhcp_server::{DhcpServer, RANGE};
use bed::join::Join;
use bed::lan::Lan;
use bed::load::Load;
use bed::netns::Netns;
use bed::node::Node;
use bed::pod::Pod;
use bed::serve::Server;
use bed::sidecar::Sidecar;

const PORT: u16 = 8080;
const POOL: &str = "10.118.0.0/24";

/// An idle bucket moves to the replica it is due to after one second.
const SETTLED: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--backend", "dhcp"] => show(true),
        ["--backend", "pool"] => show(false),
        _ => {
            eprintln!("usage: ./install.sh demo [--backend dhcp|pool]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// A node with viprouted, and who is on its LAN. Fields are dropped in this order.
struct Demo {
    pods: Vec<(Server, Pod)>,
    /// The clients as the pods see them.
    seen: Arc<Mutex<BTreeSet<IpAddr>>>,
    _sidecar: Sidecar,
    dhcp: Option<DhcpServer>,
    client: Netns,
    node: Node,
    _lan: Lan,
}

fn show(dhcp: bool) {
    let start = Instant::now();
    step("A LAN, a node and a client, each in a network namespace");
    let mut demo = Demo::new(dhcp);
    step("Three pods with the annotation viproute.io/vip: \"web\"");
    (0..3).for_each(|_| demo.join());
    let vip = demo.pods[0].1.vip();
    if let Some(server) = &demo.dhcp {
        server.has_leases(1);
        say(&format!("The VIP of shop/web is {vip}, leased by DHCP. dnsmasq's lease table:"));
        quote(&server.leases().join("\n"));
    } else {
        say(&format!("The VIP of shop/web is {vip}, from the pool."));
    }
    step("The node's route to the VIP: one nexthop per pod");
    quote(&(demo.node.ns.ip("route show proto 118") + &demo.node.ns.ip("nexthop show proto 118")));
    step(&format!("300 requests from the client to {vip}:{PORT}"));
    demo.requests(vip);
    let seen: Vec<_> = demo.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().map(IpAddr::to_string).collect();
    say(&format!("The client as the pods see it: {}", seen.join(" ")));
    say(&format!("No NAT, no proxy: the node has {} veth pairs for it.", demo.devices()));
    step("A fourth pod joins");
    demo.join();
    thread::sleep(SETTLED);
    demo.requests(vip);
    step("p1 leaves");
    demo.leave();
    say("p1 has left");
    thread::sleep(SETTLED);
    demo.requests(vip);
    step("All leave");
    (0..3).for_each(|_| demo.leave());
    let left = demo.node.ns.ip("route show proto 118") + &demo.node.ns.ip("nexthop show proto 118");
    assert!(left.is_empty() && demo.devices() == 0, "left behind: {left}{}", demo.node.ns.ip("-brief link"));
    say("No route, no nexthop, no device of viproute is left on the node.");
    say(&format!("Took {} seconds.", start.elapsed().as_secs()));
}

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

impl Demo {
    fn new(dhcp: bool) -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let (client, server, sidecar) = if dhcp {
            let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
            say("dnsmasq hands out 192.0.2.100 to .150; the node is 192.0.2.1, the client 192.0.2.50.");
            (lan.client(50, &[]), Some(server), Sidecar::dhcp(&node, ""))
        } else {
            say(&format!(
                "No DHCP server: VIPs come from the pool {POOL}. The node is 192.0.2.1, the client 192.0.2.50."
            ));
            (lan.client(50, &[&format!("{POOL} via 192.0.2.1")]), None, Sidecar::pool(&node, POOL))
        };
        Self { pods: Vec::new(), seen: Arc::default(), _sidecar: sidecar, dhcp: server, client, node, _lan: lan }
    }

    /// A namespace, the chain's ADD, a server.
    fn join(&mut self) {
        let pod = self.node.joined(&web());
        let (listen, seen) = (SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), self.seen.clone());
        let log = move |client: SocketAddr| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(client.ip());
        };
        let server = pod.ns.run(|| Server::start(&pod.name, listen, false, log));
        say(&format!("{} has joined: its own address is {}", pod.name, pod.address()));
        let server = server.unwrap_or_else(|error| panic!("a server in {}: {error}", pod.name));
        self.pods.push((server, pod));
    }

    /// The chain's DEL for the pod that joined first.
    fn leave(&mut self) {
        let (_server, pod) = self.pods.remove(0);
        self.node.remove(&pod, &web());
    }

    /// 300 from the client, as a bar chart.
    fn requests(&self, vip: Ipv4Addr) {
        let load = Load { to: (vip, PORT).into(), count: 300, rate: None, concurrency: 1 };
        let tally = self.client.run(|| load.run());
        assert_eq!(tally.failed, 0, "requests failed: {}", tally.error);
        for (name, count) in &tally.names {
            println!("    {name} {} {count}", coloured("36", &"#".repeat(count / 4)));
        }
    }

    /// How many devices of ours the node has.
    fn devices(&self) -> usize {
        self.node.ns.ip("-o link").lines().filter(|line| line.contains(": vip")).count()
    }
}

fn step(text: &str) {
    println!("\n{}", coloured("1", text));
}

fn say(text: &str) {
    println!("  {text}");
}

fn quote(text: &str) {
    text.lines().for_each(|line| println!("    {line}"));
}

fn coloured(code: &str, text: &str) -> String {
    let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { text.to_owned() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}
