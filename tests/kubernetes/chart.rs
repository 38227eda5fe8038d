//! viproute by its chart, from nothing to nothing.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::bed::{Cluster, Deployment, Rollout, Setup, Worker};
use crate::harness::{Flows, LONG, PATIENCE, PORT, Run, Snapshot, attempt, until};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/chart");

/// Of the pool, on the nodes' own link.
const VALUES: [&str; 4] = ["backend=pool", "announce=arp", "services.defaultClass=true", "uninstall.timeout=3m"];

/// helm's verb with these values, and with this tag of the image.
fn helm(cluster: &Cluster, verb: &str, tag: &str) {
    let tag = format!("image.tag={tag}");
    let mut arguments = vec![verb, "viproute", CHART, "--wait", "--timeout=5m", "--set", &tag];
    arguments.extend(VALUES.iter().flat_map(|value| ["--set", value]));
    cluster.control.helm(&arguments);
}

/// Everything of a node that viproute may change.
fn snapshots(cluster: &Cluster) -> Vec<Snapshot> {
    cluster.workers.iter().map(|worker| worker.containerd.machine.snapshot(&worker.node)).collect()
}

/// A node's files, but what containerd, the kubelet and base plugins write as they go on.
fn files(worker: &Worker) -> BTreeSet<String> {
    let script = "find /etc /opt /usr/lib/cni /usr/local /var/lib/viproute /var/lib/cni/viproute /run/viproute /sys/fs/bpf \
                  ! -type d -printf '%p %m %l\\n' 2>/dev/null || true";
    worker.containerd.machine.sh(script).lines().map(str::to_owned).collect()
}

const PODS: &str = "for pod in /run/netns/*; do nsenter --net=$pod ip -o link show; done";

/// What must be again as it was.
struct Before {
    kernel: Vec<Snapshot>,
    files: Vec<BTreeSet<String>>,
}

impl Before {
    fn of(cluster: &Cluster) -> Self {
        Self { kernel: snapshots(cluster), files: cluster.workers.iter().map(files).collect() }
    }

    /// All but the kernel's settings.
    fn is_back(&self, cluster: &Cluster) {
        let now = Self::of(cluster);
        assert_eq!(now.files, self.files);
        for (before, after) in self.kernel.iter().zip(&now.kernel) {
            let left = before.changes(after).into_iter().filter(|line| !line.contains("sysctl"));
            assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
        }
    }
}

#[test]
fn a_release_is_installed_upgraded_and_uninstalled() {
    let cluster = Cluster::with(&Setup { bare: true, ..Setup::default() });
    let [first, second] = cluster.import_viproute();
    // Its pods are from before.
    let web = Deployment::new("web", 4);
    web.apply(&cluster.control);
    cluster.control.apply(&web.service("LoadBalancer", &[(PORT, PORT)]));
    let (pods, before) = (cluster.pods("web"), Before::of(&cluster));

    let vip = install(&cluster, &first, &pods);
    upgrade(&cluster, &second, vip);
    let own = annotated(&cluster);
    uninstall(&cluster, vip);
    assert_eq!((cluster.pods("web"), cluster.pods("own").len()), (pods, 2), "pods live on");
    own.delete(&cluster.control);
    before.is_back(&cluster);
    // Pods go on as without viproute.
    Deployment { revision: 2, ..web }.apply(&cluster.control);

    let kinds = "all,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings";
    let left = cluster.control.run(&["get", kinds, "-A", "-o", "name"]);
    assert_eq!(left.lines().filter(|name| name.contains("viproute")).collect::<Vec<_>>(), [""; 0]);
    let asked = cluster.control.asked();
    assert!(asked.iter().any(|entry| entry["verb"] == "delete"), "the uninstallation is logged");
    let refused: Vec<_> = asked.into_iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// As whoever takes no helm has it, by conf/.
#[test]
fn manifests_install_and_uninstall() {
    let cluster = Cluster::with(&Setup { bare: true, ..Setup::default() });
    cluster.import_viproute();
    for worker in &cluster.workers {
        // Its empty parents are the kubelet's, where no pod has had a network.
        worker.containerd.machine.sh("mkdir -p /var/lib/cni");
    }
    let (control, before) = (&cluster.control, Before::of(&cluster));
    let [installs, uninstalls] =
        ["daemonset", "daemonset-uninstall"].map(|name| format!("{}/conf/{name}.yaml", env!("CARGO_MANIFEST_DIR")));
    control.run(&["apply", "-f", &installs]);
    for worker in &cluster.workers {
        let machine = &worker.containerd.machine;
        let is_there = || machine.path("/run/viproute/viprouted.sock").exists();
        until(&format!("viprouted serves on {}", worker.name), LONG, || is_there().then_some(()));
        assert!(machine.read("/etc/cni/net.d/10-pods.conflist").contains("viproute"), "{}", worker.name);
    }
    control.run(&["apply", "-f", &uninstalls]);
    let job = ["wait", "--namespace=kube-system", "--for=condition=complete", "--timeout=2m", "job/viproute-uninstall"];
    control.run(&job);
    control.run(&["delete", "--ignore-not-found", "-f", &uninstalls, "-f", &installs]);
    before.is_back(&cluster);
}

/// Until all pods of the Service answer at the address, which is returned.
fn install(cluster: &Cluster, tag: &str, pods: &BTreeSet<String>) -> Ipv4Addr {
    let begin = Instant::now();
    helm(cluster, "install", tag);
    let vip = cluster.external("web");
    cluster.answer(vip, pods);
    let taken = begin.elapsed();
    eprintln!("from `helm install` to answers of all pods: {taken:?}");
    assert!(taken < Duration::from_secs(60), "{taken:?}");
    vip
}

/// Each agent makes room for another one, of another image, and no connection breaks.
fn upgrade(cluster: &Cluster, tag: &str, vip: Ipv4Addr) {
    let mut flows = Flows::open("the client", &cluster.client, vip, 300);
    let rollout = Rollout::watch(&cluster.client, (vip, PORT), (cluster.internal("web"), PORT), 200);
    let before = agents(cluster);
    helm(cluster, "upgrade", tag);
    let (ours, theirs) = rollout.end();
    eprintln!("`helm upgrade`: {ours}; by kube-proxy: {theirs}");
    assert!(before.is_disjoint(&agents(cluster)), "all agents are new");
    assert!(ours.failed.is_empty(), "{ours}");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
}

/// Pods that joined by their own annotations, with viproute in their network.
fn annotated(cluster: &Cluster) -> Deployment {
    let annotations = serde_json::json!({ "viproute.io/vip": "own", "viproute.io/ports": "8080/tcp" });
    let own = Deployment::new("own", 2).annotated(annotations);
    own.apply(&cluster.control);
    for worker in &cluster.workers {
        let links = worker.containerd.machine.sh(PODS);
        assert!(links.matches(" vip0").count() >= 3, "all pods of {} are attached: {links}", worker.name);
    }
    own
}

/// With live pods: no part of viproute is in them, or on the nodes.
fn uninstall(cluster: &Cluster, vip: Ipv4Addr) {
    cluster.control.helm(&["uninstall", "viproute", "--wait", "--timeout=5m"]);
    until("nobody answers", PATIENCE, || (attempt(&cluster.client, vip, 2).failed == 2).then_some(()));
    for worker in &cluster.workers {
        let links = worker.containerd.machine.sh(PODS);
        assert!(links.contains(" eth0") && !links.contains("vip"), "{links}");
        let tables = worker.node.ns.cmd("nft").args(["list", "tables"]).finish("").ok();
        assert!(!tables.contains("viproute"), "{tables}");
    }
}

/// The names of viproute's pods.
fn agents(cluster: &Cluster) -> BTreeSet<String> {
    let selector = "--selector=app.kubernetes.io/component=agent";
    let pods = cluster.control.get(&["pods", "--namespace=kube-system", selector]);
    let pods = pods["items"].as_array().expect("pods").iter();
    pods.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}
