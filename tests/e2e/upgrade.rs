//! The release before this one is replaced under traffic: its plugin, its daemon, its records, programs and pods. How to go back
//! is written in docs/how-to/upgrade.md.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use serde_json::Value;

use crate::harness::{
    Crowd, Echo, Flows, Join, Lan, Netns, Node, PATIENCE, PORT, Pod, Run, SOON, Sidecar, Snapshot, Storm, VIPROUTECTL,
    allow_many_files, connect, nothing_left, scaled, until,
};

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";

/// Live connections from each of two places.
const LIVE: usize = 150;

/// A program of the release before: `VIPROUTE_PREVIOUS` says where they are, else tests/previous.sh has built them.
pub fn previous(name: &str) -> String {
    let dir = std::env::var("VIPROUTE_PREVIOUS")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned() + "/target/previous");
    let program = format!("{dir}/{name}");
    assert!(Path::new(&program).is_file(), "{program} is missing: run tests/previous.sh, or set VIPROUTE_PREVIOUS");
    program
}

/// What the pods of this node ask for: everything an annotation can say.
fn web() -> Join {
    Join::annotated("web")
        .annotation("viproute.io/ports", &format!("{PORT}/tcp"))
        .annotation("viproute.io/health", "tcp interval=200ms fall=2")
}

fn heavy() -> Join {
    web().annotation("viproute.io/weight", "3")
}

fn both() -> Join {
    Join::annotated("web,dns")
        .annotation("viproute.io/ports", &format!("web={PORT}/tcp,dns=53/udp"))
        .annotation("viproute.io/udp-reply", "vip")
        .annotation("viproute.io/udp-sticky", "true")
}

/// A node of the release before. Fields are dropped in this order.
struct Scene {
    servers: Vec<Crowd>,
    _dns: Echo,
    sidecar: Option<Sidecar>,
    pods: Vec<(Pod, Join)>,
    /// Of each pod, before it joined.
    before: Vec<Snapshot>,
    client: Netns,
    node: Node,
    _lan: Lan,
    /// The VIPs web and dns.
    vips: [Ipv4Addr; 2],
}

impl Scene {
    fn new() -> Self {
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Some(Sidecar::of(&previous("viprouted"), &node, POOL));
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let pods: Vec<_> = [web(), heavy(), both(), web()].map(|join| (node.pod(), join)).into();
        let before = pods.iter().map(|(pod, _)| alone(pod)).collect();
        let servers = pods.iter().map(|(pod, _)| Crowd::start(pod)).collect();
        let dns = Echo::on(&pods[2].0, Ipv4Addr::UNSPECIFIED, 53);
        for (pod, join) in &pods {
            let (environment, stdin) = (node.environment("ADD", pod, join), node.stdin("ADD", pod, join));
            let result = node.run(&mut node.ns.cmd(previous("viproute")), &environment, &stdin.to_string()).ok();
            *pod.result.lock().unwrap() = Some(result);
        }
        let web = pods[0].0.vip();
        let dns_vip = pods[2].0.vips().into_iter().find(|vip| *vip != web).expect("a second VIP");
        Self { servers, _dns: dns, sidecar, pods, before, client, node, _lan: lan, vips: [web, dns_vip] }
    }

    /// The state of each pod's endpoint of web, as its record has it.
    fn states(&self) -> Vec<String> {
        let state = |(pod, _): &(Pod, Join)| {
            let path = format!("{}/vips/default_web/endpoints/{}@eth0.json", self.node.data(), pod.id);
            let record: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("a record")).expect("JSON");
            record["state"].as_str().expect("a state").to_owned()
        };
        self.pods.iter().map(state).collect()
    }

    fn ctl(&self, program: &str, arguments: &[&str]) {
        let mut command = self.node.ns.cmd(program);
        command.args(["--data-dir", &self.node.data(), "--allocator", &self.node.socket()]).args(arguments);
        command.finish("").ok();
    }

    fn check_all(&self, when: &str) {
        for (pod, join) in &self.pods {
            let reply = self.node.check(pod, join);
            assert!(reply.succeeded(), "{when}, CHECK of {}: {}", pod.name, reply.error().text());
        }
    }

    /// An unbound socket's answer comes from the VIP, and a port that wasn't declared isn't served.
    fn keeps_its_rules(&self, when: &str) {
        let [web, dns] = self.vips;
        let answer = self.client.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
            socket.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
            // Connected: it receives from the VIP alone.
            socket.connect((dns, 53)).and_then(|()| socket.send(b"who")).expect("ask");
            let mut buffer = [0; 64];
            let length =
                socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{when}: no answer from {dns}: {error}"));
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        assert!(answer.starts_with("p3 "), "{when}: {answer}");
        let refused = self.client.run(|| std::net::TcpStream::connect_timeout(&(web, PORT + 1).into(), scaled(SOON)));
        assert_eq!(refused.map_err(|error| error.kind()).err(), Some(std::io::ErrorKind::ConnectionRefused), "{when}");
    }

    /// The schema of every record of the registry's.
    fn schemas(&self) -> Vec<u64> {
        let records = self.node.records();
        let schema = |line: &String| {
            let (path, text) = line.split_once(".json: ").expect("a record");
            let record: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
            record["schema"].as_u64().unwrap_or_else(|| panic!("{path} has no schema: {text}"))
        };
        records.iter().map(schema).collect()
    }
}

/// What of a pod a DEL has to put back.
fn alone(pod: &Pod) -> Snapshot {
    let nowhere = Path::new("/nonexistent");
    Snapshot::take(&[(&pod.name, &pod.ns)], nowhere, nowhere)
}

/// What goes on all the time.
struct Traffic {
    flows: [Flows; 2],
    storm: Storm,
}

impl Traffic {
    fn start(scene: &Scene) -> Self {
        let web = scene.vips[0];
        let (client, node) = (&scene.client, &scene.node.ns);
        let flows = [Flows::open("the client", client, web, LIVE), Flows::open("the node", node, web, LIVE)];
        assert!(flows.iter().all(|flows| flows.live().len() == 4), "each pod has connections");
        Self { flows, storm: Storm::start(client, web, 200) }
    }

    /// Every live connection that didn't begin with a pod that is `gone` is answered.
    fn lives(&mut self, when: &str, gone: &[String]) {
        self.flows.iter_mut().for_each(Flows::ask);
        self.flows.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = self.flows.iter().filter_map(|flows| flows.complaint(gone)).collect();
        assert!(complaints.is_empty(), "{when}: {}", complaints.join("\n"));
    }

    /// All 300 of them are, so are new ones, by others than the drained pod, and its other promises hold.
    fn is_well(&mut self, scene: &Scene, when: &str) {
        self.lives(when, &[]);
        let live: usize = self.flows.iter().map(|flows| flows.live().values().sum::<usize>()).sum();
        assert_eq!(live, 2 * LIVE, "{when}");
        let seen = self.storm.next(100);
        assert_eq!((seen.of("p4"), seen.failed), (0, Vec::new()), "{when}");
        scene.keeps_its_rules(when);
    }

    /// Each pod's DEL breaks its own connections and leaves it as it was; in the end nothing is left.
    fn remove_all(mut self, scene: &mut Scene) {
        let mut gone = Vec::new();
        for ((pod, join), before) in scene.pods.iter().zip(&scene.before) {
            scene.node.del(pod, join).ok();
            before.assert_same(&alone(pod), &format!("DEL of {}", pod.name));
            gone.push(pod.name.clone());
            if gone.len() < scene.pods.len() {
                self.lives("other pods' DELs", &gone);
            }
        }
        nothing_left(&scene.node);
        scene.sidecar.take().expect("the new daemon").stop();
    }
}

#[test]
fn a_node_upgraded_under_traffic_breaks_nothing() {
    let mut scene = Scene::new();
    until("the old release's checks", PATIENCE, || (scene.states() == ["ready"; 4]).then_some(()));
    let mut traffic = Traffic::start(&scene);
    scene.ctl(&previous("viproutectl"), &["drain", "default/p4"]);
    assert_eq!(scene.states(), ["ready", "ready", "ready", "draining"]);
    traffic.storm.next(100); // those that had begun before
    traffic.is_well(&scene, "before");

    // install.sh replaces the plugin first: for a moment it calls the old daemon. Its first ADD loads its build's programs.
    let late = scene.node.pod();
    scene.before.push(alone(&late));
    scene.servers.push(Crowd::start(&late));
    scene.node.add(&late, &web()).ok();
    scene.pods.push((late, web()));
    scene.check_all("the new plugin beside the old daemon");
    traffic.is_well(&scene, "the new plugin beside the old daemon");

    scene.sidecar.take().expect("the old daemon").stop();
    traffic.is_well(&scene, "between the daemons");
    scene.sidecar = Some(Sidecar::start(&scene.node, POOL));
    let states = ["ready", "ready", "ready", "draining", "ready"];
    until("the new daemon's checks", PATIENCE, || (scene.states() == states).then_some(()));
    traffic.is_well(&scene, "the new daemon");
    scene.check_all("the new daemon");
    until("one schema in all records", PATIENCE, || {
        let schemas = scene.schemas();
        schemas.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    });

    scene.ctl(VIPROUTECTL, &["undrain", "default/p4"]);
    until("p4 is back", PATIENCE, || (scene.states() == ["ready"; 5]).then_some(()));
    let names = connect(&scene.client, scene.vips[0], 400).names;
    assert!(names.len() == 5 && names["p2"] > names["p1"], "all have their shares, p2 a bigger one: {names:?}");
    assert_eq!(traffic.storm.seen().failed, [""; 0]);
    traffic.remove_all(&mut scene);
}
