//! Under containerd, called as the kubelet calls it, with the network install.sh installs.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;

use crate::harness::{Containerd, Lan, Netns, Node, Pod, connect, serve_all};

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
    machine.sh("mv /opt/cni/bin/viproute /opt/cni/bin/viproute.real");
    machine.write("/opt/cni/bin/viproute", WITNESS);
    machine.sh("chmod 755 /opt/cni/bin/viproute");
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

/// What the plugin refuses is the runtime's error, in the plugin's words; nothing of the pod stays.
#[test]
fn a_bad_annotation_is_the_pods_error() {
    let scene = Scene::new();
    let before = scene.containerd.machine.snapshot(&scene.node);
    let error = scene.containerd.cri.run("shop", "bad", &[("viproute.io/vip", "blog/web")]).unwrap_err();
    assert!(error.contains("blog/web") && error.contains("viproute"), "{error}");
    before.assert_same(&scene.containerd.machine.snapshot(&scene.node), "a refused pod");
}
