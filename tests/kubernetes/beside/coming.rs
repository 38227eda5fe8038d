//! What docs/how-to/from-metallb.md says, on a cluster whose Services MetalLB has served so far.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use serde_json::{Value, json};

use super::metallb::MetalLb;
use crate::bed::{Cluster, Deployment, Setup};
use crate::harness::{LONG, Load, PORT, Run, Storm, TempDir, VIPROUTECTL, until};

/// Of viproute alone.
const POOL: &str = "[pool]\ncidr = \"10.118.1.0/24\"\n";
const CONFIGURATION: &str = "/etc/viproute/viprouted.toml";
/// What the page has kubectl print.
const OBJECTS: &str = "ipaddresspools,l2advertisements,bgpadvertisements,bgppeers,communities";

impl Cluster {
    /// Changes viprouted's configuration on each node, where it begins anew with it.
    fn configure(&mut self, change: impl Fn(&str) -> String) {
        for worker in &mut self.workers {
            let machine = &mut worker.containerd.machine;
            let text = change(&machine.sh(&format!("cat {CONFIGURATION}")));
            machine.write(CONFIGURATION, &text);
            worker.restart_viprouted();
        }
    }

    /// Until its pods answer and see the client's own address: kube-proxy, behind MetalLB, hides it.
    fn is_routed(&self, service: &str, vip: Ipv4Addr) {
        until(&format!("the pods of {service} see the client's own address"), LONG, || {
            let load = Load { to: (vip, PORT).into(), count: 20, rate: None, concurrency: 2 };
            let tally = self.client.run(|| load.run());
            let is_own = |client: &IpAddr| client.to_string() == "192.0.2.50";
            (tally.failed == 0 && tally.clients.iter().all(is_own)).then_some(())
        });
        self.answer(vip, &self.pods("web"));
        assert_eq!(self.address(&format!("default/{service}")), vip);
    }

    /// Until it has an address that begins so.
    fn served_from(&self, service: &str, network: &str) -> Ipv4Addr {
        until(&format!("{service} has an address of {network}"), LONG, || {
            self.ingress(service).filter(|address| address.to_string().starts_with(network))
        })
    }
}

fn service(web: &Deployment, name: &str) -> Value {
    let mut service = web.service("LoadBalancer", &[(PORT, PORT)]);
    service["metadata"]["name"] = name.into();
    service
}

/// Names a Service's load balancer, which takes its being none for a moment.
fn hand_over(cluster: &Cluster, service: &str) {
    let specs =
        [json!({ "type": "ClusterIP" }), json!({ "type": "LoadBalancer", "loadBalancerClass": "viproute.io/vip" })];
    for spec in specs {
        cluster.control.run(&["patch", "service", service, "--patch", &json!({ "spec": spec }).to_string()]);
    }
}

/// The page's pools, as `import` prints them.
fn imported(cluster: &Cluster) -> String {
    let (dir, objects) = (TempDir::new(), cluster.control.run(&["-n", "metallb-system", "get", OBJECTS, "-o", "yaml"]));
    fs::write(dir.file("metallb.yaml"), objects).expect("write MetalLB's objects");
    Command::new(VIPROUTECTL).args(["import", "metallb", &dir.file("metallb.yaml")]).finish("").ok()
}

#[test]
fn services_come_from_metallb_one_by_one() {
    let mut cluster = Cluster::with(&Setup { services: true, pools: POOL, ..Setup::default() });
    cluster.configure(|text| text.replace("default_class = true", "default_class = false"));
    let _metallb = MetalLb::start(&mut cluster);
    let web = Deployment::new("web", 3);
    web.apply(&cluster.control);
    for name in ["web", "other"] {
        cluster.control.apply(&service(&web, name));
    }
    let (vip, other) = (cluster.served_from("web", "10.118.0."), cluster.served_from("other", "10.118.0."));
    cluster.answer(vip, &cluster.pods("web"));
    let mut new = service(&web, "new");
    new["spec"]["loadBalancerClass"] = "viproute.io/vip".into();
    cluster.control.apply(&new);
    cluster.is_routed("new", cluster.served_from("new", "10.118.1."));

    // Its address stays by a pin; inside the cluster nothing changes.
    cluster.configure(|text| format!("{text}\n[[pin]]\nvip = \"default/web\"\naddress = \"{vip}\"\n"));
    let inside = Storm::start(&cluster.client, cluster.internal("web"), 50);
    hand_over(&cluster, "web");
    cluster.is_routed("web", vip);
    assert_eq!(cluster.external("web"), vip);
    assert_eq!(inside.seen().failed, Vec::<String>::new());
    // MetalLB goes on with those that are left to it.
    assert_eq!(cluster.external("other"), other);
    cluster.answer(other, &cluster.pods("web"));
    hand_over(&cluster, "other");
    cluster.is_routed("other", cluster.served_from("other", "10.118.1."));
}

#[test]
fn services_come_from_metallb_all_at_once() {
    let mut cluster = Cluster::with(&Setup { services: true, pools: POOL, ..Setup::default() });
    cluster.configure(|text| text.replace("default_class = true", "default_class = false"));
    let metallb = MetalLb::start(&mut cluster);
    let web = Deployment::new("web", 3);
    web.apply(&cluster.control);
    let names = ["first", "second", "third"];
    for name in names {
        cluster.control.apply(&service(&web, name));
    }
    let addresses = names.map(|name| cluster.served_from(name, "10.118.0."));
    for vip in addresses {
        cluster.answer(vip, &cluster.pods("web"));
    }

    let pools = imported(&cluster);
    drop(metallb);
    for worker in &cluster.workers {
        worker.containerd.machine.kill("speaker");
    }
    cluster.configure(|text| {
        let (_, others) = text.split_once("[membership]").expect("what the nodes have beside their pools");
        format!("{pools}\n[membership]{}", others.replace("default_class = false", "default_class = true"))
    });
    for (name, vip) in names.into_iter().zip(addresses) {
        cluster.is_routed(name, vip);
        assert_eq!(cluster.external(name), vip);
    }
}
