//! Routing daemons on nodes that know each other: a VIP's route leads to other nodes too, and what a node announces is what it has
//! itself.

use super::{SETTINGS, Speaker, VIP, drain, router, undrain, until_shares};
use crate::harness::{
    Crowd, Flows, Join, LONG, Lan, Node, PATIENCE, Pod, SOON, Sidecar, Storm, TempDir, allow_many_files, until,
};
use crate::nodes::new_key;

/// Live connections of the client behind the router.
const LIVE: usize = 100;
const WITHOUT: &str = "peers = [\"192.0.2.1\", \"192.0.2.2\"]\n";

struct Site {
    node: Node,
    pods: Vec<Pod>,
    servers: Vec<Crowd>,
    _sidecar: Sidecar,
}

impl Site {
    fn new(lan: &Lan, number: u8, settings: &str, replicas: usize) -> Self {
        let node = Node::without_allocator(lan, number);
        let sidecar = Sidecar::start(&node, &settings.replace("N.0/24", &format!("{number}.0/24")));
        let mut site = Self { node, pods: Vec::new(), servers: Vec::new(), _sidecar: sidecar };
        (0..replicas).for_each(|_| site.joins(number));
        site
    }

    fn joins(&mut self, number: u8) {
        let mut pod = self.node.pod();
        pod.name = format!("n{number}-{}", pod.name);
        self.servers.push(Crowd::start(&pod));
        self.node.add(&pod, &Join::annotated("web")).ok();
        self.pods.push(pod);
    }

    /// Whether the VIP's route leads to the other node too.
    fn leads_on(&self) {
        until("the route leads to the other node", PATIENCE, || {
            self.node.ns.ip(&format!("route show {VIP} proto 118")).contains("dev viptun0").then_some(())
        });
    }
}

/// The client's connections.
struct Client {
    flows: Flows,
    storm: Storm,
}

impl Client {
    fn unbroken(&mut self, when: &str, gone: &[String]) {
        self.flows.ask();
        self.flows.hear();
        assert_eq!(self.flows.complaint(gone), None, "{when}");
        assert_eq!(self.storm.next(20).failed, [""; 0], "{when}");
    }
}

fn announces_its_own(kind: &str) {
    allow_many_files();
    let (lan, dir) = (Lan::new(), TempDir::new());
    let _router = router(&lan, &[(1, 65001), (2, 65002)]);
    let key = new_key(&dir, "membership.key");
    let settings = format!(
        "{}\n[membership]\nseeds = [\"192.0.2.1\", \"192.0.2.2\"]\nkey_file = {key:?}",
        SETTINGS.replace(WITHOUT, "announce = \"none\"\n").replace("10.118.0.0/24", "10.118.N.0/24")
    );
    let named = |number| format!("{settings}\nname = \"n{number}\"");
    let [one, mut two] = [(1, 2), (2, 1)].map(|(number, count)| Site::new(&lan, number, &named(number), count));
    one.leads_on();
    two.leads_on();
    let start =
        |site: &Site, asn: &str| Speaker::start(kind, &site.node, &["--asn", asn, "--router", "192.0.2.254:65000"]);
    let mut speaker = start(&one, "65001");
    let other = start(&two, "65002");
    let both = [(1, 0.667), (2, 0.333)];
    until_shares(&lan, &both, LONG);
    let ns = lan.routed_client();
    let vip: std::net::Ipv4Addr = VIP.parse().expect("an address");
    let storm = Storm::start(&ns, vip, 50);
    storm.next(20);
    let mut client = Client { flows: Flows::open("a client behind the router", &ns, vip, LIVE), storm };
    client.unbroken("at first", &[]);

    // The last replica of node 1 drains, while its route leads on.
    one.pods.iter().for_each(|pod| drain(&one.node, pod));
    until_shares(&lan, &[(2, 1.0)], SOON);
    one.leads_on();
    speaker.has_only_its_own(&one.node);
    client.unbroken("node 1 has nothing ready", &[]);
    one.pods.iter().for_each(|pod| undrain(&one.node, pod));
    until_shares(&lan, &both, SOON);
    client.unbroken("node 1 has some again", &[]);

    // The last replica of node 2 goes.
    drain(&two.node, &two.pods[0]);
    until_shares(&lan, &[(1, 1.0)], SOON);
    two.node.remove(&two.pods[0], &Join::annotated("web"));
    two.leads_on();
    let gone = [two.pods[0].name.clone()];
    client.unbroken("node 2 has no replica", &gone);
    other.has_only_its_own(&two.node);
    two.joins(2);
    until_shares(&lan, &both, SOON);
    client.unbroken("node 2 has one again", &gone);

    // The daemon of node 1 is killed and comes back.
    for time in 0..3 {
        drop(speaker);
        until_shares(&lan, &[(2, 1.0)], SOON);
        client.unbroken(&format!("node 1's daemon is away, {time}"), &gone);
        speaker = start(&one, "65001");
        until_shares(&lan, &both, LONG);
        client.unbroken(&format!("node 1's daemon is back, {time}"), &gone);
    }
}

#[test]
fn bird_beside_the_other_nodes_replicas() {
    announces_its_own("bird");
}

#[test]
fn frr_beside_the_other_nodes_replicas() {
    announces_its_own("frr");
}
