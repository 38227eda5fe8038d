//! Under containerd, called as the kubelet calls it, with the network install.sh installs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;

use serde_json::{Value, json};

use crate::harness::{Containerd, Lan, Netns, Node, PATIENCE, POOL, Pod, Run, connect, serve_all, until};

/// A node that runs containerd, and a client on its LAN that routes to the VIPs through it.
struct Scene {
    containerd: Containerd,
    client: Netns,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
        let scene = Self { containerd: Containerd::start(&node), client, node, _lan: lan };
        // What is made once and stays (directories, the plugins' sysctls) is none of any pod's.
        scene.containerd.remove(&scene.containerd.pod("first", Some("web")));
        scene
    }

    /// Exactly these pods answer for the VIP, and see the client's own address.
    fn serves(&self, vip: Ipv4Addr, pods: &[&Pod]) {
        let tally = connect(&self.client, vip, 40 * pods.len());
        let names: BTreeSet<_> = pods.iter().map(|pod| &pod.name).collect();
        assert_eq!(tally.names.keys().collect::<BTreeSet<_>>(), names, "who answers for {vip}");
        assert_eq!(tally.clients.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.50"]);
    }
}

impl Scene {
    /// doctor, as it is called on an installed node. The network's ipMasq rewrites calls to VIPs where nothing keeps it from
    /// it; that is all it may find, and its cure is good enough.
    fn is_in_order(&self) {
        let doctor = || {
            self.containerd.machine.cmd("/usr/local/bin/viproutectl").args(["doctor", "--output", "json"]).finish("")
        };
        let report: Value = serde_json::from_str(&doctor().stdout).expect("doctor's JSON");
        for finding in report["findings"].as_array().expect("findings") {
            if finding["severity"] != "hint" {
                assert!(
                    finding["what"].as_str().is_some_and(|what| what.contains("rewrites the source of a pod")),
                    "{finding}"
                );
                self.containerd.machine.sh(finding["cure"]["command"].as_str().expect("a command"));
            }
        }
        doctor().ok();
        // containerd looks for plugins where Debian's configuration says, and there only.
        self.containerd.machine.sh("rm /usr/lib/cni/viproute");
        let report: Value = serde_json::from_str(&doctor().stdout).expect("doctor's JSON");
        let missing = "there is no plugin viproute in /usr/lib/cni, where containerd looks for it";
        let findings = report["findings"].as_array().expect("findings");
        let found = findings.iter().find(|finding| finding["what"] == missing).unwrap_or_else(|| panic!("{report}"));
        self.containerd.machine.sh(found["cure"]["command"].as_str().expect("a command"));
        doctor().ok();
    }
}

/// Records each call as `VERB with/without namespace with/without prevResult`, and makes it.
const WITNESS: &str = r#"#!/bin/sh
stdin=$(cat)
case $stdin in *'"prevResult":{'*) result=result ;; *) result=- ;; esac
echo "$CNI_COMMAND ${CNI_NETNS:+netns} $result" >>/var/log/calls
printf '%s' "$stdin" | exec /opt/cni/bin/viproute.real
"#;

#[test]
fn a_sandbox_joins_by_its_annotation_and_leaves_nothing() {
    let scene = Scene::new();
    let machine = &scene.containerd.machine;
    machine.write("/root/witness", WITNESS);
    machine.sh("cd /opt/cni/bin; mv viproute viproute.real; install /root/witness viproute");
    let calls = || -> Vec<String> {
        let calls = machine.read("/var/log/calls").lines().map(str::to_string).collect();
        machine.sh("rm -f /var/log/calls");
        calls
    };

    let before = scene.containerd.machine.snapshot(&scene.node);
    let plain = scene.containerd.pod("plain", None);
    assert_eq!((plain.vips(), scene.containerd.machine.attachments()), (Vec::new(), 0), "a pod that names no VIP");
    scene.containerd.remove(&plain);
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "a pod that names no VIP");
    calls();

    let web = scene.containerd.pod("p1", Some("web"));
    let servers = serve_all(std::slice::from_ref(&web));
    scene.serves(web.vip(), &[&web]);
    assert_eq!(scene.containerd.machine.attachments(), 1);
    drop(servers);
    scene.containerd.cri.stop(&web.id);
    assert_eq!(calls(), ["ADD netns result", "DEL netns result"]);
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "StopPodSandbox");
    // The kubelet repeats it, and RemovePodSandbox does too.
    scene.containerd.cri.stop(&web.id);
    scene.containerd.cri.remove(&web.id);
    assert_eq!(calls(), ["DEL  -", "DEL  -"]);
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "RemovePodSandbox");
}

#[test]
fn ten_at_once() {
    let scene = Scene::new();
    let (containerd, before) = (&scene.containerd, scene.containerd.machine.snapshot(&scene.node));
    let pods: Vec<Pod> = thread::scope(|scope| {
        let starting: Vec<_> = (1..=10)
            .map(|number| scope.spawn(move || containerd.pod(&format!("p{number}"), Some(["web", "api"][number % 2]))))
            .collect();
        starting.into_iter().map(|pod| pod.join().expect("a pod")).collect()
    });
    let servers = serve_all(&pods);
    for vip in pods.iter().map(Pod::vip).collect::<BTreeSet<_>>() {
        let members: Vec<_> = pods.iter().filter(|pod| pod.vip() == vip).collect();
        assert_eq!(members.len(), 5);
        scene.serves(vip, &members);
    }
    scene.is_in_order();
    drop(servers);
    thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| containerd.remove(pod));
        }
    });
    before.assert_same(&containerd.machine.snapshot(&scene.node), "ten pods removed at once");
}

#[test]
fn containerd_is_killed_in_between() {
    let mut scene = Scene::new();
    let before = scene.containerd.machine.snapshot(&scene.node);
    let mut pods = vec![scene.containerd.pod("p1", Some("web")), scene.containerd.pod("p2", Some("web"))];
    let mut servers = serve_all(&pods);
    let vip = pods[0].vip();
    scene.containerd.kill();
    scene.serves(vip, &[&pods[0], &pods[1]]);
    scene.containerd.start_again();
    pods.push(scene.containerd.pod("p3", Some("web")));
    servers.extend(serve_all(&pods[2..]));
    scene.serves(vip, &[&pods[0], &pods[1], &pods[2]]);
    drop(servers);
    for pod in &pods {
        scene.containerd.remove(pod);
    }
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "pods of before and after");
}

/// Whatever it was doing, and whatever it has forgotten of it: the pods it knows can be removed, and a GC finds the rest.
#[test]
fn containerd_is_killed_while_pods_start() {
    let mut scene = Scene::new();
    let containerd = &scene.containerd;
    thread::scope(|scope| {
        for number in 1..=10 {
            scope.spawn(move || {
                // Most of them can't succeed.
                let _ = containerd.cri.run("shop", &format!("p{number}"), &[("viproute.io/vip", "web")]);
            });
        }
        until("a few have joined", PATIENCE, || (containerd.machine.attachments() >= 3).then_some(()));
        containerd.kill();
    });
    scene.containerd.start_again();
    for id in scene.containerd.cri.list() {
        scene.containerd.cri.stop(&id);
        scene.containerd.cri.remove(&id);
    }
    // containerd 1.6 doesn't call GC; newer ones do, and so can a node's administrator.
    let machine = &scene.containerd.machine;
    let gc = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "viproute", "cni.dev/valid-attachments": [] });
    machine.write("/root/gc", &gc.to_string());
    until("GC has found everything", PATIENCE, || {
        machine.sh("CNI_COMMAND=GC CNI_PATH=/opt/cni/bin /opt/cni/bin/viproute </root/gc");
        (machine.attachments() == 0).then_some(())
    });
    let links = scene.node.ns.ip_json("link");
    let ours = links.iter().filter(|link| link["ifname"].as_str().is_some_and(|name| name.starts_with("vip")));
    assert_eq!(ours.count(), 0, "{links:?}");
    let left = scene.node.ns.ip("route show proto 118") + &scene.node.ns.ip("nexthop show proto 118");
    assert_eq!(left, "", "what is left of ours");
    let pod = scene.containerd.pod("later", Some("web"));
    let _servers = serve_all(std::slice::from_ref(&pod));
    scene.serves(pod.vip(), &[&pod]);
}

/// Another program's network, as it came with a runtime.
const THEIRS: &str = r#"{
 "cniVersion": "0.4.0", "name": "theirs", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.88.0.0/16"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "tuning"}]}"#;

/// `install.sh` on a node with pods: they stay and go as ever, new ones can join, and after `uninstall` it is as before.
#[test]
fn install_and_uninstall_on_a_running_node() {
    const NETWORK: &str = "/etc/cni/net.d/10-theirs.conflist";
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let containerd = Containerd::with_network(&node, THEIRS);
    let mut scene = Scene { containerd, client, node, _lan: lan };
    let old = scene.containerd.pod("old", Some("web"));
    assert_eq!(old.vips(), Vec::<Ipv4Addr>::new(), "nobody has asked for viproute yet");

    scene.containerd.machine.install(POOL);
    // containerd sees the new network by inotify, in its own time.
    let web = until("a pod joins", PATIENCE, || {
        let pod = scene.containerd.pod(&format!("p{}", scene.containerd.cri.list().len()), Some("web"));
        if pod.vips().is_empty() {
            scene.containerd.remove(&pod);
            return None;
        }
        Some(pod)
    });
    let servers = serve_all(std::slice::from_ref(&web));
    scene.serves(web.vip(), &[&web]);
    drop(servers);
    scene.containerd.remove(&old);
    scene.containerd.remove(&web);

    let pins = scene.containerd.machine.path("/sys/fs/bpf/viproute");
    assert!(pins.exists(), "the flow owner is pinned");
    scene.containerd.machine.sh("\"$SOURCE/install.sh\" uninstall");
    assert!(!pins.exists(), "the flow owner outlives the plugin");
    assert_eq!(scene.containerd.machine.read(NETWORK), THEIRS);
    until("a pod starts without the plugin", PATIENCE, || scene.containerd.cri.run("shop", "new", &[]).ok());
}

/// What the plugin refuses is the runtime's error, in the plugin's words; nothing of the pod stays.
#[test]
fn a_bad_annotation_is_the_pods_error() {
    let scene = Scene::new();
    let before = scene.containerd.machine.snapshot(&scene.node);
    let error = scene.containerd.cri.run("shop", "bad", &[("viproute.io/vip", "blog/web")]).unwrap_err();
    assert!(error.contains("blog/web") && error.contains("viproute"), "{error}");
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "a refused pod");
}
