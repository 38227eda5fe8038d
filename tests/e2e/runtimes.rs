//! Calls as runtimes and other plugins really make them: versions, results, keys and arguments of every kind.

use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::harness::{Environment, Join, Lan, Node, Pod, Reply, Run, Sidecar, base_plugin, connect, serve_all};

fn web() -> Join {
    Join::annotated("web")
}

struct Scene {
    node: Node,
    lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        // What the first pod of a node brings (the registry, the node's settings) stays.
        node.remove(&node.joined(&web()), &web());
        Self { node, lan }
    }

    /// ADD with `change` made to what comes on stdin.
    fn add(&self, pod: &Pod, join: &Join, change: impl FnOnce(&mut Value)) -> Reply {
        let mut stdin = self.node.stdin("ADD", pod, join);
        change(&mut stdin);
        let reply = self.node.raw(&self.node.environment("ADD", pod, join), &stdin.to_string());
        if reply.succeeded() {
            *pod.result.lock().unwrap() = Some(reply.ok());
        }
        reply
    }

    /// A call that must be refused with `code`, name `named`, and change nothing.
    fn refused(&self, pod: &Pod, join: &Join, code: i64, named: &str) {
        let before = self.node.snapshot(&[pod]);
        let error = self.node.add(pod, join).error();
        assert!(error.code == code && error.text().contains(named), "{code} and {named:?}: {error:?}");
        before.assert_same(&self.node.snapshot(&[pod]), "a refused ADD");
    }
}

/// One plugin that is not ready makes the whole node `NotReady`.
#[test]
fn status_fails_only_where_every_pod_needs_a_vip() {
    let scene = Scene::new();
    let strict = Join::nothing().key("strictStatus", json!(true));
    let all = Join::listed(&["web"]);
    let status = |join: &Join| scene.node.status(join);
    for join in [&Join::nothing(), &strict, &all] {
        status(join).ok();
    }
    scene.node.stop_allocator();
    status(&Join::nothing()).ok();
    status(&Join::nothing().key("strictStatus", json!(false))).ok();
    assert_eq!((status(&strict).error().code, status(&all).error().code), (50, 50));
    // Nor does a key that only pods with a VIP would need.
    let misspelt = |join: &Join| join.clone().key("datadir", json!("/x"));
    status(&misspelt(&Join::nothing())).ok();
    assert_eq!((status(&misspelt(&strict)).error().code, status(&misspelt(&all)).error().code), (7, 7));
}

/// Pods that ask for no VIP are served all the same.
#[test]
fn pods_without_a_vip_need_none_of_viproutes_keys() {
    let scene = Scene::new();
    let pod = scene.node.pod();
    let flawed =
        |join: Join| join.key("dataDir", json!("here")).key("nonsense", json!({})).key("group", json!({ "b": 1 }));
    let before = scene.node.snapshot(&[&pod]);
    let result = scene.node.add(&pod, &flawed(Join::nothing())).ok();
    assert_eq!(result, *pod.base.lock().unwrap());
    scene.node.check(&pod, &flawed(Join::nothing())).ok();
    before.assert_same(&scene.node.snapshot(&[&pod]), "a pod that is passed through");
    scene.refused(&pod, &flawed(web()), 7, "\"dataDir\" is \"here\"");
    // Multus adds these to each plugin of a delegate.
    let multus = |join: Join| join.key("deviceID", json!("0000:3b:02.1")).key("pciBusID", json!("0000:3b:02.1"));
    scene.node.add(&pod, &multus(web())).ok();
    scene.node.check(&pod, &multus(web())).ok();
}

/// Most clusters' conflists say 0.3.1.
#[test]
fn versions_0_3_are_served_and_answered_in_kind() {
    let scene = Scene::new();
    for version in ["0.3.0", "0.3.1"] {
        let pod = scene.node.pod_of_version(version);
        let passed = scene.node.add(&pod, &Join::nothing().version(version)).ok();
        assert_eq!(passed, *pod.base.lock().unwrap());
        let before = scene.node.snapshot(&[&pod]);
        let join = web().version(version).key("reportIPs", json!(true));
        let result = scene.node.add(&pod, &join).ok();
        assert_eq!(result["cniVersion"], version);
        let ips = result["ips"].as_array().unwrap();
        assert!(ips.len() == 2 && ips.iter().all(|ip| ip["version"] == "4"), "{result}");
        // Runtimes of that version send none with a DEL.
        scene.node.raw(&scene.node.environment("DEL", &pod, &join), &scene.node.conf(&join).to_string()).ok();
        before.assert_same(&scene.node.snapshot(&[&pod]), version);
    }
}

/// A plugin before us may answer in a version of its own; libcni takes ours for the configuration's.
#[test]
fn the_result_is_of_the_configurations_version() {
    let scene = Scene::new();
    for join in [Join::nothing(), web()] {
        let pod = scene.node.pod();
        let result = scene.add(&pod, &join.clone().version("0.4.0"), |stdin| {
            stdin["prevResult"]["cniVersion"] = json!("1.0.0");
        });
        let result = result.ok();
        assert_eq!((&result["cniVersion"], &result["ips"][0]["version"]), (&json!("0.4.0"), &json!("4")), "{result}");
        let pod = scene.node.pod_of_version("0.4.0");
        let result = scene.add(&pod, &join, |stdin| stdin["prevResult"]["cniVersion"] = json!("0.4.0")).ok();
        assert_eq!((&result["cniVersion"], &result["ips"][0].get("version")), (&json!("1.0.0"), &None), "{result}");
    }
}

/// Who upgrades a conflist, or breaks it, must still get rid of pods.
#[test]
fn removals_work_whatever_the_version_says() {
    let scene = Scene::new();
    let without = |mut conf: Value, key: &str| {
        conf.as_object_mut().unwrap().remove(key);
        conf
    };
    // A pod's devices go when the kernel finds time: all of them stay to the end.
    let pods: Vec<_> = (0..4).map(|_| scene.node.pod()).collect();
    for (version, pod) in [json!("0.2.0"), json!("9.9.9"), json!(7), Value::Null].into_iter().zip(&pods) {
        let before = scene.node.snapshot(&[pod]);
        scene.node.add(pod, &web()).ok();
        let mut conf = scene.node.conf(&web());
        conf["cniVersion"] = version.clone();
        scene.node.raw(&scene.node.environment("DEL", pod, &web()), &conf.to_string()).ok();
        before.assert_same(&scene.node.snapshot(&[pod]), "ADD and DEL");

        scene.node.add(pod, &web()).ok();
        conf["cni.dev/valid-attachments"] = json!([]);
        scene.node.raw(&scene.node.verb("GC"), &conf.to_string()).ok();
        before.assert_same(&scene.node.snapshot(&[pod]), "ADD and GC");
    }
    let pod = scene.node.joined(&web());
    let conf = without(without(scene.node.conf(&web()), "cniVersion"), "name");
    scene.node.raw(&scene.node.environment("DEL", &pod, &web()), &conf.to_string()).ok();
    assert!(scene.node.ns.ip_json("nexthop show proto 118").is_empty());
    // Whose attachments are garbage is said by the network's name.
    let mut gc = conf;
    gc["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(scene.node.raw(&scene.node.verb("GC"), &gc.to_string()).error().code, 7);
}

/// As CRI-O writes an empty list. Without the key everything would be garbage by an oversight.
#[test]
fn null_for_the_valid_attachments_is_an_empty_list() {
    let scene = Scene::new();
    let _pod = scene.node.joined(&web());
    let mut conf = scene.node.conf(&web().version("1.1.0"));
    let gc = |conf: &Value| scene.node.raw(&scene.node.verb("GC"), &conf.to_string());
    assert!(gc(&conf).error().text().contains("cni.dev/valid-attachments"));
    assert!(!scene.node.ns.ip_json("nexthop show proto 118").is_empty());
    conf["cni.dev/valid-attachments"] = Value::Null;
    gc(&conf).ok();
    assert!(scene.node.ns.ip_json("nexthop show proto 118").is_empty());
}

/// What a plugin makes of the result before us.
type Change = fn(&mut Value);

#[test]
fn the_pods_address_where_prev_result_names_none_of_its_interfaces() {
    let scene = Scene::new();
    let client = scene.lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let cases: [(&str, Change); 8] = [
        ("Calico, Cilium: the host veth, an address of none", |result| {
            result["interfaces"].as_array_mut().unwrap().truncate(1);
            result["ips"][0].as_object_mut().unwrap().remove("interface");
        }),
        ("no interfaces at all", |result| {
            result["interfaces"] = json!([]);
            result["ips"][0].as_object_mut().unwrap().remove("interface");
        }),
        ("Nomad: no sandbox", |result| {
            result["interfaces"].as_array_mut().unwrap().iter_mut().for_each(|interface| {
                interface.as_object_mut().unwrap().remove("sandbox");
            });
        }),
        ("ovs-cni: the host veth's index", |result| result["ips"][0]["interface"] = json!(0)),
        ("AWS: the host veth alone, and its index", |result| {
            result["interfaces"].as_array_mut().unwrap().truncate(1);
            result["ips"][0]["interface"] = json!(0);
        }),
        ("an index of -1", |result| result["ips"][0]["interface"] = json!(-1)),
        ("an index out of range", |result| result["ips"][0]["interface"] = json!(7)),
        ("an address that the pod has not", |result| {
            result["ips"] = json!([{ "address": "198.51.100.7/24" }]);
        }),
    ];
    for (what, change) in cases {
        let pods = [scene.node.pod()];
        scene.add(&pods[0], &web(), |stdin| change(&mut stdin["prevResult"])).ok();
        let servers = serve_all(&pods);
        assert_eq!(connect(&client, pods[0].vip(), 3).names.len(), 1, "{what}");
        drop(servers);
        scene.node.remove(&pods[0], &web());
    }
    let pod = scene.node.pod();
    pod.ns.ip("addr flush dev eth0");
    let before = scene.node.snapshot(&[&pod]);
    let refused = scene.add(&pod, &web(), |stdin| stdin["prevResult"]["ips"][0]["interface"] = json!(0));
    assert_eq!(refused.error().code, 104);
    before.assert_same(&scene.node.snapshot(&[&pod]), "a refused ADD");
}

/// A process whose end takes a path of its namespace away.
struct Holder(Child);

impl Holder {
    fn of(pod: &Pod) -> Self {
        Self(pod.ns.cmd("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("start sleep"))
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// containerd restarted, a namespace moved: DEL names it by another path than ADD did.
#[test]
fn del_finds_a_namespace_that_is_at_another_path_now() {
    let scene = Scene::new();
    let pod = scene.node.pod();
    let before = scene.node.snapshot(&[&pod]);
    let holder = Holder::of(&pod);
    let environment = Environment { netns: Some(holder.path()), ..scene.node.environment("ADD", &pod, &web()) };
    scene.node.raw(&environment, &scene.node.stdin("ADD", &pod, &web()).to_string()).ok();
    drop(holder);
    assert_eq!(pod.vips().len(), 1);
    scene.node.del(&pod, &web()).ok();
    before.assert_same(&scene.node.snapshot(&[&pod]), "ADD and DEL by two paths");
}

/// CHECK asks for its own interfaces: others' are named in every way (AWS's has 16 characters, Azure's is the pod's without
/// sandbox, OVN-Kubernetes' is empty), and CRI-O fails the pod when CHECK fails.
#[test]
fn check_asks_for_its_own_interfaces_only() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web());
    let check = |more: &Value| {
        let mut stdin = scene.node.stdin("CHECK", &pod, &web());
        stdin["prevResult"]["interfaces"].as_array_mut().unwrap().push(more.clone());
        scene.node.raw(&scene.node.environment("CHECK", &pod, &web()), &stdin.to_string())
    };
    let others = [
        json!({ "name": "dummy0123456789a", "sandbox": "0" }),
        json!({ "name": "eth0" }),
        json!({ "name": "", "sandbox": pod.ns.path() }),
        json!({ "name": "no/device" }),
    ];
    for other in &others {
        check(other).ok();
    }
    let result = pod.result.lock().unwrap().clone().unwrap();
    scene.node.ns.ip(&format!("link set {} down", result["interfaces"][0]["name"].as_str().unwrap()));
    check(&others[0]).ok();
    pod.ns.ip("link del vip0");
    assert_ne!(check(&others[0]).error().code, 0);
}

/// Nomad replaces what fails its CHECK: one replica's trouble is no other's.
#[test]
fn check_speaks_of_its_own_attachment() {
    let scene = Scene::new();
    let (well, other) = (scene.node.joined(&web()), scene.node.joined(&web()));
    let (vip, group) = (well.vip(), group(&scene.node));
    let checks = |well_is: bool, other_is: bool, what: &str| {
        let is_well = |pod: &Pod| scene.node.check(pod, &web()).succeeded();
        assert_eq!((is_well(&well), is_well(&other)), (well_is, other_is), "{what}");
    };
    checks(true, true, "both have joined");
    // The group, the route's weight and the announcement count replicas: here the other one's was lost.
    let ns = &scene.node.ns;
    ns.ip(&format!("route replace {vip} nhid {group} proto 118 src 192.0.2.1 cwnd 1"));
    ns.ip(&format!("route add unreachable {vip} metric 1 proto 118"));
    ns.ip(&format!("route del unreachable {vip} metric 2"));
    checks(true, true, "counts");
    let own = members(&scene.node);
    let [first, second] = own[..] else { panic!("two members: {own:?}") };
    for (kept, well_is) in [(first, true), (second, false)] {
        ns.ip(&format!(
            "nexthop replace id {group} group {kept} type resilient buckets 1024 idle_timer 1 unbalanced_timer 10 proto 118"
        ));
        checks(well_is, !well_is, "the group has one of them");
    }
    ns.ip(&format!("route del unreachable {vip}"));
    let error = scene.node.check(&other, &web()).error();
    assert!(error.text().contains(&format!("route unreachable {vip}/32")), "{error:?}");
}

fn group(node: &Node) -> u64 {
    let objects = node.ns.ip_json("nexthop show proto 118");
    objects.iter().find(|object| object.get("group").is_some()).expect("a group")["id"].as_u64().unwrap()
}

/// The ids of the group's members, in the order in which their pods came.
fn members(node: &Node) -> Vec<u64> {
    let objects = node.ns.ip_json("nexthop show proto 118");
    let mut members: Vec<_> =
        objects.iter().filter(|object| object.get("group").is_none()).map(|o| o["id"].as_u64().unwrap()).collect();
    members.sort_unstable();
    members
}

/// `tuning` behind us in the chain, or before us: its values of the pod's own interface stay where they are as strict as
/// VIPs need them, also after DEL.
#[test]
fn what_tuning_sets_stays() {
    let scene = Scene::new();
    let tune = |pod: &Pod, ignore: &str, announce: &str| {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "tuning",
            "sysctl": { "net.ipv4.conf.eth0.arp_ignore": ignore, "net.ipv4.conf.eth0.arp_announce": announce },
            "prevResult": *pod.base.lock().unwrap(),
        });
        let environment = scene.node.environment("ADD", pod, &web());
        Reply::of(&mut scene.node.ns.cmd(base_plugin("tuning")), &environment, &conf.to_string()).ok();
    };
    let settings =
        |pod: &Pod| ["arp_ignore", "arp_announce"].map(|key| pod.ns.sysctl(&format!("net/ipv4/conf/eth0/{key}")));
    let before = scene.node.pod();
    tune(&before, "8", "1");
    scene.node.add(&before, &web()).ok();
    assert_eq!(settings(&before), ["8", "2"], "8 is stricter than what VIPs need, 1 isn't enough");
    scene.node.check(&before, &web()).ok();
    scene.node.del(&before, &web()).ok();
    assert_eq!(settings(&before), ["8", "1"], "as it was before");

    let behind = scene.node.pod();
    scene.node.add(&behind, &web()).ok();
    assert_eq!(settings(&behind), ["1", "2"]);
    tune(&behind, "2", "2");
    scene.node.check(&behind, &web()).ok();
    scene.node.del(&behind, &web()).ok();
    assert_eq!(settings(&behind), ["2", "0"], "another's value stays, viproute's own goes");

    // 3 answers for addresses of other interfaces too.
    let loose = scene.node.pod();
    tune(&loose, "3", "2");
    scene.node.add(&loose, &web()).ok();
    assert_eq!(settings(&loose), ["1", "2"]);
    scene.node.del(&loose, &web()).ok();
    assert_eq!(settings(&loose), ["3", "2"]);
}

#[test]
fn annotations_about_no_vip_are_refused() {
    let scene = Scene::new();
    let pod = scene.node.pod();
    let without = |key: &str| Join::nothing().annotation(key, "80/tcp");
    scene.refused(&pod, &without("viproute.io/ports"), 7, "\"viproute.io/ports\" without viproute.io/vip");
    scene.refused(
        &pod,
        &without("viproute.io/vips"),
        7,
        "\"viproute.io/vips\" is none of viproute's: expected viproute.io/vip,",
    );
    scene.refused(&pod, &web().annotation("viproute.io/prots", "80/tcp"), 7, "viproute.io/prots");
    scene.node.add(&pod, &without("viproute.example/ports")).ok();
    let listed = Join { annotations: Some(json!({})), ..Join::listed(&["web"]) };
    scene.node.add(&pod, &listed.annotation("viproute.io/ports", "80/tcp")).ok();
}

/// podman starts a container again under its ID, and never repeats a DEL that failed.
#[test]
fn a_container_that_starts_again_under_its_id() {
    let scene = Scene::new();
    let first = scene.node.joined(&web());
    let error = scene.node.add(&first, &web()).error();
    assert_eq!(error.code, 100);
    for named in ["CNI_COMMAND=DEL", &first.id, "delete its pod"] {
        assert!(error.text().contains(named), "{named}: {error:?}");
    }
    let mut again = scene.node.pod();
    again.id.clone_from(&first.id);
    assert_eq!(scene.node.add(&again, &web()).error().code, 100, "the first one is alive");
    drop(first);
    scene.node.add(&again, &web()).ok();
    scene.node.check(&again, &web()).ok();
    assert_eq!(members(&scene.node).len(), 1);
}

/// viprouted would never see the replica.
#[test]
fn a_registry_that_is_not_viprouteds_is_refused() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let pod = node.joined(&web());
    let elsewhere = node.dir.file("elsewhere");
    let join = Join::annotated("api").key("dataDir", json!(elsewhere));
    let other = node.pod();
    let error = node.add(&other, &join).error();
    assert!(error.code == 7 && error.msg.contains(&elsewhere) && error.msg.contains(&node.data()), "{error:?}");
    assert!(other.vips().is_empty() && node.ns.ip("route show proto 118").lines().count() == 2);
    node.add(&other, &Join::nothing().key("dataDir", json!(elsewhere))).ok();
    // The same directory by another path.
    let linked = node.dir.file("linked");
    std::os::unix::fs::symlink(node.data(), &linked).unwrap();
    node.add(&other, &Join::annotated("api").key("dataDir", json!(linked))).ok();
    node.check(&pod, &web()).ok();
}

#[test]
fn control_characters_in_cni_args_are_refused() {
    let scene = Scene::new();
    let pod = scene.node.joined(&web());
    for args in ["K8S_POD_NAME=web\x1b[2J", "K8S_POD_NAMESPACE=shop\n", "OTHER=\r"] {
        let with = |verb: &str| Environment { args: Some(args.into()), ..scene.node.environment(verb, &pod, &web()) };
        let error = scene.node.raw(&with("ADD"), &scene.node.stdin("ADD", &pod, &web()).to_string()).error();
        assert!(
            error.code == 4 && error.msg.contains("CNI_ARGS") && !error.msg.contains(char::is_control),
            "{error:?}"
        );
        scene.node.raw(&with("DEL"), &scene.node.conf(&web()).to_string()).ok();
    }
}

/// A runtime without namespaces: podman, Nomad.
#[test]
fn a_pod_without_a_namespace_is_of_the_default_one() {
    let scene = Scene::new();
    let pod = scene.node.joined(&Join::listed(&["web", "shop/api"]));
    let tool = |arguments: &[&str]| scene.node.ctl().args(arguments).finish("");
    let name = format!("default/{}", pod.name);
    let status = tool(&["status"]).ok();
    assert!(status.matches(&name).count() == 2 && status.contains("shop/api"), "{status}");
    assert!(tool(&["drain", &name]).ok().contains("default/web, shop/api"));
    tool(&["undrain", &name]).ok();
    let status = tool(&["status", "--vip", "shop/api"]).ok();
    assert!(status.contains("shop/api") && !status.contains("default/web"), "{status}");
    let status: Value =
        serde_json::from_str(&tool(&["status", "--vip", "shop/none", "--output", "json"]).ok()).unwrap();
    assert_eq!(status["vips"], json!([]));
}
