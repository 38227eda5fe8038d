//! MetalLB in L2 mode, of its own programs and manifests (tests/metallb.sh): the controller in the control plane's network, a speaker on each node.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::bed::{Cluster, SERVER};
use crate::harness::{Daemon, TempDir};

const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/metallb");
const NAMESPACE: &str = "metallb-system";
/// As viproute's, in these tests.
const POOL: &str = "10.118.0.0/24";

/// Devices that its own manifest keeps speakers off.
const EXCLUDED: [&str; 5] = ["^docker.*", "^dummy.*", "^veth.*", "^lo$", "^cni.*"];

pub struct MetalLb {
    _controller: Daemon,
    _dir: TempDir,
}

impl MetalLb {
    pub fn start(cluster: &mut Cluster) -> Self {
        assert!(Path::new(BUILT).join("version").is_file(), "{BUILT} is missing: run tests/metallb.sh");
        let control = &cluster.control;
        control.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } }));
        control.run(&["apply", "--server-side", "-f", &format!("{BUILT}/crd")]);
        control.run(&["apply", "-n", NAMESPACE, "-f", &format!("{BUILT}/rbac/service-accounts.yaml")]);
        let (dir, roles) = (TempDir::new(), fs::read_to_string(format!("{BUILT}/rbac/role.yaml")).expect("its roles"));
        // What kustomize would add.
        let roles =
            roles.replace("- kind: ServiceAccount\n", &format!("- kind: ServiceAccount\n    namespace: {NAMESPACE}\n"));
        fs::write(dir.file("roles.yaml"), roles).expect("write roles");
        control.run(&["apply", "-n", NAMESPACE, "-f", &dir.file("roles.yaml")]);
        control.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
        let names: Vec<_> = cluster.workers.iter().map(|worker| worker.name.clone()).collect();
        for name in &names {
            control.apply(&stand_in(name));
        }
        control.run(&["wait", "-n", NAMESPACE, "--for=condition=Ready", "pod", "--all", "--timeout=90s"]);
        for (kind, spec) in [
            ("IPAddressPool", json!({ "addresses": [POOL] })),
            ("L2Advertisement", json!({ "ipAddressPools": ["lan"] })),
        ] {
            let metadata = json!({ "name": "lan", "namespace": NAMESPACE });
            let object =
                json!({ "apiVersion": "metallb.io/v1beta1", "kind": kind, "metadata": metadata, "spec": spec });
            control.apply(&object);
        }
        fs::write(dir.file("controller"), control.kubeconfig_of(NAMESPACE, "controller")).expect("write a kubeconfig");
        let arguments = [&*format!("--namespace={NAMESPACE}"), "--webhook-mode=disabled", "--port=7472"];
        let mut command = control.ns.cmd(format!("{BUILT}/controller"));
        command.args(arguments).env("KUBECONFIG", dir.file("controller"));
        let controller = Daemon::start("metallb-controller", &mut command, &dir);
        let credentials = control.kubeconfig_of(NAMESPACE, "speaker");
        for worker in &mut cluster.workers {
            let machine = &mut worker.containerd.machine;
            machine.write("/etc/metallb/kubeconfig", &credentials);
            machine.write("/etc/metallb/secret/secretkey", &"5".repeat(128));
            let excluded = json!({ "announcedInterfacesToExclude": EXCLUDED });
            machine.write("/etc/metallb/excludel2.yaml", &excluded.to_string());
        }
        let metallb = Self { _controller: controller, _dir: dir };
        for number in 0..cluster.workers.len() {
            Self::speak(cluster, number);
        }
        metallb
    }

    /// Starts the speaker of a node.
    pub fn speak(cluster: &mut Cluster, number: usize) {
        let worker = &mut cluster.workers[number];
        let (name, address) = (&worker.name, worker.node.address());
        let command = format!(
            "env KUBECONFIG=/etc/metallb/kubeconfig METALLB_NODE_NAME={name} METALLB_HOST={address} METALLB_POD_NAME=speaker-{name} \
             METALLB_NAMESPACE={NAMESPACE} METALLB_ML_BIND_ADDR={address} METALLB_ML_LABELS=app=metallb,component=speaker \
             METALLB_ML_SECRET_KEY_PATH=/etc/metallb/secret {BUILT}/speaker --port=7472 --log-level=info"
        );
        worker.containerd.machine.start("speaker", &command);
    }
}

/// A speaker asks the API for its own pod, and for the addresses of the others': this one stands for it.
fn stand_in(node: &str) -> serde_json::Value {
    let container =
        json!({ "name": "stands-for-it", "image": SERVER, "imagePullPolicy": "Never", "args": ["-ports=17472"] });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("speaker-{node}"),
            "namespace": NAMESPACE,
            "labels": { "app": "metallb", "component": "speaker" },
        },
        "spec": {
            "nodeName": node,
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [container],
        },
    })
}
