//! viproute in the company of the plugins people run: after each base plugin, before and after each chained one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::harness::{
    Environment, Join, Lan, Load, Netns, Node, PORT, Pod, PodServer, Reply, Run, SOON, Server, Sidecar, VIPROUTE,
    base_plugin, connect, until,
};

/// A network: the plugins of its conflist. `{ "type": "viproute" }` stands for the node's own entry.
struct Network<'a> {
    node: &'a Node,
    plugins: Vec<Value>,
    join: Join,
    /// `CNI_ARGS` of a runtime that names pods in another way than Kubernetes'.
    args: Option<String>,
}

impl Network<'_> {
    /// The pod's whole chain, as libcni runs it: each result is the next one's prevResult.
    fn add(&self, pod: &Pod) {
        for plugin in &self.plugins {
            let result = self.call("ADD", plugin, pod).ok();
            pod.base.lock().unwrap().clone_from(&result);
            *pod.result.lock().unwrap() = Some(result);
        }
    }

    /// CHECK of viproute, and of a base plugin alone with it: our devices in the result are nothing it stumbles over.
    /// (Debian's `portmap` fails its own CHECK without IPv6, and `sbr` takes the routes away that `ptp` looks for.)
    fn check(&self, pod: &Pod) {
        for plugin in self.plugins.iter().filter(|plugin| plugin["type"] == "viproute" || self.plugins.len() == 2) {
            self.call("CHECK", plugin, pod).ok();
        }
    }

    fn del(&self, pod: &Pod) {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin, pod).ok();
        }
    }

    fn call(&self, verb: &str, plugin: &Value, pod: &Pod) -> Reply {
        let program = match plugin["type"].as_str().unwrap() {
            "viproute" => VIPROUTE.into(),
            other => base_plugin(other),
        };
        let mut conf = self.node.conf(&self.join);
        if plugin["type"] != "viproute" {
            conf = json!({ "cniVersion": conf["cniVersion"], "name": conf["name"] });
            conf.as_object_mut().unwrap().extend(plugin.as_object().unwrap().clone());
        }
        if let Some(result) = pod.result.lock().unwrap().clone() {
            conf["prevResult"] = result;
        }
        let mut environment: Environment = self.node.environment(verb, pod, &self.join);
        environment.args = self.args.clone().or(environment.args);
        self.node.run(&mut self.node.ns.cmd(&program), &environment, &conf.to_string())
    }
}

/// A base plugin's entry, its addresses from `subnet`.
fn base(node: &Node, keys: Value, subnet: &str) -> Value {
    let mut plugin = keys;
    plugin["ipam"] = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": subnet, "rangeStart": subnet.replace(".0/24", ".160"), "rangeEnd": subnet.replace(".0/24", ".180") }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": node.dir.file("host-local"),
    });
    plugin
}

fn ptp(node: &Node) -> Value {
    base(node, json!({ "type": "ptp", "ipMasq": true }), "10.1.1.0/24")
}

fn bridge(node: &Node) -> Value {
    let keys = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true });
    base(node, keys, "10.1.1.0/24")
}

/// A node and a client on its LAN that routes to the VIPs through it.
struct Scene {
    client: Netns,
    node: Node,
    _lan: Lan,
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 50));

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        Self::of(lan, node)
    }

    fn of(lan: Lan, node: Node) -> Self {
        Self { client: lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]), node, _lan: lan }
    }

    fn network(&self, plugins: Vec<Value>) -> Network<'_> {
        Network { node: &self.node, plugins, join: Join::annotated("web"), args: None }
    }

    /// conf/nomad.conflist, called for an allocation of the namespace shop whose job has these arguments.
    fn nomad(&self, arguments: &str) -> Network<'_> {
        let network: Value = serde_json::from_str(include_str!("../../conf/nomad.conflist")).unwrap();
        let mut plugins = network["plugins"].as_array().unwrap().clone();
        plugins[1]["ipam"]["dataDir"] = json!(self.node.dir.file("host-local"));
        let of_allocation = "NOMAD_REGION=global;NOMAD_NAMESPACE=shop;NOMAD_JOB_ID=web;NOMAD_GROUP_NAME=api;\
                             NOMAD_ALLOC_ID=5b3e7c1a-3c1e-4b57-9a52-0f2d6c1b8f10";
        let args = Some(format!("IgnoreUnknown=true;{arguments};{of_allocation}"));
        Network { plugins, join: Join::nothing(), args, ..self.network(Vec::new()) }
    }

    /// Two pods of the chain serve the VIP, to the client and to the node, by their own addresses and the client's own;
    /// CHECK of the whole chain is content, `look` sees what it wants, and DEL leaves nothing.
    fn serves(&self, plugins: Vec<Value>, look: impl Fn(&Pod)) {
        let network = self.network(plugins);
        // What a base plugin makes once and leaves (a bridge, ip_forward) is none of ours.
        let first = Pod::new(9);
        network.add(&first);
        network.del(&first);
        let before = self.node.snapshot(&[]);
        let pods = [Pod::new(1), Pod::new(2)];
        let _servers: Vec<_> = pods.iter().map(PodServer::start).collect();
        for pod in &pods {
            network.add(pod);
        }
        for (from, address) in [(&self.client, CLIENT), (&self.node.ns, self.node.address().into())] {
            let tally = connect(from, pods[0].vip(), 60);
            assert_eq!(tally.names.keys().collect::<Vec<_>>(), ["p1", "p2"], "{tally:?}");
            assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&address], "the client as the pods see it");
        }
        for pod in &pods {
            network.check(pod);
            look(pod);
            network.del(pod);
        }
        before.assert_same(&self.node.snapshot(&[]), "the whole chain's DEL");
    }

    /// The chained plugin `other` between base plugin and viproute, and behind both.
    fn serves_beside(&self, other: &Value, look: impl Fn(&Pod)) {
        let viproute = json!({ "type": "viproute" });
        self.serves(vec![ptp(&self.node), other.clone(), viproute.clone()], &look);
        self.serves(vec![ptp(&self.node), viproute, other.clone()], &look);
    }

    fn iptables(&self, arguments: &str) -> String {
        self.node.ns.cmd("iptables").args(arguments.split_whitespace()).finish("").ok()
    }
}

#[test]
fn after_ptp() {
    let scene = Scene::new();
    scene.serves(vec![ptp(&scene.node), json!({ "type": "viproute" })], |_| ());
}

#[test]
fn after_a_bridge() {
    let scene = Scene::new();
    scene.serves(vec![bridge(&scene.node), json!({ "type": "viproute" })], |_| ());
}

/// The node can't talk to a pod by the macvlan on its own link; VIP traffic takes our own veth pair and doesn't need it.
#[test]
fn after_macvlan() {
    let scene = Scene::new();
    let macvlan = base(&scene.node, json!({ "type": "macvlan", "master": "eth0" }), "192.0.2.0/24");
    scene.serves(vec![macvlan, json!({ "type": "viproute" })], |pod| {
        let ping = scene.node.ns.cmd("ip").args(["neigh", "get", &pod.address().to_string(), "dev", "eth0"]).finish("");
        assert!(!ping.stdout.contains("lladdr"), "the node reaches the pod by its link: {ping:?}");
    });
}

#[test]
fn beside_portmap() {
    let scene = Scene::new();
    let portmap = json!({
        "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [{ "hostPort": 18080, "containerPort": PORT, "protocol": "tcp" }] },
    });
    scene.serves_beside(&portmap, |pod| {
        let rules = scene.iptables("-t nat -S");
        assert!(rules.contains(&format!("--to-destination {}:{PORT}", pod.address())), "{rules}");
        let load = Load { to: (scene.node.address(), 18080).into(), count: 5, rate: None, concurrency: 1 };
        let tally = scene.client.run(|| load.run());
        assert_eq!(tally.failed, 0, "connections to the node's port: {tally:?}");
    });
}

#[test]
fn beside_firewall() {
    let scene = Scene::new();
    scene.serves_beside(&json!({ "type": "firewall", "backend": "iptables" }), |pod| {
        let rules = scene.iptables("-S");
        assert!(rules.contains(&format!("-s {}/32 -j ACCEPT", pod.address())), "{rules}");
    });
}

#[test]
fn beside_tuning() {
    let scene = Scene::new();
    let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" }, "mtu": 1400 });
    scene.serves_beside(&tuning, |pod| {
        assert_eq!(pod.ns.sysctl("net/core/somaxconn"), "500");
        assert_eq!(pod.ns.ip_json("link show eth0")[0]["mtu"], 1400);
    });
}

/// It limits the pod's own interface, whichever host veths the result names. VIP traffic has a veth pair of its own and isn't
/// limited by it.
#[test]
fn beside_bandwidth() {
    let scene = Scene::new();
    let bandwidth = json!({ "type": "bandwidth", "ingressRate": 800_000_000, "ingressBurst": 80_000_000,
                            "egressRate": 800_000_000, "egressBurst": 80_000_000 });
    scene.serves_beside(&bandwidth, |pod| {
        let (peer, queues) = (pod.ns.ip_json("link show eth0")[0]["link_index"].clone(), shaped(&scene.node.ns));
        let links = scene.node.ns.ip_json("link");
        let of_the_pod = links.iter().find(|link| link["ifindex"] == peer).expect("the host veth of eth0");
        assert!(queues.contains(&of_the_pod["ifname"].as_str().unwrap().to_string()), "{queues:?}, {of_the_pod}");
        assert!(queues.iter().all(|device| !device.starts_with("vip")), "{queues:?}");
    });
}

/// The devices with a token bucket.
fn shaped(ns: &Netns) -> Vec<String> {
    let queues = ns.cmd("tc").args(["-j", "qdisc", "show"]).finish("").ok();
    let queues: Vec<Value> = serde_json::from_str(&queues).unwrap();
    let shaped = queues.iter().filter(|queue| queue["kind"] == "tbf");
    shaped.map(|queue| queue["dev"].as_str().unwrap().to_string()).collect()
}

#[test]
fn beside_sbr() {
    let scene = Scene::new();
    scene.serves_beside(&json!({ "type": "sbr" }), |pod| {
        let rules = pod.ns.ip("rule");
        let (own, vip) = (format!("from {} lookup 100", pod.address()), format!("from {} lookup 118", pod.vip()));
        assert!(rules.contains(&own) && rules.contains(&vip), "{rules}");
    });
}

/// The base plugin masquerades what its pods send out of their subnet, to a VIP too: without viprouted's table the replica
/// doesn't see who calls. README's rule exempts the VIPs.
fn a_pod_that_calls(scene: &Scene, base: &Value) {
    let viproute = json!({ "type": "viproute" });
    let network = scene.network(vec![base.clone(), viproute.clone()]);
    let passed_through = Network { join: Join::nothing(), ..scene.network(vec![base.clone(), viproute]) };
    let caller = Pod::new(1);
    passed_through.add(&caller);
    let replica = Pod::new(2);
    let _server = PodServer::start(&replica);
    network.add(&replica);

    let tally = connect(&caller.ns, replica.vip(), 20);
    let host_veth = IpAddr::V4(Ipv4Addr::new(169, 254, 118, 1));
    assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&host_veth], "whom ipMasq shows for {}", caller.address());
    scene.iptables("-t nat -I POSTROUTING -d 10.118.0.0/16 -j ACCEPT");
    let tally = connect(&caller.ns, replica.vip(), 20);
    assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&IpAddr::V4(caller.address())], "with README's rule");
    // The base plugins append theirs: a pod that comes later must not get before it.
    let later = Pod::new(3);
    passed_through.add(&later);
    let tally = connect(&later.ns, replica.vip(), 20);
    assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&IpAddr::V4(later.address())], "a later pod");
}

#[test]
fn a_masqueraded_pod_of_ptp_calls_a_vip() {
    let scene = Scene::new();
    a_pod_that_calls(&scene, &ptp(&scene.node));
}

#[test]
fn a_masqueraded_pod_of_a_bridge_calls_a_vip() {
    let scene = Scene::new();
    a_pod_that_calls(&scene, &bridge(&scene.node));
}

/// With viprouted, which keeps VIP traffic out of connection tracking, the pod calls under its own address; what it sends
/// elsewhere is masqueraded as ever.
#[test]
fn a_masqueraded_pod_calls_a_vip_that_is_not_tracked() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let scene = Scene::of(lan, node);
    let _sidecar = Sidecar::pool(&scene.node, "10.118.0.0/24");
    let viproute = json!({ "type": "viproute" });
    for base in [ptp(&scene.node), bridge(&scene.node)] {
        let network = scene.network(vec![base.clone(), viproute.clone()]);
        let passed_through = Network { join: Join::nothing(), ..scene.network(vec![base, viproute.clone()]) };
        let (caller, replica) = (Pod::new(1), Pod::new(2));
        passed_through.add(&caller);
        let _server = PodServer::start(&replica);
        network.add(&replica);
        let in_set = || scene.node.ns.cmd("nft").args(["list", "set", "ip", "viproute", "vips"]).finish("").stdout;
        until("the VIP is not tracked", SOON, || in_set().contains(&replica.vip().to_string()).then_some(()));
        let tally = connect(&caller.ns, replica.vip(), 20);
        assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&IpAddr::V4(caller.address())], "of the VIP");
        let elsewhere = scene
            .client
            .run(|| Server::start("elsewhere", SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), false, |_| ()));
        let _elsewhere = elsewhere.expect("a server on the LAN");
        let tally = caller.ns.run(|| {
            let to = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 50), PORT));
            Load { to, count: 3, rate: None, concurrency: 1 }.run()
        });
        assert_eq!(tally.clients.iter().collect::<Vec<_>>(), [&IpAddr::V4(scene.node.address())], "{tally:?}");
        network.del(&replica);
        passed_through.del(&caller);
    }
}

/// The job says what a pod's annotations say, and the other plugins of the chain take it.
#[test]
fn a_nomad_job_names_its_vip() {
    let scene = Scene::new();
    let arguments =
        format!("VIPROUTE_VIP=web;VIPROUTE_PORTS=web:{PORT}/tcp;VIPROUTE_HEALTH=tcp fall:2;VIPROUTE_WEIGHT=7");
    let (network, pod) = (scene.nomad(&arguments), Pod::new(1));
    network.add(&pod);
    let records = ["vips/shop_web/endpoints", "attachments"]
        .map(|dir| format!("{}/{dir}/{}@eth0.json", scene.node.data(), pod.id));
    let [endpoint, _]: [Value; 2] =
        records.clone().map(|path| serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap());
    assert_eq!((&endpoint["health"], &endpoint["weight"]), (&json!("tcp fall=2"), &json!(7)), "{endpoint}");
    assert!(endpoint.to_string().contains("api-5b3e7c1a"), "{endpoint}");
    network.call("CHECK", network.plugins.last().unwrap(), &pod).ok();
    network.del(&pod);
    assert!(records.iter().all(|path| !std::path::Path::new(path).exists()));
}

#[test]
fn a_nomad_job_names_no_other_namespaces_vip() {
    let scene = Scene::new();
    let before = scene.node.records();
    for (arguments, said) in [
        ("VIPROUTE_VIP=bank/web", "VIPROUTE_VIP is \"bank/web\": expected"),
        ("K8S_POD_NAMESPACE=bank;VIPROUTE_VIP=web;VIPROUTE_PORT=80/tcp", "\"VIPROUTE_PORT\" is none of viproute's"),
        ("VIPROUTE_VIP=web;NOMAD_NAMESPACE=bank", "expected no key twice with two values"),
    ] {
        let (network, pod) = (scene.nomad(arguments), Pod::new(1));
        let [base @ .., viproute] = &network.plugins[..] else { panic!("a chain") };
        for plugin in base {
            *pod.result.lock().unwrap() = Some(network.call("ADD", plugin, &pod).ok());
        }
        let refused = network.call("ADD", viproute, &pod).error();
        assert!(refused.text().contains(said), "{arguments}: {}", refused.text());
        network.del(&pod);
        assert_eq!(scene.node.records(), before);
    }
    // Kubernetes' key in a job's arguments moves nothing.
    let (network, pod) = (scene.nomad("K8S_POD_NAMESPACE=bank;VIPROUTE_VIP=web"), Pod::new(2));
    network.add(&pod);
    let records = scene.node.records().join(" ");
    assert!(records.contains("shop_web") && !records.contains("bank"), "{records}");
}
