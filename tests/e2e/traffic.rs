//! A request to the VIP reaches a replica: evenly, directly, from everywhere, with the client's own address.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use crate::harness::{
    Daemon, Join, Lan, Load, Netns, Node, PORT, Pod, PodServer, Run, SOON, Tally, connect, serve_all, share, until,
};

/// A node, a client that routes to it, and pods with servers that have joined "web".
struct Web {
    servers: Vec<PodServer>,
    pods: Vec<Pod>,
    client: Netns,
    node: Node,
    _lan: Lan,
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 50));

impl Web {
    fn new(replicas: usize) -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods: Vec<_> = (0..replicas).map(|_| node.joined(&Join::annotated("web"))).collect();
        Self { servers: serve_all(&pods), pods, client, node, _lan: lan }
    }

    fn vip(&self) -> Ipv4Addr {
        self.pods[0].vip()
    }
}

fn assert_shares(tally: &Tally, names: &[&str], range: std::ops::RangeInclusive<f64>) {
    for name in names {
        let share = share(tally, name);
        assert!(range.contains(&share), "{name} has {share:.1} %, not {range:?}: {tally:?}");
    }
}

#[test]
fn three_replicas_share_evenly_and_see_the_client() {
    let web = Web::new(3);
    let tally = connect(&web.client, web.vip(), 3000);
    assert_shares(&tally, &["p1", "p2", "p3"], 28.0..=39.0);
    assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&CLIENT]);
    for server in &web.servers {
        assert_eq!(server.clients(), [CLIENT], "who a pod has seen");
    }
}

#[test]
fn conntrack_sees_no_nat() {
    let web = Web::new(3);
    // A NAT hook and a rule that asks for connection state: without either the kernel tracks nothing, and this would show nothing.
    web.node
        .ns
        .cmd("nft")
        .arg("-f")
        .arg("-")
        .finish(
            "table ip test {
                chain nat { type nat hook postrouting priority 100; }
                chain track { type filter hook prerouting priority 0; ct state new counter; }
            }\n",
        )
        .ok();
    let vip = web.vip();
    connect(&web.client, vip, 50);
    let entries = web.node.ns.cmd("conntrack").arg("-L").finish("").ok();
    let of_the_vip: Vec<_> = entries.lines().filter(|line| line.contains(&vip.to_string())).collect();
    assert!(of_the_vip.len() >= 50, "conntrack saw the flows:\n{entries}");
    for entry in of_the_vip {
        let values = |key: &str| -> Vec<_> { entry.split(' ').filter_map(|field| field.strip_prefix(key)).collect() };
        let (src, dst) = (values("src="), values("dst="));
        let (sport, dport) = (values("sport="), values("dport="));
        assert_eq!((src[0], dst[0]), ("192.0.2.50", vip.to_string().as_str()), "{entry}");
        assert_eq!((src[1], dst[1], sport[1], dport[1]), (dst[0], src[0], dport[0], sport[0]), "rewritten: {entry}");
    }
}

#[test]
fn the_vip_is_the_destination_on_vip0() {
    let web = Web::new(1);
    let arguments =
        ["-i", "vip0", "-n", "-l", "-Z", "root", "tcp[tcpflags] & tcp-syn != 0 and tcp[tcpflags] & tcp-ack == 0"];
    let tcpdump = Daemon::start("tcpdump", web.pods[0].ns.cmd("tcpdump").args(arguments), &web.node.dir);
    until("tcpdump listens", SOON, || tcpdump.log().contains("listening on").then_some(()));
    connect(&web.client, web.vip(), 3);
    let to_the_vip = format!(" > {}.{PORT}: Flags [S]", web.vip());
    let seen =
        || tcpdump.log().lines().filter(|line| line.contains(&to_the_vip) && line.contains("IP 192.0.2.50.")).count();
    until("three SYNs for the VIP on vip0", SOON, || (seen() == 3).then_some(()));
}

/// From an outside client, a process of the node and a pod that is no replica, whatever `rp_filter` of `all` is.
fn from_everywhere(rp_filter: &str) {
    let web = Web::new(3);
    let bystander = web.node.pod();
    web.node.ns.set_sysctl("net/ipv4/conf/all/rp_filter", rp_filter);
    let node_address = IpAddr::V4(web.node.address());
    for (ns, address) in
        [(&web.client, CLIENT), (&web.node.ns, node_address), (&bystander.ns, IpAddr::V4(bystander.address()))]
    {
        let tally = connect(ns, web.vip(), 90);
        assert_eq!(tally.names.len(), 3, "from {address} each replica is reached: {tally:?}");
        assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&address], "the client as the pods see it");
    }
}

#[test]
fn from_everywhere_without_reverse_path_filter() {
    from_everywhere("0");
}

#[test]
fn from_everywhere_with_strict_reverse_path_filter() {
    from_everywhere("1");
}

#[test]
fn from_everywhere_with_loose_reverse_path_filter() {
    from_everywhere("2");
}

#[test]
fn a_fourth_replica_gets_its_share_under_load() {
    let web = Web::new(3);
    web.client.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
    let flows =
        |seconds: usize| Load { to: (web.vip(), PORT).into(), count: 1000 * seconds, rate: Some(1000), concurrency: 8 };
    let fourth = thread::scope(|scope| {
        let load = scope.spawn(|| web.client.run(|| flows(16).run()));
        thread::sleep(Duration::from_secs(1));
        // Its server first: a replica that is in the group is taken to be ready.
        let pod = web.node.pod();
        let server = PodServer::start(&pod);
        web.node.add(&pod, &Join::annotated("web")).ok();
        let tally = load.join().expect("the load");
        assert_eq!(tally.failed, 0, "{tally:?}");
        (pod, server)
    });
    let tally = web.client.run(|| flows(3).run());
    assert_eq!(tally.failed, 0, "{tally:?}");
    assert_shares(&tally, &[&fourth.0.name], 20.0..=30.0);
}

#[test]
fn a_replica_that_left_gets_nothing() {
    let web = Web::new(3);
    web.node.remove(&web.pods[0], &Join::annotated("web"));
    let tally = connect(&web.client, web.pods[1].vip(), 300);
    assert_eq!(tally.names.keys().collect::<Vec<_>>(), ["p2", "p3"]);
}

/// With the last replica the VIP is withdrawn, at once and for good: no connection hangs on its way to a default gateway.
#[test]
fn the_last_replica_takes_the_vip_with_it() {
    let web = Web::new(2);
    let vip = web.vip();
    for pod in &web.pods {
        web.node.remove(pod, &Join::annotated("web"));
    }
    let routes = web.node.ns.ip("-4 route show proto 118") + &web.node.ns.ip("nexthop show proto 118");
    assert_eq!(routes, "", "what is left of {vip}");
}
