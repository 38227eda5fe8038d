//! A node of the cluster: a machine with containerd, kubelet and kube-proxy, on which viproute was installed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Setup;
use super::control::ADDRESS;
use super::parts::part;
use super::pki::{Pki, VIPROUTED};
use crate::harness::{Containerd, Lan, Machine, Node, Run};

/// What a cluster's nodes have in common.
#[derive(Clone)]
pub struct Kind {
    pub setup: Setup,
    /// The nodes' shared key.
    pub key: String,
    pub pki: Arc<Pki>,
}

pub struct Worker {
    pub name: String,
    pub containerd: Containerd,
    pub node: Node,
    is_dual: bool,
    /// kube-proxy's mode.
    proxy: &'static str,
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// KiB that it has in memory.
    pub memory: u64,
    /// Of a processor's time.
    pub processor: Duration,
}

/// In these the kernel counts: `USER_HZ` is 100 on all architectures here.
const TICK: Duration = Duration::from_millis(10);

/// Where pods' addresses on a node are from.
pub fn pods(number: u8) -> String {
    format!("10.88.{number}.0/24")
}

/// Those of IPv6, where the cluster has both.
pub fn pods6(number: u8) -> String {
    format!("fd00:88:{number}::/64")
}

impl Worker {
    /// Node 192.0.2.`number` with everything but what calls the API: [`Worker::join`].
    pub fn new(lan: &Lan, number: u8, kind: &Kind) -> Self {
        let (mut node, name) = (Node::without_allocator(lan, number), format!("n{number}"));
        if kind.setup.dual {
            node = node.with_ipv6(lan);
        }
        let mut machine = Machine::new(&node);
        machine.write("/etc/cni/net.d/10-pods.conflist", &network(number, kind).to_string());
        if kind.setup.bare {
            // As systemd has it: mounts of the node are to show in containers.
            machine.sh("mount --make-rshared /");
        } else {
            install(&mut machine, &name, kind);
        }
        let containerd = if kind.setup.second { Containerd::second_on(machine) } else { Containerd::first_on(machine) };
        let proxy = if kind.setup.iptables { "iptables" } else { "nftables" };
        Self { name, containerd, node, is_dual: kind.setup.dual, proxy }
    }

    /// Starts kubelet and kube-proxy.
    pub fn join(&mut self, pki: &Pki) {
        let (name, machine) = (self.name.clone(), &mut self.containerd.machine);
        let cgroup = machine.cgroup();
        machine.sh(&CGROUPS.replace("NAME", &cgroup));
        machine.write("/etc/kubernetes/ca.crt", &std::fs::read_to_string(pki.file("ca.crt")).expect("ca.crt"));
        machine.write("/etc/kubernetes/kubelet.json", &kubelet(&cgroup).to_string());
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        machine.write("/etc/kubernetes/kubelet", &pki.kubeconfig(&name, &subject));
        machine.write("/etc/kubernetes/proxy", &pki.kubeconfig(&format!("{name}-proxy"), "/CN=system:kube-proxy"));
        self.start_kubelet();
        self.start_proxy();
    }

    pub fn start_kubelet(&mut self) {
        let (program, name, address) = (part("kubelet"), &self.name, self.node.address());
        let address = if self.is_dual { format!("{address},2001:db8::{}", &name[1..]) } else { address.to_string() };
        let command = format!(
            "{program} --config /etc/kubernetes/kubelet.json --kubeconfig /etc/kubernetes/kubelet --hostname-override {name} \
             --node-ip {address} --cert-dir /var/lib/kubelet/pki"
        );
        self.containerd.machine.start("kubelet", &command);
    }

    /// Settings of connection tracking can't be written in a network namespace: 0 leaves them alone.
    fn start_proxy(&mut self) {
        let (program, name, mode) = (part("kube-proxy"), &self.name, self.proxy);
        let pods = if self.is_dual { "10.88.0.0/16,fd00:88::/32" } else { "10.88.0.0/16" };
        let command = format!(
            "{program} --kubeconfig /etc/kubernetes/proxy --proxy-mode {mode} --hostname-override {name} \
             --cluster-cidr {pods} --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
             --conntrack-tcp-timeout-close-wait=0"
        );
        self.containerd.machine.start("kube-proxy", &command);
    }

    /// SIGKILL.
    pub fn kill_viprouted(&self) {
        self.containerd.machine.kill("viprouted");
    }

    /// `STOP`: it hangs, until `CONT`.
    pub fn signal_viprouted(&self, signal: &str) {
        self.containerd.machine.sh(&format!("kill -{signal} $(cat /run/viprouted.pid)"));
    }

    pub fn start_viprouted(&mut self) {
        self.containerd.machine.start_viprouted();
    }

    pub fn restart_viprouted(&mut self) {
        self.kill_viprouted();
        self.start_viprouted();
    }

    /// What viprouted has used so far.
    pub fn viprouted(&self) -> Used {
        let read = |file: &str| self.containerd.machine.sh(&format!("cat /proc/$(cat /run/viprouted.pid)/{file}"));
        let (status, stat) = (read("status"), read("stat"));
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        // Behind the name, which is in brackets: utime and stime are the 12th and 13th (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').expect("a name in brackets").1;
        let ticks = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().expect("clock ticks"));
        Used { memory: memory.expect("VmRSS in KiB"), processor: TICK * ticks.sum::<u32>() }
    }

    /// viproutectl on the node: what it prints as JSON.
    pub fn ctl(&self, arguments: &[&str]) -> Value {
        let mut command = self.containerd.machine.cmd("/usr/local/bin/viproutectl");
        let printed = command.args(arguments).args(["--output", "json"]).finish("").ok();
        serde_json::from_str(&printed).expect("viproutectl's JSON")
    }
}

/// viproute by install.sh, with credentials and the nodes' key.
fn install(machine: &mut Machine, name: &str, kind: &Kind) {
    machine.write("/etc/viproute/membership.key", &kind.key);
    let credentials = kind.pki.kubeconfig(&format!("{name}-viprouted"), VIPROUTED);
    machine.write("/etc/viproute/kubeconfig", &credentials);
    machine.sh("chmod 600 /etc/viproute/membership.key /etc/viproute/kubeconfig");
    machine.install_with(&viprouted(name, kind));
}

/// The kubelet wants the folder that its pods' are made in to exist: in each hierarchy of version 1, where one of cpuset's takes no
/// process before it says which processors it has.
const CGROUPS: &str = r#"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then mkdir -p /sys/fs/cgroup/NAME; exit; fi
for controller in /sys/fs/cgroup/*/; do
    [ ! -L "${controller%/}" ] || continue
    mkdir -p "$controller/NAME"
    for key in cpuset.cpus cpuset.mems; do
        [ ! -e "$controller/$key" ] || cat "$controller/$key" >"$controller/NAME/$key"
    done
done"#;

/// The pods' network. Where viproute is installed each pod is recorded, so that it can join a VIP while it runs.
fn network(number: u8, kind: &Kind) -> Value {
    let (mut ranges, mut routes) = (vec![json!([{ "subnet": pods(number) }])], vec![json!({ "dst": "0.0.0.0/0" })]);
    if kind.setup.dual {
        ranges.push(json!([{ "subnet": pods6(number) }]));
        routes.push(json!({ "dst": "::/0" }));
    }
    let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    let mut plugins = vec![json!({ "type": "ptp", "ipam": ipam })];
    if !kind.setup.bare {
        let capabilities = json!({ "io.kubernetes.cri.pod-annotations": true });
        plugins.push(json!({ "type": "viproute", "capabilities": capabilities, "register": true }));
    }
    json!({ "cniVersion": if kind.setup.second { "1.1.0" } else { "1.0.0" }, "name": "pods", "plugins": plugins })
}

/// Where VIPs are from: each way they are on the LAN's own link.
const POOL: &str = "[pool]\ncidr = \"10.118.0.0/24\"\n";
const DHCP: &str = "backend = \"dhcp\"";

/// All nodes have the same but their names.
fn viprouted(name: &str, kind: &Kind) -> String {
    let credentials = "/etc/viproute/kubeconfig";
    let services = format!(
        "[kubernetes]\nenabled = {}\nkubeconfig = {credentials:?}\nnode = {name:?}\ndefault_class = true",
        kind.setup.services
    );
    let pools = if kind.setup.pools.is_empty() { POOL } else { kind.setup.pools };
    let cidr6 = if kind.setup.dual { "cidr6 = \"fd00:118::/96\"\n" } else { "" };
    let from = if kind.setup.dhcp {
        DHCP.to_owned()
    } else {
        format!("backend = \"pool\"\nannounce = \"arp\"\n{pools}{cidr6}")
    };
    format!(
        "{from}\n[membership]\nseeds = [\"192.0.2.1\", \"192.0.2.2\"]\nname = {name:?}\n{}\n",
        if kind.setup.services { &services } else { "" },
    )
}

/// A full disk or a busy machine is no reason to evict a pod here. Version 1 of cgroups is refused if it isn't asked for.
fn kubelet(cgroup: &str) -> Value {
    let never = json!({
        "memory.available": "0%",
        "nodefs.available": "0%",
        "nodefs.inodesFree": "0%",
        "imagefs.available": "0%",
        "imagefs.inodesFree": "0%",
    });
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": false },
            "x509": { "clientCAFile": "/etc/kubernetes/ca.crt" },
        },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "evictionHard": never,
        "failSwapOn": false,
        "healthzPort": 0,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
    })
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let shown = [
            "viproutectl status",
            "viproutectl doctor",
            "ip route show table all proto 118",
            "ip nexthop",
            "ip neigh show proxy",
        ];
        for command in shown {
            let printed = self.containerd.machine.cmd("sh").args(["-c", &format!("{command} 2>&1")]).try_finish("");
            let printed = printed.map_or_else(|error| error.to_string(), |printed| printed.stdout);
            eprintln!("--- {command} on {}\n{printed}", self.name);
        }
    }
}
