//! Routing daemons on nodes that know each other: a VIP's route leads to other nodes too, and what a node announces is what it has
//! itself.

use super::{SETTINGS, Speaker, behind, drain, dual, router, routes, sessions, undrain, until_shares, vips};
use crate::harness::{
    Crowd, Families, Flows, Join, LONG, Lan, Node, PATIENCE, PORT, Pod, SOON, Sidecar, Storm, TempDir,
    allow_many_files, until,
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
        let node = Node::without_allocator(lan, number).with_ipv6(lan);
        let sidecar = Sidecar::start(&node, &settings.replace("N.0/24", &format!("{number}.0/24")));
        let mut site = Self { node, pods: Vec::new(), servers: Vec::new(), _sidecar: sidecar };
        (0..replicas).for_each(|_| site.joins(number));
        site
    }

    fn joins(&mut self, number: u8) {
        let mut pod = self.node.pod();
        pod.name = format!("n{number}-{}", pod.name);
        self.servers.push(Crowd::of_both(&pod, PORT));
        self.node.add(&pod, &Join::annotated("web")).ok();
        self.pods.push(pod);
    }

    /// Whether the VIP's routes lead to the other node too.
    fn leads_on(&self) {
        for vip in vips(Families::Both) {
            until(&format!("the route of {vip} leads to the other node"), PATIENCE, || {
                routes(&self.node.ns, vip).iter().any(|route| route.to_string().contains("viptun0")).then_some(())
            });
        }
    }

    /// The networks of the pool have discard routes here, which are announced to no router.
    fn discards(&self) {
        for (family, network) in [("-4", "10.118."), ("-6", "fd00:118::")] {
            let shown = self.node.ns.ip(&format!("{family} route show type unreachable proto 118"));
            let is_one = |line: &str| line.contains(network) && line.contains("metric 4278190079");
            assert!(shown.lines().any(is_one), "{shown}");
        }
    }
}

/// The client's connections by each family.
struct Client(Vec<(Flows, Storm)>);

impl Client {
    fn unbroken(&mut self, when: &str, gone: &[String]) {
        for (flows, storm) in &mut self.0 {
            flows.ask();
            flows.hear();
            assert_eq!(flows.complaint(gone), None, "{when}");
            assert_eq!(storm.next(20).failed, [""; 0], "{when}");
        }
    }
}

fn announces_its_own(kind: &str) {
    allow_many_files();
    let (lan, dir) = (Lan::new(), TempDir::new());
    let both_families = Families::Both;
    let _router = router(&lan, &[(1, 65001), (2, 65002)], both_families);
    let until_shares = |wanted: &[(u8, f64)], limit| until_shares(&lan, both_families, wanted, limit);
    let key = new_key(&dir, "membership.key");
    let settings = format!(
        "{}\n[membership]\nseeds = [\"192.0.2.1\", \"192.0.2.2\"]\nkey_file = {key:?}",
        dual(&SETTINGS.replace(WITHOUT, "announce = \"none\"\n").replace("10.118.0.0/24", "10.118.N.0/24"))
    );
    let named = |number| format!("{settings}\nname = \"n{number}\"");
    let [one, mut two] = [(1, 2), (2, 1)].map(|(number, count)| Site::new(&lan, number, &named(number), count));
    one.leads_on();
    two.leads_on();
    let start = |site: &Site, asn: &str| {
        let sessions = sessions(both_families, Some(65000));
        let options: Vec<&str> = ["--asn", asn].into_iter().chain(sessions.iter().map(String::as_str)).collect();
        Speaker::start(kind, &site.node, &options)
    };
    let mut speaker = start(&one, "65001");
    let other = start(&two, "65002");
    let both = [(1, 0.667), (2, 0.333)];
    until_shares(&both, LONG);
    let ns = behind(&lan, both_families);
    let connections = vips(both_families).into_iter().map(|vip| {
        let storm = Storm::start(&ns, vip, 50);
        storm.next(20);
        (Flows::open("a client behind the router", &ns, vip, LIVE), storm)
    });
    let mut client = Client(connections.collect());
    client.unbroken("at first", &[]);

    // The last replica of node 1 drains, while its route leads on.
    one.pods.iter().for_each(|pod| drain(&one.node, pod));
    until_shares(&[(2, 1.0)], SOON);
    one.leads_on();
    speaker.has_only_its_own(&one.node, both_families);
    client.unbroken("node 1 has nothing ready", &[]);
    one.pods.iter().for_each(|pod| undrain(&one.node, pod));
    until_shares(&both, SOON);
    client.unbroken("node 1 has some again", &[]);

    // The last replica of node 2 goes.
    drain(&two.node, &two.pods[0]);
    until_shares(&[(1, 1.0)], SOON);
    two.node.remove(&two.pods[0], &Join::annotated("web"));
    two.leads_on();
    let gone = [two.pods[0].name.clone()];
    client.unbroken("node 2 has no replica", &gone);
    other.has_only_its_own(&two.node, both_families);
    two.joins(2);
    until_shares(&both, SOON);
    client.unbroken("node 2 has one again", &gone);

    // The daemon of node 1 is killed and comes back.
    for time in 0..3 {
        drop(speaker);
        until_shares(&[(2, 1.0)], SOON);
        client.unbroken(&format!("node 1's daemon is away, {time}"), &gone);
        speaker = start(&one, "65001");
        until_shares(&both, LONG);
        client.unbroken(&format!("node 1's daemon is back, {time}"), &gone);
    }

    // Nothing is ready on any node: the routes of the pools' networks, which are still there, are announced by none.
    drop(client);
    one.pods.iter().chain([&two.pods[1]]).zip([&one, &one, &two]).for_each(|(pod, site)| drain(&site.node, pod));
    until_shares(&[], SOON);
    for site in [&one, &two] {
        site.discards();
    }
    for family in ["-4", "-6"] {
        assert_eq!(lan.ns.ip(&format!("{family} route show proto bgp")), "");
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
