//! Readiness: a replica gets connections while its check says that it can answer, and not before; when it no longer can
//! it keeps those it has.

mod flapping;
mod restart;
mod rolling;
mod sockets;
mod unserved;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Flows, HttpServer, Join, Lan, Netns, Node, PATIENCE, PORT, Page, Pod, PodServer, Run, SILENCE, SOON, Sidecar,
    Storm, allow_many_files, bare_pod, connect, for_each, status, tool, until,
};

/// The port of pods' HTTP servers.
const HTTP: u16 = 8081;

/// A node with the agent, and a client. Fields are dropped in this order.
struct Scene {
    sidecar: Option<Sidecar>,
    client: Netns,
    node: Node,
    lan: Lan,
}

/// A pod that asks for `check`.
fn web(check: &str) -> Join {
    let ports = format!("{PORT}/tcp");
    Join::annotated("web").annotation("viproute.io/ports", &ports).annotation("viproute.io/health", check)
}

impl Scene {
    fn new() -> Self {
        allow_many_files();
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let sidecar = Some(Sidecar::pool(&node, "10.118.0.0/24"));
        Self { sidecar, client, node, lan }
    }

    fn vip(&self) -> Ipv4Addr {
        let record = std::fs::read(self.node.data() + "/vips/default_web/vip.json").expect("the VIP's record");
        let record: Value = serde_json::from_slice(&record).expect("a record is JSON");
        record["addresses"][0].as_str().and_then(|text| text.parse().ok()).expect("the VIP's address")
    }

    /// What status says of a replica; read under the VIP's lock, so that the kernel is as the state says.
    fn replica(&self, pod: &Pod) -> Value {
        let vip = status(&self.node, self.vip());
        let name = format!("default/{}", pod.name);
        let replicas = vip["replicas"].as_array().expect("a list of replicas");
        replicas
            .iter()
            .find(|replica| replica["pod"] == json!(name))
            .unwrap_or_else(|| panic!("no {name} in {vip}"))
            .clone()
    }

    fn state(&self, pod: &Pod) -> String {
        self.replica(pod)["state"].as_str().expect("a state").to_owned()
    }

    fn becomes(&self, pod: &Pod, state: &str) {
        until(&format!("{} is {state}", pod.name), PATIENCE, || (self.state(pod) == state).then_some(()));
    }

    /// Pods that serve and are ready.
    fn ready(&self, join: &Join, count: usize) -> Vec<(PodServer, Pod)> {
        let served = |pod| (PodServer::start(&pod), pod);
        let pods: Vec<_> = (0..count).map(|_| served(self.node.joined(join))).collect();
        for (_, pod) in &pods {
            self.becomes(pod, "ready");
        }
        pods
    }

    /// How many replicas of the VIP a check has brought to `state`, since the agent's start.
    fn transitions(&self, state: &str) -> i64 {
        let labels = [("namespace", "default"), ("to", state), ("vip", "web")];
        Page::of(&self.node).value("viproute_health_transitions_total", &labels)
    }

    /// So many have come to `ready` and to `draining`. A change is counted just after it was made.
    fn has_transitions(&self, ready: i64, draining: i64) {
        let counted = || (self.transitions("ready"), self.transitions("draining"));
        until("transitions are counted", SOON, || (counted() >= (ready, draining)).then_some(()));
        assert_eq!(counted(), (ready, draining), "replicas that became ready, and draining");
    }

    /// Its state stays the same while its check is made a few times.
    fn stays(&self, pod: &Pod, state: &str) {
        for _ in 0..5 {
            assert_eq!(self.state(pod), state, "{}", pod.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_pod_gets_nothing_before_it_listens_and_its_share_after() {
    let scene = Scene::new();
    let join = web("listen interval=200ms");
    let _others = scene.ready(&join, 2);
    let storm = Storm::start(&scene.client, scene.vip(), 200);
    let late = scene.node.joined(&join);
    assert_eq!(scene.state(&late), "pending");
    scene.node.check(&late, &join).ok();
    // Two seconds.
    let seen = storm.next(400);
    assert_eq!((seen.of(&late.name), &seen.failed[..]), (0, &[][..]), "before {} listens", late.name);
    assert_eq!(scene.state(&late), "pending");
    let _server = PodServer::start(&late);
    until("its share", PATIENCE, || {
        let seen = storm.next(300);
        assert_eq!(seen.failed, [""; 0]);
        (seen.of(&late.name) * 5 > seen.answers()).then_some(())
    });
    assert_eq!(scene.state(&late), "ready");
}

#[test]
fn a_replica_whose_listener_closes_keeps_its_connections_and_gets_no_new_ones() {
    let scene = Scene::new();
    let mut pods = scene.ready(&web("listen interval=200ms fall=2"), 2);
    let mut flows = Flows::open("the client", &scene.client, scene.vip(), 100);
    let (server, leaving) = pods.remove(0);
    drop(server);
    scene.becomes(&leaving, "draining");
    scene.has_transitions(2, 1);
    assert_eq!(connect(&scene.client, scene.vip(), 100).names.get(&leaving.name), None);
    flows.ask();
    flows.hear();
    assert_eq!((flows.complaint(&[]), flows.live().len()), (None, 2), "replicas with live connections");
    // It is taken back as it is: with the connections it has.
    let _server = PodServer::start(&leaving);
    scene.becomes(&leaving, "ready");
    assert!(connect(&scene.client, scene.vip(), 100).names.contains_key(&leaving.name));
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
}

#[test]
fn http_says_when() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web("http:8081/ready?now=1 interval=100ms timeout=100ms fall=2"));
    scene.stays(&pod, "pending");
    let server = HttpServer::start(&pod, HTTP, 500);
    scene.stays(&pod, "pending");
    for (status, state) in [
        (200, "ready"),
        (503, "draining"),
        (302, "ready"),
        (SILENCE, "draining"),
        (204, "ready"),
        (404, "draining"),
        (399, "ready"),
    ] {
        server.answer(status);
        scene.becomes(&pod, state);
    }
    let log = scene.sidecar.as_ref().unwrap().daemon.log();
    let said = format!("GET /ready?now=1 from {}:8081 is answered by 503", scene.vip());
    assert!(log.contains(&said), "{said:?} isn't in the log");
}

/// A web server that knows nothing of the tests.
#[test]
fn http_of_a_common_server() {
    let scene = Scene::new();
    let root = scene.node.dir.file("www");
    std::fs::create_dir(&root).expect("a directory for the web server");
    let pod = scene.node.joined(&web("http:8081/ready.txt interval=100ms fall=1"));
    let busybox = tool("busybox");
    let mut httpd = pod.ns.cmd(busybox.to_str().expect("a path"));
    httpd.args(["httpd", "-f", "-p", "8081", "-h", &root]);
    let _httpd = crate::harness::Daemon::start("httpd", &mut httpd, &scene.node.dir);
    scene.stays(&pod, "pending");
    std::fs::write(format!("{root}/ready.txt"), "yes").expect("write a file");
    scene.becomes(&pod, "ready");
    std::fs::remove_file(format!("{root}/ready.txt")).expect("remove a file");
    scene.becomes(&pod, "draining");
}

/// What is asked is the server that answers for the VIP.
#[test]
fn tcp_connects_to_the_vip_in_the_pod() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web("tcp interval=100ms fall=1"));
    let bind = |address: Ipv4Addr| pod.ns.run(|| TcpListener::bind((address, PORT))).expect("a server in a pod");
    let elsewhere = bind(pod.address());
    scene.stays(&pod, "pending");
    drop(elsewhere);
    let listener = bind(pod.vip());
    scene.becomes(&pod, "ready");
    // It sees the VIP as its client, and a reset that leaves nothing behind.
    let (_, client) = listener.accept().expect("the check's connection");
    assert_eq!(client.ip(), pod.vip());
    drop(listener);
    scene.becomes(&pod, "draining");
    assert_eq!(pod.ns.cmd("ss").args(["-tanH", "state", "time-wait"]).finish("").ok(), "");
}

/// One that says nothing delays no other check.
#[test]
fn slow_servers_delay_nobody() {
    let scene = Scene::new();
    let silent: Vec<_> = (0..3)
        .map(|_| {
            let pod = scene.node.joined(&web("http:8081/ interval=60s timeout=10s"));
            (HttpServer::start(&pod, HTTP, SILENCE), pod)
        })
        .collect();
    let _ready = scene.ready(&web("tcp interval=200ms"), 2);
    for (_, pod) in &silent {
        assert_eq!(scene.state(pod), "pending");
    }
}

/// Every port counts, those of UDP too; and each VIP's own.
#[test]
fn listen_wants_every_port_of_the_vip() {
    let scene = Scene::new();
    let join = Join::annotated("web,dns")
        .annotation("viproute.io/ports", &format!("web={PORT}/tcp,dns=53/tcp,dns=53/udp"))
        .annotation("viproute.io/health", "listen interval=100ms fall=1");
    let pod = scene.node.joined(&join);
    let dns = || {
        let address = pod.vips().into_iter().find(|address| *address != scene.vip()).expect("the other VIP");
        status(&scene.node, address)["ready"].as_u64().expect("a number")
    };
    let _web = PodServer::start(&pod);
    scene.becomes(&pod, "ready");
    let _tcp = pod.ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53))).expect("a server in a pod");
    for _ in 0..5 {
        assert_eq!(dns(), 0, "UDP is missing");
        std::thread::sleep(Duration::from_millis(100));
    }
    let udp = pod.ns.run(|| UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 53)))).expect("a server in a pod");
    until("dns is ready", PATIENCE, || (dns() == 1).then_some(()));
    drop(udp);
    until("dns is not ready", PATIENCE, || (dns() == 0).then_some(()));
    assert_eq!(scene.state(&pod), "ready", "the other VIP's ports are none of its business");
}

/// The pod's own word goes before the network's.
#[test]
fn the_conflist_says_it_for_pods_that_dont() {
    let scene = Scene::new();
    let ports = format!("{PORT}/tcp");
    let join = Join::annotated("web").annotation("viproute.io/ports", &ports).key("health", json!("tcp interval=2s"));
    let pod = scene.node.joined(&join);
    assert_eq!(scene.replica(&pod)["health"], "tcp interval=2s");
    assert_eq!(scene.state(&pod), "pending");
    let other = scene.node.joined(&join.annotation("viproute.io/health", "none"));
    assert_eq!((scene.state(&other).as_str(), &scene.replica(&other)["health"]), ("ready", &Value::Null));
}

#[test]
fn a_replica_whose_namespace_is_gone_drains_until_it_is_deleted() {
    let scene = Scene::new();
    let join = web("listen interval=200ms");
    let (server, mut pod) = scene.ready(&join, 1).remove(0);
    let address = scene.vip();
    drop(server);
    drop(std::mem::replace(&mut pod.ns, Netns::new()));
    scene.becomes(&pod, "draining");
    scene.node.del(&pod, &join).ok();
    assert_eq!(scene.node.ns.ip(&format!("route show {address}")), "");
}

/// How many pods are checked below, unless `VIPROUTE_HEALTH_REPLICAS` says otherwise.
const MANY: usize = 60;

/// With 1,000 it is a measurement: what the checks cost is printed.
#[test]
fn many_replicas_are_ready_together_and_stay_so() {
    let many =
        std::env::var("VIPROUTE_HEALTH_REPLICAS").map_or(MANY, |text| text.parse().expect("a number of replicas"));
    let scene = Scene::new();
    let join = web("listen");
    let add = |number| {
        let pod = bare_pod(number);
        let server = pod.ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))).expect("a server in a pod");
        scene.node.add(&pod, &join).ok();
        (server, pod)
    };
    let first = add(1);
    let _others = for_each(2..many + 1, add);
    let ready = || status(&scene.node, scene.vip())["ready"].as_u64().and_then(|ready| usize::try_from(ready).ok());
    until("all are ready", PATIENCE, || (ready() == Some(many)).then_some(()));
    let sidecar = scene.sidecar.as_ref().unwrap();
    // A full read of the registry, every 30 s, belongs to it.
    let rest = if many > MANY { Duration::from_secs(60) } else { Duration::from_secs(2) };
    let before = sidecar.daemon.cpu_time();
    std::thread::sleep(rest);
    let used = sidecar.daemon.cpu_time().saturating_sub(before);
    eprintln!(
        "{many} replicas checked each second: {:.2} % of a core",
        used.as_secs_f64() / rest.as_secs_f64() * 100.0
    );
    assert_eq!(ready(), Some(many));
    scene.has_transitions(i64::try_from(many).expect("a small number"), 0);
    let log = sidecar.daemon.log();
    assert!(!log.contains(ONE_BY_ONE), "all are asked for together");
    drop(first);
}

/// What is logged where no program can ask for all at once.
const ONE_BY_ONE: &str = "each pod that is to listen is asked by itself";

#[test]
fn pods_are_asked_one_by_one_where_bpf_is_not_permitted() {
    let mut scene = Scene::new();
    drop(scene.sidecar.take());
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
    let refused = ["-D", "-f", "-o", "/dev/null", "-e", "inject=bpf:error=EPERM"];
    scene.sidecar = Some(Sidecar::run_by("strace", &refused, &scene.node, settings));
    let join = web("listen interval=100ms").key("flowOwner", json!("off"));
    let (server, pod) = scene.ready(&join, 1).remove(0);
    scene.stays(&pod, "ready");
    drop(server);
    scene.becomes(&pod, "draining");
    let log = scene.sidecar.as_ref().expect("a sidecar").daemon.log();
    assert_eq!(log.matches(ONE_BY_ONE).count(), 1, "{log}");
}
