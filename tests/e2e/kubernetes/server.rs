//! The way to the API server.

use std::fs;

use super::service;
use crate::harness::{BEHIND, KubeApi, Lan, Node, SOON, Sidecar, until};

/// Also where it has addresses of both families, and of one there is no way from this node. Scheme and path stay as they are written.
#[test]
fn a_servers_name_may_lead_to_it_by_ipv6() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1).with_ipv6(&lan);
    node.ns.ip("-4 addr flush dev eth0");
    let api = KubeApi::start_at(&node, "2001:db8::1".parse().expect("an address"));
    for names in ["2001:db8::1 api.example", "192.0.2.9 api.example\n2001:db8::1 api.example"] {
        let hosts = node.dir.file("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n{names}\n")).expect("write the names");
        let script = format!("mount --bind {hosts} /etc/hosts && exec \"$@\"");
        let options = ["--mount", "sh", "-c", &script, "sh"];
        let kubernetes = KubeApi::settings_of(&node, "n1", &format!("api.example:{}{BEHIND}", api.at.port()));
        let settings = format!("backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n{kubernetes}");
        let sidecar = Sidecar::run_by("unshare", &options, &node, &settings);
        api.set(&service("s1"));
        until(&format!("a Service has an address ({names})"), SOON, || {
            let ingress = &api.get(&service("s1"))["status"]["loadBalancer"]["ingress"][0];
            ingress["ip"].as_str().map(str::to_owned)
        });
        let all = api.requests();
        assert!(all.iter().all(|request| request.contains(BEHIND)), "{all:?}");
        sidecar.stop();
        api.delete(&service("s1"));
    }
}
