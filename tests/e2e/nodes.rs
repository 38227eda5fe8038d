//! Nodes that know of each other: three on one LAN, each with its viprouted.

mod arp;
mod death;
mod ipv6;
mod leases;
mod leaving;
mod live;
mod pool;
mod ports;
mod redirect;
mod scale;
mod unbroken;
mod underlay;
mod upgrade;
mod versions;
mod zones;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use viproute::internals::model::{Family, NodeId};

use crate::harness::{
    Finished, Join, Lan, Node, PATIENCE, PORT, Page, Pod, Run, SOON, Sidecar, TempDir, VIPROUTECTL, connect, serve_all,
    until,
};

const WEB: &str = "10.118.9.1";
/// What discard routes are known by.
const DISCARD: &str = "metric 4278190079";

fn web() -> Join {
    Join::annotated("web")
}

/// The network of VIPs' second addresses.
const CIDR6: &str = "fd00:118::/96";

/// The address of IPv6 that the VIP has beside, where it has one.
fn six() -> Ipv6Addr {
    format!("fd00:118::{WEB}").parse().expect("an address")
}

/// Where a node is on the LAN.
fn at(number: u8, underlay: Family) -> IpAddr {
    match underlay {
        Family::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// A node with its viprouted. Its own VIP has a pod, so that its programs are where the test has them.
struct Member {
    sidecar: Option<Sidecar>,
    pod: Pod,
    node: Node,
    settings: String,
    /// What its addresses on the LAN are of.
    underlay: Family,
}

impl Member {
    fn settings(number: u8, key: &str, underlay: Family) -> String {
        let seeds = [1, 2, 3].map(|seed| at(seed, underlay).to_string());
        let (allowed, cidr6) = match underlay {
            Family::V4 => (String::new(), String::new()),
            Family::V6 => (format!(", {CIDR6:?}"), format!("cidr6 = {CIDR6:?}\n")),
        };
        format!(
            "backend = \"pool\"\nannounce = \"arp\"\nallow = [\"10.118.0.0/16\"{allowed}]\n[pool]\ncidr = \"10.118.{number}.0/24\"\n{cidr6}\
             [[pin]]\nvip = \"default/web\"\naddress = \"{WEB}\"\n\
             [[pin]]\nvip = \"default/own{number}\"\naddress = \"10.118.{number}.1\"\n\
             [membership]\nseeds = {seeds:?}\nkey_file = {key:?}\nname = \"n{number}\""
        )
    }

    fn new(lan: &Lan, number: u8, key: &str) -> Self {
        Self::over(Family::V4, lan, number, key)
    }

    /// One that has addresses of that family on the LAN, and with IPv6 no others.
    fn over(underlay: Family, lan: &Lan, number: u8, key: &str) -> Self {
        let (mut node, settings) = (Node::without_allocator(lan, number), Self::settings(number, key, underlay));
        if underlay == Family::V6 {
            node = node.with_ipv6(lan);
            node.ns.ip("-4 addr flush dev eth0");
        }
        let sidecar = Some(Sidecar::start(&node, &settings));
        let (pod, join) = (node.pod(), Join::annotated(&format!("own{number}")));
        // The node that gives out the pool's addresses may not be heard yet: a runtime asks again (CNI specification, code 11).
        until("the node's own VIP", SOON, || node.add(&pod, &join).succeeded().then_some(()));
        Self { sidecar, pod, node, settings, underlay }
    }

    fn name(&self) -> String {
        format!("n{}", self.node.address().octets()[3])
    }

    fn daemon(&self) -> &crate::harness::Daemon {
        &self.sidecar.as_ref().expect("viprouted runs").daemon
    }

    fn stop(&mut self) {
        self.sidecar.take().expect("viprouted runs").stop();
    }

    fn start(&mut self) {
        self.sidecar = Some(Sidecar::start(&self.node, &self.settings));
    }

    fn ctl(&self, arguments: &[&str]) -> Finished {
        self.node.ctl().args(arguments).finish("")
    }

    /// What doctor finds.
    fn doctor(&self) -> String {
        let config = self.node.dir.file("viprouted.toml");
        self.ctl(&["doctor", "--conf-dir", "/nonexistent", "--config", &config]).stdout
    }

    fn nodes(&self) -> Value {
        serde_json::from_str(&self.ctl(&["nodes", "--output", "json"]).ok()).expect("JSON")
    }

    /// The others' names and states, by name.
    fn states(&self) -> Vec<(String, String)> {
        let text = |node: &Value, key: &str| node[key].as_str().expect("text").to_owned();
        let nodes = self.nodes();
        let all = nodes["nodes"].as_array().expect("nodes").iter();
        let mut all: Vec<_> = all.map(|node| (text(node, "name"), text(node, "state"))).collect();
        all.sort();
        all
    }

    fn sees(&self, what: &str, limit: Duration, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
        until(what, limit, || (self.states() == expected).then_some(()));
    }

    fn finds(&self, what: &str) {
        until(what, SOON, || self.nodes()["findings"].to_string().contains(what).then_some(()));
    }

    /// `nodes.json`.
    fn recorded(&self) -> Value {
        let text = fs::read_to_string(format!("{}/nodes.json", self.node.data())).expect("nodes.json");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Who the other nodes' records of web are of: node, as where it is by IPv4, state and weight.
    fn legs(&self) -> Vec<(String, String, u64)> {
        let dir = format!("{}/vips/default_web/endpoints", self.node.data());
        let mut legs = Vec::new();
        for file in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = file.file_name().into_string().expect("a name");
            let Ok(text) = fs::read_to_string(file.path()) else { continue };
            if name.ends_with("@peer.json") && !name.starts_with('.') {
                let record: Value = serde_json::from_str(&text).expect("JSON");
                let [node, state] = ["node", "state"].map(|key| record[key].as_str().expect("text").to_owned());
                let is_it = |number: &u8| NodeId::of(at(*number, Family::V6)).to_string() == node;
                let of_ipv6 = (1..=9).find(is_it).map(|number| at(number, Family::V4).to_string());
                legs.push((of_ipv6.unwrap_or(node), state, record["weight"].as_u64().expect("a weight")));
            }
        }
        legs.sort();
        legs
    }

    fn has(&self, what: &str, expected: &[(&str, &str, u64)]) {
        let expected: Vec<_> =
            expected.iter().map(|(node, state, weight)| ((*node).to_owned(), (*state).to_owned(), *weight)).collect();
        let mut found = Vec::new();
        let fine = || {
            found = self.legs();
            (found == expected).then_some(())
        };
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| until(what, SOON, fine)));
        assert!(waited.is_ok(), "{what}: want {expected:?}, found {found:?}\n{}", self.daemon().log());
    }

    /// Until its table lets these into the tunnel, and nobody else.
    fn lets_in(&self, expected: &str) {
        until(&format!("{expected:?} are let in"), SOON, || {
            let listed = self.node.ns.cmd("nft").args(["list", "set", "ip", "viproute", "members"]).finish("").stdout;
            let elements = listed.split_once("elements = {")?.1.split_once('}')?.0;
            (elements.split_whitespace().collect::<String>() == expected).then_some(())
        });
    }

    /// The VIP's routes; the pin's discard route stays.
    fn routes(&self) -> String {
        let routes = self.node.ns.ip(&format!("route show {WEB} proto 118"));
        routes.lines().filter(|line| !line.contains(DISCARD)).collect::<Vec<_>>().join("\n")
    }
}

pub fn new_key(dir: &TempDir, name: &str) -> String {
    let path = dir.file(name);
    let said = std::process::Command::new(VIPROUTECTL).args(["key", "new", &path]).finish("").ok();
    assert!(said.contains("is a new key"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    path
}

struct Scene {
    members: Vec<Member>,
    key: String,
    dir: TempDir,
    lan: Lan,
}

impl Scene {
    fn new(nodes: u8) -> Self {
        Self::over(Family::V4, nodes)
    }

    /// Of nodes that have addresses of that family on the LAN, and with IPv6 no others.
    fn over(underlay: Family, nodes: u8) -> Self {
        let (lan, dir) = (Lan::new(), TempDir::new());
        let key = new_key(&dir, "membership.key");
        let members = (1..=nodes).map(|number| Member::over(underlay, &lan, number, &key)).collect();
        let scene = Self { members, key, dir, lan };
        for (at, member) in scene.members.iter().enumerate() {
            let others = (0..scene.members.len()).filter(|other| *other != at);
            let names: Vec<String> = others.map(|other| format!("n{}", other + 1)).collect();
            let expected: Vec<_> = names.iter().map(|name| (name.as_str(), "live")).collect();
            member.sees("the nodes see each other", SOON, &expected);
        }
        scene
    }

    /// Cuts a node off the LAN, or plugs it in again.
    fn link(&self, member: usize, state: &str) {
        self.lan.ns.ip(&format!("link set port{member} {state}"));
    }
}

#[test]
fn replicas_of_other_nodes_come_and_go() {
    let scene = Scene::new(3);
    let [n1, n2, n3] = &scene.members[..] else { unreachable!() };
    let nodes = n1.recorded();
    assert_eq!(nodes["own"]["id"], "192.0.2.1");
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 2, "{nodes}");
    // The first replica of a VIP that n1 has none of.
    let first = n2.node.joined(&web());
    assert_eq!(first.vip().to_string(), WEB);
    n1.has("n2's first replica", &[("192.0.2.2", "ready", 1)]);
    n3.has("n2's first replica", &[("192.0.2.2", "ready", 1)]);
    until("its route", SOON, || n1.routes().contains("nhid").then_some(()));
    // Routers are not told of what isn't here, and no lease is asked for or kept.
    assert!(n1.routes().contains("metric 4294967295"), "{}", n1.routes());
    assert!(n1.sidecar.as_ref().unwrap().status("default/web").is_none());
    let second = n2.node.joined(&web());
    n1.has("n2's second replica", &[("192.0.2.2", "ready", 2)]);
    n2.ctl(&["drain", &first.id]).ok();
    n1.has("one of them drains", &[("192.0.2.2", "ready", 1)]);
    n2.ctl(&["drain", &second.id]).ok();
    n1.has("both drain", &[("192.0.2.2", "draining", 1)]);
    n2.ctl(&["undrain", &second.id]).ok();
    n1.has("one is back", &[("192.0.2.2", "ready", 1)]);
    // Replicas on two nodes, one of them this one.
    let own = n1.node.joined(&web());
    assert_eq!(own.vip().to_string(), WEB);
    n2.has("n1's", &[("192.0.2.1", "ready", 1)]);
    n3.has("of both", &[("192.0.2.1", "ready", 1), ("192.0.2.2", "ready", 1)]);
    n1.has("n2's beside its own", &[("192.0.2.2", "ready", 1)]);
    n1.node.check(&own, &web()).ok();
    n1.node.gc(&[&own, &n1.pod], &web()).ok();
    n1.has("n2's after GC", &[("192.0.2.2", "ready", 1)]);
    n1.node.remove(&own, &web());
    n2.has("n1 has none any more", &[]);
    n1.has("n2's remains", &[("192.0.2.2", "ready", 1)]);
    for pod in [&first, &second] {
        n2.node.remove(pod, &web());
    }
    for member in &scene.members {
        until("nothing of the VIP is left", SOON, || {
            let dir = format!("{}/vips/default_web", member.node.data());
            (!fs::exists(dir).unwrap() && member.routes().is_empty()).then_some(())
        });
    }
    for member in &scene.members {
        assert!(!member.daemon().log().contains("panicked"), "{}", member.daemon().log());
    }
}

/// Packets of a VIP that another node alone has replicas of, from the first one on.
#[test]
fn a_node_that_has_never_had_a_replica_sends_on() {
    let scene = Scene::new(2);
    let [n1, n2] = &scene.members[..] else { unreachable!() };
    let pods = [n2.node.joined(&web())];
    let _servers = serve_all(&pods);
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    until("the VIP's route is on node 1", SOON, || n1.routes().contains("nhid").then_some(()));
    until("new connections", SOON, || {
        let answered = client
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(pods[0].vip().into(), PORT), Duration::from_secs(1)));
        answered.is_ok().then_some(())
    });
    connect(&client, pods[0].vip(), 50);
}

#[test]
fn a_node_dies_and_another_only_seems_to() {
    let mut scene = Scene::new(3);
    let pods = [scene.members[1].node.joined(&web()), scene.members[2].node.joined(&web())];
    let both: [(&str, &str, u64); 2] = [("192.0.2.2", "ready", 1), ("192.0.2.3", "ready", 1)];
    scene.members[0].has("both", &both);
    // viprouted is away, its kernel isn't: nothing changes for the others.
    scene.members[1].stop();
    scene.members[0].sees("n2 restarts", SOON, &[("n2", "restarting"), ("n3", "live")]);
    let until_back = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until_back {
        assert_eq!(scene.members[0].legs().iter().filter(|leg| leg.1 == "ready").count(), 2);
        sleep(Duration::from_millis(100));
    }
    scene.members[1].start();
    scene.members[0].sees("n2 is back", SOON, &[("n2", "live"), ("n3", "live")]);
    assert_eq!(scene.members[0].legs().len(), 2);
    // A partition of three seconds, and back.
    let numbers = scene.members[0].recorded()["nodes"].to_string();
    scene.link(2, "down");
    scene.members[0].sees("n3 is suspect", SOON, &[("n2", "live"), ("n3", "suspect")]);
    scene.members[0].has("n3 gets nothing new", &[both[0], ("192.0.2.3", "draining", 1)]);
    // Cut off, it keeps its own and does not take the others for dead for good.
    scene.members[2].sees("n3 is alone", SOON, &[("n1", "suspect"), ("n2", "suspect")]);
    sleep(Duration::from_secs(1));
    scene.link(2, "up");
    scene.members[0].sees("n3 is back", SOON, &[("n2", "live"), ("n3", "live")]);
    scene.members[0].has("both again", &both);
    assert_eq!(scene.members[0].recorded()["nodes"].to_string(), numbers);
    // It dies.
    scene.members[2].daemon().signal(Signal::SIGKILL);
    scene.link(2, "down");
    scene.members[0].sees("n3 is suspect", SOON, &[("n2", "live"), ("n3", "suspect")]);
    scene.members[0].has("n3 is dead", &[both[0], ("192.0.2.3", "draining", 1)]);
    // Who is suspect still sends.
    scene.members[0].lets_in("192.0.2.2,192.0.2.3");
    // The last ready legs stay on suspicion alone.
    scene.link(1, "down");
    scene.members[0].has("nobody else is left", &[("192.0.2.2", "ready", 1), ("192.0.2.3", "ready", 1)]);
    scene.link(1, "up");
    scene.members[0].sees("n3 is forgotten", PATIENCE, &[("n2", "live")]);
    scene.members[0].has("n2 alone", &both[..1]);
    scene.members[0].lets_in("192.0.2.2");
    let page = Page::of(&scene.members[0].node);
    assert_eq!(page.value("viproute_nodes", &[("state", "live")]), 1);
    // A node that leaves says so.
    let said = scene.members[1].ctl(&["nodes", "leave"]).ok();
    assert!(said.contains("send no new connections here"), "{said}");
    scene.members[0].sees("n2 leaves", SOON, &[("n2", "left")]);
    scene.members[0].has("n2 gets nothing new", &[("192.0.2.2", "draining", 1)]);
    drop(pods);
}

#[test]
fn who_has_another_key_is_never_heard() {
    let mut scene = Scene::new(2);
    let other = new_key(&scene.dir, "other.key");
    let stranger = Member::new(&scene.lan, 3, &other);
    stranger.finds("seed 192.0.2.1:8119 has another key");
    assert!(stranger.states().is_empty() && scene.members[0].states().len() == 1);
    let dropped = |member: &Member| {
        Page::of(&member.node).value("viproute_gossip_dropped_datagrams_total", &[("reason", "bad_key")])
    };
    assert!(dropped(&scene.members[0]) > 0);
    let found = stranger.doctor();
    assert!(found.contains("has another key") && found.contains("viprouted.toml"), "{found}");
    // Keys are changed on one node after the other, while all hear each other: read again without a restart.
    let text = |path: &str| fs::read_to_string(path).unwrap();
    let (first, second) = (text(&scene.key), text(&other));
    let own = scene.dir.file("n1.key");
    fs::write(&own, format!("{second}\n{first}")).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&scene.key, format!("{first}\n{second}")).unwrap();
    stranger_joins(&scene, &stranger);
    // A key that others may read: viprouted refuses it by name.
    fs::set_permissions(&scene.key, fs::Permissions::from_mode(0o640)).unwrap();
    scene.members[1].stop();
    let mut command = scene.members[1].node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
    command.args(["--config", &scene.members[1].node.dir.file("viprouted.toml")]);
    let refused = command.finish("");
    assert!(!refused.status.success());
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("has mode 0640") && said.contains(&format!("chmod 0600 {}", scene.key)), "{said}");
    let found = scene.members[1].doctor();
    assert!(found.contains("has mode 0640"), "{found}");
}

/// The stranger's key is accepted by the others by now, but theirs isn't by it.
fn stranger_joins(scene: &Scene, stranger: &Member) {
    let path = scene.dir.file("other.key");
    let own = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{own}\n{}", fs::read_to_string(&scene.key).unwrap().lines().nth(1).unwrap())).unwrap();
    stranger.sees("the keys are known on both sides", PATIENCE, &[("n1", "live"), ("n2", "live")]);
    scene.members[0].sees("of the other one, too", PATIENCE, &[("n2", "live"), ("n3", "live")]);
}

#[test]
fn what_was_captured_changes_nothing_when_it_is_sent_again() {
    let mut scene = Scene::new(3);
    let _pod = scene.members[1].node.joined(&web());
    scene.members[0].has("n2's", &[("192.0.2.2", "ready", 1)]);
    // All that n2 sends to n1 for a while.
    let file = scene.dir.file("captured.pcap");
    let mut capture = scene.members[0].node.ns.cmd("tcpdump");
    capture.args(["-i", "eth0", "-w", &file, "-U", "-c", "40", "src 192.0.2.2 and udp dst port 8119"]);
    capture.finish("").ok();
    let datagrams = payloads(&fs::read(&file).unwrap());
    assert!(datagrams.len() >= 40, "{}", datagrams.len());
    // n2 is gone, and another has its address.
    scene.members[1].daemon().signal(Signal::SIGKILL);
    scene.link(1, "down");
    let attacker = scene.lan.client(2, &[]);
    let dropped = |scene: &Scene, reason| {
        Page::of(&scene.members[0].node).value("viproute_gossip_dropped_datagrams_total", &[("reason", reason)])
    };
    let silent = |scene: &Scene| scene.members[0].nodes()["nodes"][0]["silent_ms"].as_u64().expect("a number");
    let send = || {
        attacker.run(|| {
            let socket = UdpSocket::bind("192.0.2.2:8119").unwrap();
            for datagram in &datagrams {
                socket.send_to(datagram, "192.0.2.1:8119").unwrap();
            }
        });
    };
    let before = dropped(&scene, "replay");
    send();
    until("they are counted", SOON, || (dropped(&scene, "replay") >= before + 30).then_some(()));
    // The attacker's kernel answers echoes, so that n2 seems to be there; its viprouted says nothing.
    until("n2's viprouted is silent", SOON, || (silent(&scene) > 3000).then_some(()));
    send();
    sleep(Duration::from_millis(500));
    assert!(silent(&scene) > 3000, "what was captured counts as its word");
    // Neither does it count with a viprouted that was started later.
    scene.members[0].stop();
    scene.members[0].start();
    until("n1 is back", SOON, || (scene.members[0].states().len() == 2).then_some(()));
    send();
    until("they are counted", SOON, || (dropped(&scene, "stale") >= 30).then_some(()));
    assert_eq!(scene.members[0].nodes()["nodes"][0]["version"], "-", "{}", scene.members[0].nodes());
}

/// UDP payloads of Ethernet frames in a file of tcpdump's.
fn payloads(file: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut found) = (24, Vec::new());
    while let Some(header) = file.get(at..at + 16) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let frame = &file[at + 16..at + 16 + length];
        let header = usize::from(frame[14] & 15) * 4;
        let size = usize::from(u16::from_be_bytes([frame[14 + header + 4], frame[14 + header + 5]]));
        found.push(frame[14 + header + 8..14 + header + size].to_vec());
        at += 16 + length;
    }
    found
}

/// One thing is wrong, and it is said once; it is over when it is mended.
#[test]
fn a_tunnel_without_an_address_is_one_problem() {
    let scene = Scene::new(1);
    let node = Node::without_allocator(&scene.lan, 4);
    let settings = format!(
        "backend = \"pool\"\n[pool]\ncidr = \"10.118.4.0/24\"\n[membership]\nseeds = [\"192.0.2.1\"]\nkey_file = {:?}\n\
         tunnel = \"192.0.2.99\"\nname = \"n4\"",
        scene.key
    );
    let sidecar = Sidecar::start(&node, &settings);
    let _pod = scene.members[0].node.joined(&web());
    let problems =
        || sidecar.ask(&serde_json::json!({ "status": {} }))["problems"].as_array().cloned().unwrap_or_default();
    let text = "no tunnel to the other nodes: tunnel address 192.0.2.99: expected an address of this node's";
    until("it is said", SOON, || problems().iter().any(|problem| problem.to_string().contains(text)).then_some(()));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        assert_eq!(problems().len(), 1, "{:?}", problems());
        sleep(Duration::from_millis(200));
    }
    node.ns.ip("addr add 192.0.2.99/24 dev eth0");
    until("the tunnel is there", SOON, || (problems().is_empty() && node.ns.has_device("viptun0")).then_some(()));
}

#[test]
fn a_seed_may_be_a_name() {
    let scene = Scene::new(1);
    let (node, hosts) = (Node::without_allocator(&scene.lan, 4), scene.dir.file("hosts"));
    fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.1 first.nodes.example\n").unwrap();
    let table = "[membership]\nseeds = [\"first.nodes.example\"]\nname = \"n4\"";
    let script = format!("mount --bind {hosts} /etc/hosts && exec \"$@\"");
    let options = ["--mount", "sh", "-c", &script, "sh"];
    let settings = format!("backend = \"pool\"\n{table}\nkey_file = {:?}", scene.key);
    let _sidecar = Sidecar::run_by("unshare", &options, &node, &settings);
    scene.members[0].sees("the one that has its name", PATIENCE, &[("n4", "live")]);
}

/// All nodes speak by one family: a name that has addresses of the other one alone leads nowhere.
#[test]
fn a_name_of_the_other_family_alone_is_named() {
    let scene = Scene::new(1);
    let (node, hosts) = (Node::without_allocator(&scene.lan, 4), scene.dir.file("hosts"));
    fs::write(&hosts, "2001:db8::1 first.nodes.example\n").unwrap();
    let script = format!("mount --bind {hosts} /etc/hosts && exec \"$@\"");
    let settings = format!(
        "backend = \"pool\"\n[membership]\nseeds = [\"first.nodes.example\"]\nname = \"n4\"\nkey_file = {:?}",
        scene.key
    );
    let _sidecar = Sidecar::run_by("unshare", &["--mount", "sh", "-c", &script, "sh"], &node, &settings);
    let finding = "seed first.nodes.example:8119 has addresses of IPv6 alone (2001:db8::1), and this node speaks by IPv4 (192.0.2.4)";
    let says = || node.ctl().args(["nodes"]).finish("").stdout.contains(finding);
    until("the cause is said", SOON, || says().then_some(()));
    let config = node.dir.file("viprouted.toml");
    let found = node.ctl().args(["doctor", "--conf-dir", "/nonexistent", "--config", &config]).finish("").stdout;
    assert!(found.contains(finding) && found.contains("membership.listen in "), "{found}");
    fs::write(&hosts, "2001:db8::1 first.nodes.example\n192.0.2.1 first.nodes.example\n").unwrap();
    scene.members[0].sees("the node whose seed has both", PATIENCE, &[("n4", "live")]);
    assert!(!says());
}

/// The node has addresses of IPv6 alone, and its seeds are of IPv4.
#[test]
fn seeds_of_a_family_that_the_node_lacks() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 4).with_ipv6(&lan);
    node.ns.ip("-4 addr flush dev eth0");
    let (dir, seeds) = (TempDir::new(), "seeds = [\"192.0.2.1\"]");
    let settings = format!("backend = \"pool\"\n[membership]\n{seeds}\nkey_file = {:?}", new_key(&dir, "key"));
    let sidecar = Sidecar::start(&node, &settings);
    let problem = "membership.seeds is of IPv4, and the node has addresses of IPv6 alone (2001:db8::4)";
    let problems = || sidecar.ask(&serde_json::json!({ "status": {} }))["problems"].to_string();
    until("the cause is said", SOON, || problems().contains(problem).then_some(()));
    // A pod's gateway is of IPv4, and leads nowhere.
    node.ns.ip("link add gateway type veth peer name pod");
    node.ns.ip("link set gateway up");
    node.ns.ip("addr add 10.1.9.1/32 dev gateway");
    let finding = "seed 192.0.2.1:8119 has not answered since viprouted started: this node has no route there by IPv4";
    until("that is said", PATIENCE, || node.ctl().args(["nodes"]).finish("").stdout.contains(finding).then_some(()));
    assert!(!problems().contains(problem));
}

#[test]
fn a_node_without_the_table_stands_alone() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let said = node.ctl().arg("nodes").finish("").ok();
    assert!(said.contains("stands alone"), "{said}");
    let sockets = node.ns.cmd("ss").args(["-Hlun"]).finish("").ok();
    assert!(!sockets.contains(":8119"), "{sockets}");
    assert!(!fs::exists(format!("{}/nodes.json", node.data())).unwrap());
    assert!(Page::of(&node).find("viproute_nodes", &[("state", "live")]).is_none());
    let _pod = node.joined(&web());
    let table = until("its table is there", SOON, || {
        let listed = node.ns.cmd("nft").args(["list", "table", "ip", "viproute"]).finish("").stdout;
        listed.contains("@vips").then_some(listed)
    });
    assert!(!table.contains("8118") && !table.contains("members"), "{table}");
}
