//! `kill -9` at random moments, of the plugin and of the sidecar: one GC, or the next start, and all is as it should be.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Daemon, DhcpServer, Join, KEA_POOL, Lan, Node, Pod, PodServer, SOON, Sidecar, Snapshot, VIPROUTE, ask, connect,
    killed_after, until,
};

/// How many calls are killed in all, half of them ADDs.
const KILLS: u32 = 500;
/// Each works on a node of its own.
const WORKERS: u8 = 4;

fn web() -> Join {
    Join::annotated("web")
}

/// A random time up to `limit`.
fn up_to(limit: Duration) -> Duration {
    limit.mul_f64(rand::random::<f64>())
}

/// A node with a survivor, a replica of `web` that is served all the time, and a pod whose calls are killed.
struct Scene {
    survivor: Pod,
    vip: Ipv4Addr,
    _server: PodServer,
    pod: Pod,
    join: Join,
    node: Node,
    before: Snapshot,
    brief: Vec<String>,
    /// How long an ADD and a DEL take here that are not killed.
    add: Duration,
    del: Duration,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let survivor = node.joined(&web());
        let server = PodServer::start(&survivor);
        let (pod, join) = (node.pod(), Join::annotated("web,fresh"));
        let (mut add, mut del) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..3 {
            let start = Instant::now();
            node.add(&pod, &join).ok();
            add += start.elapsed() / 3;
            let start = Instant::now();
            node.del(&pod, &join).ok();
            del += start.elapsed() / 3;
        }
        let before = node.snapshot(&[&survivor, &pod]);
        let brief = node.brief();
        Self { vip: survivor.vip(), survivor, _server: server, pod, join, node, before, brief, add, del, _lan: lan }
    }

    /// One call, killed at some moment. True: it was still at work.
    fn kill(&self, verb: &str, within: Duration) -> bool {
        let mut command = self.node.ns.cmd(VIPROUTE);
        self.node.environment(verb, &self.pod, &self.join).apply(&mut command);
        killed_after(&mut command, &self.node.stdin(verb, &self.pod, &self.join).to_string(), up_to(within))
    }

    /// Nothing of the pod is left, and the survivor serves.
    fn clean(&self, what: &str, round: u32) {
        // Everything takes two dozen programs to see: the node's own is read each time, the rest at times.
        if round.is_multiple_of(8) || self.node.brief() != self.brief {
            self.before.assert_same(&self.node.snapshot(&[&self.survivor, &self.pod]), what);
            self.node.check(&self.survivor, &web()).ok();
        }
        connect(&self.node.ns, self.vip, 1);
    }

    fn collect(&self) {
        self.node.gc(&[&self.survivor], &web()).ok();
    }
}

/// An ADD that is killed; then GC alone, or, as a runtime may, the DEL or the same ADD again.
fn kill_an_add(scene: &Scene, round: u32) -> bool {
    let killed = scene.kill("ADD", scene.add);
    match round % 3 {
        0 => scene.collect(),
        1 => drop(scene.node.del(&scene.pod, &scene.join).ok()),
        _ => {
            scene.node.del(&scene.pod, &scene.join).ok();
            scene.node.add(&scene.pod, &scene.join).ok();
            scene.node.check(&scene.pod, &scene.join).ok();
            scene.collect();
        }
    }
    *scene.pod.result.lock().unwrap() = None;
    scene.clean("an ADD that was killed", round);
    killed
}

/// A DEL that is killed; then GC, or the DEL again.
fn kill_a_del(scene: &Scene, round: u32) -> bool {
    scene.node.add(&scene.pod, &scene.join).ok();
    let killed = scene.kill("DEL", scene.del);
    if round.is_multiple_of(2) {
        scene.collect();
    } else {
        scene.node.del(&scene.pod, &scene.join).ok();
    }
    *scene.pod.result.lock().unwrap() = None;
    scene.clean("a DEL that was killed", round);
    killed
}

#[test]
fn the_plugin_at_random_moments() {
    let share = KILLS / 2 / u32::from(WORKERS) + 1;
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let scene = Scene::new();
                for kill in [kill_an_add, kill_a_del] {
                    let (mut round, mut killed) = (0, 0);
                    while killed < share {
                        killed += u32::from(kill(&scene, round));
                        round += 1;
                        assert!(round < 20 * share, "{killed} of {round} calls were still at work");
                    }
                }
            });
        }
    });
}

/// The first ADD of a node, which makes the registry: whatever is there of it, the next one works.
#[test]
fn the_first_add_of_a_node() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    for round in 0..40 {
        let join = web().key("dataDir", json!(node.dir.file(&format!("data-{round}"))));
        let mut command = node.ns.cmd(VIPROUTE);
        node.environment("ADD", &pod, &join).apply(&mut command);
        killed_after(&mut command, &node.stdin("ADD", &pod, &join).to_string(), up_to(Duration::from_millis(12)));
        node.del(&pod, &join).ok();
        node.add(&pod, &join).ok();
        node.check(&pod, &join).ok();
        node.gc(&[], &join).ok();
        *pod.result.lock().unwrap() = None;
        assert_eq!(node.ns.ip("nexthop show proto 118") + &node.ns.ip("route show proto 118"), "");
        assert!(!node.ns.ip("-brief link").contains("vip"));
    }
}

/// Leases that were granted before a kill are the ones that are there after it.
struct Granted<'a> {
    node: &'a Node,
    addresses: BTreeMap<String, Ipv4Addr>,
}

impl Granted<'_> {
    /// A sidecar that lives for up to `life`, asked for VIPs meanwhile.
    fn round(&mut self, round: u32, life: Duration) {
        let config = self.node.dir.file("viprouted.toml");
        let mut command = self.node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
        let daemon = Daemon::start("viprouted", command.arg("--config").arg(&config), &self.node.dir);
        let socket = self.node.socket();
        let vips: Vec<_> = (0..6).map(|number| format!("default/vip-{}", (round + number) % 12)).collect();
        let answers: Vec<_> = thread::scope(|scope| {
            let socket = &socket;
            let asking: Vec<_> = vips.iter().map(|vip| scope.spawn(move || persistent(socket, vip, life))).collect();
            thread::sleep(up_to(life));
            drop(daemon);
            asking.into_iter().map(|one| one.join().expect("a caller")).collect()
        });
        for (vip, address) in vips.into_iter().zip(answers) {
            self.note(vip, address);
        }
    }

    /// The address of a VIP never changes, and none is given twice.
    fn note(&mut self, vip: String, address: Option<Ipv4Addr>) {
        let Some(address) = address else { return };
        for (other, taken) in &self.addresses {
            assert!((*other == vip) == (*taken == address), "{vip} has {address}, {other} has {taken}");
        }
        self.addresses.insert(vip, address);
    }

    /// All of it once more, from a sidecar that is let live.
    fn verify(mut self, settings: &str) -> Sidecar {
        let before = self.addresses.len();
        let sidecar = Sidecar::start(self.node, settings);
        for number in 0..12 {
            let vip = format!("default/vip-{number}");
            let address = sidecar.acquire(&vip).expect("an address");
            self.note(vip, Some(address));
        }
        assert!(before > 3, "too few grants in all these rounds to say anything: {:?}", self.addresses);
        let status = sidecar.ask(&json!({ "status": {} }));
        assert_eq!(status["problems"], json!([]), "{status}");
        assert!(!self.node.dir.path().join("state/leases").read_dir().unwrap().flatten().any(|file| {
            std::fs::read_to_string(file.path())
                .is_ok_and(|text| serde_json::from_str::<serde_json::Value>(&text).is_err())
        }));
        sidecar
    }
}

/// Asks until a replica answers, for `limit` at most.
fn persistent(socket: &str, vip: &str, limit: Duration) -> Option<Ipv4Addr> {
    let request = json!({ "acquire": { "vip": vip, "pod": "10.1.1.2", "node": "192.0.2.1" } }).to_string();
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Ok(reply) = ask(socket, &request) {
            return reply["address"].as_str()?.parse().ok();
        }
        thread::sleep(Duration::from_millis(3));
    }
    None
}

#[test]
fn the_sidecar_while_it_hands_out_a_pool() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    // Without a link to ask on, a grant takes no time.
    node.ns.ip("route del default");
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
    Sidecar::start(&node, settings).stop();
    let mut granted = Granted { node: &node, addresses: BTreeMap::new() };
    for round in 0..60 {
        granted.round(round, Duration::from_millis(80));
    }
    granted.verify(settings);
}

/// Each start confirms all leases at once: at any moment one is acquired, confirmed or renewed, or its file written. The
/// leases are long enough for none to run out because of kills alone.
#[test]
fn the_sidecar_while_it_acquires_and_renews() {
    let lan = Lan::new();
    let _server = DhcpServer::kea(&lan, 20, Some(KEA_POOL));
    let node = Node::without_allocator(&lan, 1);
    let settings = "backend = \"dhcp\"\nallow = [\"192.0.2.0/24\"]";
    let sidecar = Sidecar::start(&node, settings);
    let pod = node.joined(&web());
    let _server = PodServer::start(&pod);
    drop(sidecar);
    let mut granted = Granted { node: &node, addresses: BTreeMap::new() };
    for round in 0..20 {
        granted.round(round, Duration::from_millis(if round % 3 == 0 { 2500 } else { 400 }));
        // Its routes are not deleted meanwhile.
        connect(&node.ns, pod.vip(), 1);
    }
    let sidecar = granted.verify(settings);
    until("the replica's lease is in order", SOON, || {
        (sidecar.status("default/web")?["state"] == "bound").then_some(())
    });
    connect(&node.ns, pod.vip(), 5);
    node.check(&pod, &web()).ok();
}
