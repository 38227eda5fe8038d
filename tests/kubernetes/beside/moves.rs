//! What happens to a VIP's connections when the node that answers ARP for it loses its agent, its link or its pods.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::metallb::MetalLb;
use super::report::Column;
use super::{Contender, LIVE, Stage, live};
use crate::harness::{PATIENCE, Run, Storm, until};

/// How long is looked at what an event does.
const WATCHED: Duration = Duration::from_secs(10);

const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub fn measure(stage: &mut Stage, column: &mut Column) {
    let node = stage.announcer();
    stage.event(column, "agent killed (SIGKILL)", |stage| stage.kill(node));
    stage.event(column, "agent back", |stage| stage.start(node));
    let node = stage.announcer();
    stage.event(column, "agent restarted (SIGTERM, then at once again)", |stage| {
        stage.end(node);
        stage.start(node);
    });
    let node = stage.announcer();
    let name = stage.cluster.workers[node].name.clone();
    stage.event(column, "label that excludes the node set", |stage| stage.label(&name, "="));
    stage.event(column, "the label removed", |stage| stage.label(&name, "-"));
    pods_leave(stage, column);
    link(stage, column);
}

/// The node's pods end and come up on the other one; then two come back.
fn pods_leave(stage: &mut Stage, column: &mut Column) {
    let name = stage.cluster.workers[stage.announcer()].name.clone();
    let own = format!("--field-selector=spec.nodeName={name}");
    stage.event(column, "the node's pods deleted (2 to 0)", |stage| {
        stage.cluster.control.run(&["cordon", &name]);
        stage.cluster.control.run(&["delete", "pods", "--selector=app=web", &own, "--wait=false"]);
    });
    stage.cluster.control.run(&["scale", "deployment", "web", "--replicas=2"]);
    stage.cluster.control.run(&["uncordon", &name]);
    stage.web.wait(&stage.cluster.control);
    stage.settle();
    stage.event(column, "pods come there (0 to 2)", |stage| {
        stage.cluster.control.run(&["scale", "deployment", "web", "--replicas=4"]);
    });
    stage.web.wait(&stage.cluster.control);
    stage.settle();
}

/// The node's link is cut; and, after the API has taken note, it is back.
fn link(stage: &mut Stage, column: &mut Column) {
    let node = stage.announcer();
    let worker = &stage.cluster.workers[node];
    let (name, routes) = (worker.name.clone(), worker.node.ns.ip("route show dev eth0"));
    stage.event(column, "the node's link cut", |stage| {
        stage.cluster.workers[node].node.ns.ip("link set eth0 down");
    });
    until("the API has taken note", PATIENCE * 2, || (!stage.cluster.is_ready(&name)).then_some(()));
    stage.settle();
    stage.event(column, "the link back", |stage| {
        let ns = &stage.cluster.workers[node].node.ns;
        ns.ip("link set eth0 up");
        // The kernel has forgotten those that lead by a gateway.
        for route in routes.lines().filter(|line| line.contains(" via ")) {
            ns.ip(&format!("route replace {route} dev eth0"));
        }
    });
}

impl Stage {
    /// Which node answers ARP for the VIP.
    pub(super) fn announcer(&self) -> usize {
        until("a node answers ARP", PATIENCE, || {
            self.forget();
            self.cluster.client.run(|| std::net::TcpStream::connect((self.vip, crate::harness::PORT)).ok())?;
            self.known()
        })
    }

    /// The client asks anew.
    fn forget(&self) {
        let vip = self.vip.to_string();
        // It may be forgotten already.
        self.cluster.client.cmd("ip").args(["neigh", "del", &vip, "dev", "eth0"]).finish("");
    }

    /// Who has answered the client, if it is known.
    fn known(&self) -> Option<usize> {
        let shown = self.cluster.client.ip(&format!("neigh show {}", self.vip));
        let has = |address: &str| shown.contains(address);
        let macs = self.cluster.workers.iter().map(|worker| worker.node.ns.mac("eth0"));
        macs.collect::<Vec<_>>().iter().position(|mac| has(mac))
    }

    fn kill(&mut self, node: usize) {
        let program = if self.contender == Contender::Viproute { "viprouted" } else { "speaker" };
        self.cluster.workers[node].containerd.machine.kill(program);
    }

    /// As whoever ends a service, until it has ended.
    fn end(&mut self, node: usize) {
        let program = if self.contender == Contender::Viproute { "viprouted" } else { "speaker" };
        self.cluster.workers[node].containerd.machine.sh(&format!(
            "kill -TERM $(cat /run/{program}.pid); while kill -0 $(cat /run/{program}.pid) 2>/dev/null; do sleep 0.02; done"
        ));
    }

    fn start(&mut self, node: usize) {
        if self.metallb.is_some() {
            MetalLb::speak(&mut self.cluster, node);
        } else {
            self.cluster.workers[node].start_viprouted();
        }
    }

    fn label(&self, node: &str, end: &str) {
        self.cluster.control.run(&["label", "node", node, &format!("{LABEL}{end}")]);
    }

    /// The pods that are on a node, by name.
    fn pods_on(&self, node: usize) -> Vec<String> {
        let selector = format!("--field-selector=spec.nodeName={}", self.cluster.workers[node].name);
        let pods = self.cluster.control.get(&["pods", "--selector=app=web", &selector]);
        let pods = pods["items"].as_array().expect("pods").iter();
        pods.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Lets something happen to the node that answers ARP, and says what became of live and new connections.
    fn event(&mut self, column: &mut Column, line: &str, act: impl FnOnce(&mut Self)) {
        let before = self.announcer();
        let own = self.pods_on(before);
        let mut flows = live(self);
        let storm = Storm::start(&self.cluster.client, self.vip, 50);
        let begin = Instant::now();
        act(self);
        let mut moved = None;
        while begin.elapsed() < WATCHED {
            if moved.is_none() {
                self.forget();
            }
            sleep(Duration::from_millis(50));
            if moved.is_none() && self.known().is_some_and(|node| node != before) {
                moved = Some(begin.elapsed());
            }
        }
        let seen = storm.seen();
        drop(storm);
        flows.ask();
        flows.hear();
        let (failed, all) = (seen.failed.len(), seen.failed.len() + seen.answers());
        let broken: usize = flows.broken().values().sum();
        let others: usize = flows
            .broken()
            .iter()
            .filter(|(replica, _)| !own.iter().any(|name| name == *replica))
            .map(|(_, count)| count)
            .sum();
        let arp = moved.map_or("ARP stays".into(), |after| format!("ARP after {:.1} s", after.as_secs_f64()));
        column.say(line, format!("{broken} of {LIVE} live broken ({others} on the other node's pods); {failed} of {all} new failed; {arp}"));
        self.settle();
    }
}
