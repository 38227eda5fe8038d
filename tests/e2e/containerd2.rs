//! Under containerd 2, which asks a network of version 1.1.0 for its STATUS and says NetworkReady=false where one plugin fails:
//! the node is `NotReady` then, and Kubernetes evicts its pods.

use serde_json::{Value, json};

use crate::harness::{Containerd, Lan, Node, PATIENCE, Pod, connect, serve_all, until};

fn network(viproute: &Value) -> String {
    let ptp = json!({
        "type": "ptp",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] },
    });
    json!({ "cniVersion": "1.1.0", "name": "pods", "plugins": [ptp, viproute] }).to_string()
}

fn viproute() -> Value {
    json!({ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true } })
}

#[test]
fn a_daemon_that_ends_takes_no_node_down() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let mut containerd = Containerd::second(&node, &network(&viproute()));
    let ready = |containerd: &Containerd| until("NetworkReady", PATIENCE, || containerd.cri.network_ready().ok());
    ready(&containerd);
    let web = containerd.pod("web", Some("web"));
    let servers = serve_all(std::slice::from_ref(&web));

    containerd.machine.kill("viprouted");
    assert_eq!(containerd.cri.network_ready(), Ok(()), "without viprouted");
    let plain = containerd.pod("plain", None);
    containerd.remove(&plain);
    let names = |pod: &Pod| connect(&client, pod.vip(), 20).names.into_keys().collect::<Vec<_>>();
    assert_eq!(names(&web), [web.name.as_str()]);

    // containerd asks its plugins each time: that it says nothing of viproute above is viproute's doing.
    let mut strict = viproute();
    strict["strictStatus"] = json!(true);
    containerd.machine.write("/etc/cni/net.d/10-viproute.conflist", &network(&strict));
    let why = until("NetworkReady=false", PATIENCE, || containerd.cri.network_ready().err());
    for named in ["viprouted.sock", "systemctl start viprouted"] {
        assert!(why.contains(named), "{named:?} isn't in {why:?}");
    }
    containerd.machine.start_viprouted();
    ready(&containerd);
    drop(servers);
    containerd.remove(&web);
    assert_eq!(containerd.machine.attachments(), 0);
}
