//! Files of the registry that are torn, emptied, foreign, garbage or of a newer version, each at each place: they are named
//! and left alone, no traffic suffers, and when the pods are removed nothing is left.

use std::fs;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::harness::{Join, Lan, Node, Pod, PodServer, Sidecar, connect, serve_all};

const KINDS: [&str; 5] = ["torn", "empty", "foreign", "garbage", "newer"];

/// What `text` becomes.
fn damaged(kind: &str, text: &str) -> Vec<u8> {
    match kind {
        "torn" => text.as_bytes()[..text.len() / 2].to_vec(),
        "empty" => Vec::new(),
        "foreign" => br#"{"somebody": "else's"}"#.to_vec(),
        "garbage" => vec![0xff, 0, 0x7b, 0xfe, 0x0a],
        _ => {
            let mut record: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            record.insert("schema".into(), json!(99));
            Value::Object(record).to_string().into_bytes()
        }
    }
}

fn web() -> Join {
    Join::annotated("web")
}

fn safe() -> Join {
    Join::annotated("safe")
}

/// Two replicas of `web`, something of which will be damaged, and one of `safe`.
struct Scene {
    pods: [Pod; 2],
    other: Pod,
    late: Pod,
    servers: Vec<PodServer>,
    vips: [Ipv4Addr; 2],
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let pods = [node.joined(&web()), node.joined(&web())];
        let other = node.joined(&safe());
        let mut servers = serve_all(&pods);
        servers.push(PodServer::start(&other));
        let vips = [pods[0].vip(), other.vip()];
        let late = node.pod();
        Self { pods, other, late, servers, vips, node, _lan: lan }
    }

    /// Damages `place` (a path in the registry, `POD` standing for the first pod's attachment); returns what it says now.
    fn damage(&self, place: &str, kind: &str) -> (String, Vec<u8>) {
        let path = format!("{}/{}", self.node.data(), place.replace("POD", &format!("{}@eth0", self.pods[0].id)));
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let now = damaged(kind, &String::from_utf8_lossy(&text));
        fs::write(&path, &now).unwrap();
        (path, now)
    }

    fn served(&self) {
        for vip in self.vips {
            connect(&self.node.ns, vip, 4);
        }
    }

    fn all(&self) -> [&Pod; 3] {
        [&self.pods[0], &self.pods[1], &self.other]
    }

    /// The pods go, by DEL as far as that works and by GC; nothing of ours is left. How many damaged records DEL spoke of.
    fn leave(self, what: &str) -> usize {
        let mut removed = 0;
        drop(self.servers);
        for pod in [&self.pods[0], &self.pods[1], &self.late] {
            let reply = self.node.del(pod, &web());
            assert!(reply.succeeded(), "{what}: {reply:?}");
            assert!(reply.0.stdout.is_empty(), "{what}: {reply:?}");
            removed += reply.0.stderr.matches("viproute: removing an unusable record path=").count();
        }
        self.node.del(&self.other, &safe()).ok();
        self.node.gc(&[], &web()).ok();
        assert_eq!(self.node.records(), Vec::<String>::new(), "{what}");
        assert_eq!(self.node.ns.ip("nexthop show proto 118") + &self.node.ns.ip("route show proto 118"), "", "{what}");
        assert!(!self.node.ns.ip("-brief link").contains("vip"), "{what}");
        for pod in [&self.pods[0], &self.pods[1], &self.other] {
            assert!(!pod.ns.ip("-4 rule").contains("118"), "{what}");
        }
        removed
    }
}

/// A record that says what nothing else says: what needs it names it, it isn't removed while its pod lives, and what removes it
/// says so, `told` times.
fn record(place: &str, told: usize) {
    for kind in KINDS {
        let what = format!("{place}, {kind}");
        let scene = Scene::new();
        let (path, text) = scene.damage(place, kind);
        let check = scene.node.check(&scene.pods[0], &web()).error();
        assert!(check.text().contains(&path), "{what}: {check:?}");
        let collected = scene.node.gc(&scene.all(), &web());
        if !collected.succeeded() {
            let error = collected.error();
            assert_eq!(error.code, 105, "{what}: {error:?}");
            assert!(error.text().contains(&path), "{what}: {error:?}");
        }
        assert_eq!(fs::read(&path).unwrap(), text, "{what}, after CHECK and GC");
        scene.served();
        let joined = scene.node.add(&scene.late, &Join::annotated("web,safe"));
        if !joined.succeeded() {
            let error = joined.error();
            assert_eq!(error.code, 105, "{what}: {error:?}");
            assert!(error.text().contains(&path), "{what}: {error:?}");
        }
        assert_eq!(fs::read(&path).unwrap(), text, "{what}, after another pod's ADD");
        scene.node.del(&scene.late, &Join::annotated("web,safe")).ok();
        scene.served();
        scene.node.check(&scene.other, &safe()).ok();
        assert_eq!(scene.leave(&what), told, "{what}");
    }
}

#[test]
fn a_vips_record() {
    record("vips/default_web/vip.json", 1);
}

#[test]
fn an_endpoint() {
    // Its attachment says all that DEL needs.
    record("vips/default_web/endpoints/POD.json", 0);
}

#[test]
fn an_attachment() {
    record("attachments/POD.json", 1);
}

/// What can be told otherwise is: all goes on as if nothing had happened.
fn derived(place: &str, kinds: &[&str]) {
    for kind in kinds {
        let what = format!("{place}, {kind}");
        let scene = Scene::new();
        let before = scene.node.ns.ip("nexthop show proto 118") + &scene.node.ns.ip("route show proto 118");
        scene.damage(place, kind);
        scene.node.gc(&scene.all(), &web()).ok();
        for (pod, join) in [(&scene.pods[0], web()), (&scene.pods[1], web()), (&scene.other, safe())] {
            scene.node.check(pod, &join).ok();
        }
        let after = scene.node.ns.ip("nexthop show proto 118") + &scene.node.ns.ip("route show proto 118");
        assert_eq!(before, after, "{what}");
        scene.served();
        scene.damage(place, kind);
        scene.node.add(&scene.late, &Join::annotated("web,fresh")).ok();
        scene.node.check(&scene.late, &Join::annotated("web,fresh")).ok();
        scene.damage(place, kind);
        scene.node.del(&scene.late, &Join::annotated("web,fresh")).ok();
        scene.served();
        scene.damage(place, kind);
        scene.leave(&what);
    }
}

#[test]
fn an_index() {
    derived("vips/default_web/index.json", &KINDS);
}

#[test]
fn a_vips_lock() {
    derived("vips/default_web/lock", &KINDS);
}

#[test]
fn the_lock() {
    derived("lock", &KINDS);
}

/// It can't be told whether this is another boot's state; but pods of the registry are alive.
#[test]
fn the_boot_id() {
    derived("boot-id", &KINDS);
}

/// With an unusable boot id and no living pod it is another boot's state, or as good as that.
#[test]
fn the_boot_id_of_pods_that_are_gone() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let join = Join::annotated("web");
    for kind in KINDS {
        drop(node.joined(&join));
        let path = format!("{}/boot-id", node.data());
        fs::write(&path, damaged(kind, &fs::read_to_string(&path).unwrap())).unwrap();
        let pod = node.joined(&join);
        node.check(&pod, &join).ok();
        assert_eq!(node.ns.ip_json("nexthop show proto 118").len(), 2, "{kind}: the one new replica and its group");
        node.remove(&pod, &join);
    }
}

/// Its address may be in use, and only a person can tell: the VIP is refused by the file's name, others are not.
#[test]
fn a_lease() {
    let lan = Lan::new();
    for kind in KINDS {
        let node = Node::without_allocator(&lan, 1);
        let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
        let held = sidecar.acquire("default/held").unwrap();
        sidecar.acquire("default/web").unwrap();
        sidecar.stop();
        let path = node.dir.file("state/leases/default_web.json");
        let text = damaged(kind, &fs::read_to_string(&path).unwrap());
        fs::write(&path, &text).unwrap();
        let sidecar = Sidecar::pool(&node, "10.118.0.0/24");
        let error = sidecar.acquire("default/web").unwrap_err();
        assert!(error.code == 5 && error.msg.contains(&path), "{kind}: {error:?}");
        assert_eq!(sidecar.acquire("default/held").unwrap(), held);
        sidecar.acquire("default/new").unwrap();
        sidecar.stop();
        assert_eq!(fs::read(&path).unwrap(), text, "{kind}");
        node.ns.ip("link del eth0");
    }
}
