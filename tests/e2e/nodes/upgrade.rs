//! Three nodes that know nothing of each other run the release before; each gets this one, and the table `[membership]`, while the
//! others go on.

use std::net::Ipv4Addr;

use viproute::internals::model::Family;

use super::live::Served;
use super::{Member, WEB, new_key, web};
use crate::harness::{
    Crowd, Flows, Join, Lan, Netns, Node, PATIENCE, Pod, SOON, Sidecar, Storm, TempDir, allow_many_files, attempt,
    until,
};
use crate::upgrade::previous;

/// Live connections by each node.
const LIVE: usize = 100;

/// As several nodes were set up: one address for the VIP on all of them.
fn former_settings(number: u8) -> String {
    format!(
        "backend = \"pool\"\nannounce = \"none\"\nallow = [\"10.118.0.0/16\"]\npeers = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\"]\n\
         [pool]\ncidr = \"10.118.{number}.0/24\"\n[[pin]]\nvip = \"default/web\"\naddress = \"{WEB}\""
    )
}

fn add(node: &Node, pod: &Pod, join: &Join) {
    let (environment, stdin) = (node.environment("ADD", pod, join), node.stdin("ADD", pod, join));
    let result = node.run(&mut node.ns.cmd(previous("viproute")), &environment, &stdin.to_string()).ok();
    *pod.result.lock().unwrap() = Some(result);
}

/// A node of the release before, which will be a member.
fn former(lan: &Lan, number: u8, key: &str) -> (Member, Vec<Served>) {
    let node = Node::without_allocator(lan, number);
    let sidecar = Some(Sidecar::of(&previous("viprouted"), &node, &former_settings(number)));
    let pod = node.pod();
    add(&node, &pod, &Join::annotated(&format!("own{number}")));
    let served = (0..2).map(|_| {
        let mut pod = node.pod();
        pod.name = format!("n{number}-{}", pod.name);
        let server = Some(Crowd::start(&pod));
        add(&node, &pod, &web());
        Served { server, pod }
    });
    let served = served.collect();
    let (underlay, settings) = (Family::V4, Member::settings(number, key, Family::V4));
    (Member { sidecar, pod, node, settings, underlay }, served)
}

/// The connections of a client whose packets go to one node, and new ones without end.
struct Client {
    flows: Flows,
    storm: Storm,
    ns: Netns,
}

impl Client {
    fn new(lan: &Lan, number: u8) -> Self {
        let ns = lan.client(50 + number, &[&format!("10.118.0.0/16 via 192.0.2.{number}")]);
        let vip: Ipv4Addr = WEB.parse().expect("an address");
        let from = ["a client of node 1", "a client of node 2", "a client of node 3"][usize::from(number) - 1];
        let flows = Flows::open(from, &ns, vip, LIVE);
        assert_eq!(flows.live().len(), 2, "each replica of node {number} has connections");
        Self { flows, storm: Storm::start(&ns, vip, 30), ns }
    }

    fn unbroken(&mut self, when: &str) {
        self.flows.ask();
        self.flows.hear();
        assert_eq!(self.flows.complaint(&[]), None, "{when}");
        assert_eq!(self.storm.next(10).failed, [""; 0], "{when}");
    }
}

#[test]
fn nodes_that_stood_alone_become_members_one_after_the_other() {
    allow_many_files();
    let (lan, dir) = (Lan::new(), TempDir::new());
    let key = new_key(&dir, "membership.key");
    let mut nodes: Vec<_> = (1..=3).map(|number| former(&lan, number, &key)).collect();
    let mut clients: Vec<_> = (1..=3).map(|number| Client::new(&lan, number)).collect();
    let mut all_unbroken = |when: &str| clients.iter_mut().for_each(|client| client.unbroken(when));
    for at in 0..3 {
        let number = at + 1;
        nodes[at].0.stop();
        all_unbroken(&format!("between the programs of node {number}"));
        nodes[at].0.start();
        let member = &nodes[at].0;
        until(&format!("node {number} sees those that were upgraded before"), PATIENCE, || {
            (member.states().len() == at).then_some(())
        });
        for (other, _) in &nodes[..=at] {
            other.leads_to("with this release", at);
        }
        all_unbroken(&format!("node {number} was upgraded"));
    }
    // Whichever node a packet reaches: all replicas.
    for client in &clients {
        let tally = attempt(&client.ns, WEB.parse::<Ipv4Addr>().unwrap(), 200);
        assert_eq!((tally.failed, tally.names.len()), (0, 6), "{tally:?}");
    }
    for client in &mut clients {
        client.unbroken("all nodes are members");
    }
    drop(clients);
    for (member, served) in &nodes {
        member.node.remove(&member.pod, &Join::annotated("own"));
        for served in served {
            member.node.remove(&served.pod, &web());
        }
    }
    for (member, _) in &nodes {
        until("nothing of the VIP is left", SOON, || {
            let is_recorded = std::fs::exists(format!("{}/vips/default_web", member.node.data())).unwrap();
            (!is_recorded && member.routes().is_empty()).then_some(())
        });
        assert!(!member.daemon().log().contains("panicked"));
    }
}
