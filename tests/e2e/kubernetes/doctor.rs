//! What `viproutectl` says of Services, and doctor of the cluster.

use serde_json::{Value, json};

use super::{Scene, named, pod_object, service};
use crate::harness::{Run, SOON, until};

impl Scene {
    fn serving_one() -> Self {
        let scene = Self::new(1);
        scene.api.set(&service("s1"));
        scene.serve(&[(0, true)]);
        scene.address();
        scene.waits_for(&[(0, "ready")]);
        scene
    }

    /// What doctor finds of Kubernetes: how bad, what and the cure.
    fn findings(&self) -> Vec<(String, String, String)> {
        let (mut ctl, config) = (self.node.ctl(), self.node.dir.file("viprouted.toml"));
        ctl.args(["doctor", "--conf-dir", "/nonexistent", "--config", &config, "--output", "json"]);
        let finished = ctl.finish("");
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        let findings = report["findings"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let cure = |finding: &Value| text(&finding["cure"]["command"]) + &text(&finding["cure"]["advice"]);
        let of_kubernetes = findings.filter(|finding| finding["group"] == "kubernetes");
        of_kubernetes.map(|finding| (text(&finding["severity"]), text(&finding["what"]), cure(finding))).collect()
    }

    fn finds(&self, expected: &[(&str, &str)]) {
        let found = self.findings();
        let shown: Vec<_> = found.iter().map(|(severity, what, _)| (severity.as_str(), what.as_str())).collect();
        assert_eq!(shown, expected, "{found:#?}");
    }
}

#[test]
fn status_names_the_services_and_what_they_wait_for() {
    let scene = Scene::with(1, "cidr = \"10.118.0.1/32\"", |_| {});
    scene.api.set(&service("s1"));
    let address = scene.address();
    let mut other = named("other");
    other["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    scene.api.set(&other);
    let waits = "no address of pool default (10.118.0.1/32) is free";
    let table = until("status says what the other waits for", SOON, || {
        Some(scene.node.ctl().arg("status").finish("").stdout).filter(|table| table.contains(waits))
    });
    let line = table.lines().find(|line| line.contains("uid-other")).unwrap_or_else(|| panic!("{table}"));
    assert_eq!(line.split_whitespace().take(3).collect::<Vec<_>>(), ["default/other", "uid-other", "-"]);
    let printed = scene.node.ctl().args(["status", "--output", "json"]).finish("").ok();
    let report: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(report["services"][1], json!({ "service": "default/web", "uid": "s1", "address": address }));
    // One that is made again is another.
    scene.api.delete(&service("s1"));
    scene.api.set(&service("s2"));
    until("the other UID", SOON, || {
        let found = scene.sidecar.ask(&json!({ "kubernetes": {} }));
        found["services"].to_string().contains("\"s2\"").then_some(())
    });
    scene.api.delete(&named("other"));
    scene.ends();
}

/// Each missing verb; all are there when none is.
#[test]
fn rights_clocks_classes_and_policies_are_found() {
    let scene = Scene::serving_one();
    scene.finds(&[]);
    scene.api.deny(&["patch services/status", "watch endpointslices", "get namespaces"]);
    scene.finds(&[
        ("error", "viprouted may not get namespaces kube-system at the Kubernetes API"),
        ("error", "viprouted may not patch services/status at the Kubernetes API"),
        ("error", "viprouted may not watch endpointslices.discovery.k8s.io at the Kubernetes API"),
    ]);
    assert!(scene.findings()[0].2.contains("kubectl apply -f conf/kubernetes-rbac.yaml"));
    scene.api.deny(&[]);

    scene.api.set_clock(-120);
    let found = scene.findings();
    let [(_, what, _)] = &found[..] else { panic!("{found:?}") };
    assert!(
        what.starts_with("this node's clock is 1") && what.ends_with("s ahead of the Kubernetes API server's"),
        "{what}"
    );
    scene.api.set_clock(0);

    let mut unclaimed = named("lost");
    unclaimed["spec"].as_object_mut().unwrap().remove("loadBalancerClass");
    scene.api.set(&unclaimed);
    let without = "default/lost is of type LoadBalancer, and has neither a loadBalancerClass nor an address";
    until("it is known", SOON, || (scene.findings().len() == 1).then_some(()));
    scene.finds(&[("hint", without)]);
    let mut theirs = unclaimed.clone();
    theirs["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.200" }] } });
    scene.api.set(&theirs);
    until("another load balancer serves it", SOON, || scene.findings().is_empty().then_some(()));

    let pod = scene.pod(0);
    scene.api.set(&pod_object(pod, &json!({ "labels": { "app": "web" } })));
    let policy = |app: &str, types: &[&str]| {
        json!({
            "kind": "NetworkPolicy", "metadata": { "namespace": "default", "name": "deny" },
            "spec": { "podSelector": { "matchLabels": { "app": app } }, "policyTypes": types },
        })
    };
    scene.api.set(&policy("web", &["Egress"]));
    scene.finds(&[]);
    scene.api.set(&policy("web", &["Ingress"]));
    scene.waits_for(&[(0, "draining")]);
    let reach =
        format!("the NetworkPolicy default/deny says who may reach default/{}, which serves default/web", pod.name);
    let blocked = format!(
        "default/web: default/{} gets no connections: the NetworkPolicy default/deny says who may reach it, and wouldn't hold for what comes \
         by the VIP",
        pod.name
    );
    scene.finds(&[
        ("hint", &reach),
        ("warning", &blocked),
        ("warning", "default/web: no pod is ready: connections are refused"),
    ]);
    scene.api.set(&policy("api", &["Ingress"]));
    scene.waits_for(&[(0, "ready")]);
    scene.finds(&[]);
    scene.ends();
}

/// As kube-proxy has it in each of its modes.
#[test]
fn a_vip_that_kube_proxy_serves_is_found() {
    let scene = Scene::serving_one();
    let (address, ns) = (scene.address(), &scene.node.ns);
    let what = |mode: &str| format!("kube-proxy (mode {mode}) serves the VIP default/web ({address})");
    let run = |program: &str, arguments: &str| ns.cmd(program).args(arguments.split(' ')).finish("").ok();

    let table = format!(
        "table ip kube-proxy {{
         chain external-A {{ }}
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {address} . tcp . 80 : goto external-A }}
         }}
         }}"
    );
    ns.cmd("nft").args(["-f", "-"]).finish(&table).ok();
    scene.finds(&[("warning", &what("nftables"))]);
    run("nft", "delete table ip kube-proxy");

    run("iptables-nft", "-t nat -N KUBE-SERVICES");
    run("iptables-nft", &format!("-t nat -A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport 80 -j ACCEPT"));
    scene.finds(&[("warning", &what("iptables"))]);
    run("iptables-nft", "-t nat -F KUBE-SERVICES");
    run("iptables-nft", "-t nat -X KUBE-SERVICES");

    // A dummy device on real nodes, which not every kernel has.
    ns.ip("link add kube-ipvs0 type bridge");
    ns.ip(&format!("addr add {address}/32 dev kube-ipvs0"));
    scene.finds(&[("error", &what("ipvs"))]);
    ns.ip("link delete kube-ipvs0");
    scene.finds(&[]);
    scene.ends();
}
