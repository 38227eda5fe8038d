//! What Services say beyond ports and pods: addresses that they ask for, whose their clients are, which pod a client has, which nodes attract.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{another, with_web};
use crate::bed::Cluster;
use crate::harness::{Connection, Flows, LONG, Netns, PATIENCE, PORT, until};

const ROUTES: &[&str] = &["10.118.0.0/16 dev eth0"];

fn name(from: &Netns, vip: Ipv4Addr) -> Option<String> {
    let to = SocketAddr::from((vip, PORT));
    let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))).ok()?;
    Some(Connection::over(stream).ok()?.ask().ok()?.name)
}

fn names(from: &Netns, vip: Ipv4Addr, count: usize) -> BTreeSet<String> {
    (0..count).map(|_| name(from, vip).expect("an answer")).collect()
}

impl Cluster {
    fn patch(&self, service: &str, spec: &Value) {
        let patch = json!({ "spec": spec }).to_string();
        self.control.run(&["patch", "service", service, "--type=merge", "--patch", &patch]);
    }

    /// Where the pods of a deployment are.
    fn pods_on(&self, node: &str) -> BTreeSet<String> {
        let field = format!("--field-selector=spec.nodeName={node}");
        let pods = self.control.get(&["pods", "--selector=app=web", &field]);
        let names = pods["items"].as_array().expect("pods").iter();
        names.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    }
}

#[test]
fn a_service_has_the_address_that_it_asks_for() {
    let (cluster, web) = with_web(2);
    let (control, pods, before) = (&cluster.control, cluster.pods("web"), cluster.external("web"));
    let mut flows = Flows::open("the client", &cluster.client, before, 60);
    cluster.patch("web", &json!({ "loadBalancerIP": "10.118.0.77" }));
    let wanted = Ipv4Addr::new(10, 118, 0, 77);
    until("it is there", LONG, || (cluster.ingress("web")? == wanted).then_some(()));
    cluster.answer(wanted, &pods);
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None, "connections to the address of before go on");
    // Another's, the cluster's own ranges, a node's.
    let cluster_ip = cluster.internal("web").to_string();
    let asked =
        [("theirs", "10.118.0.77", "default/web's"), ("inside", cluster_ip.as_str(), ""), ("node", "192.0.2.1", "")];
    for (service, address, why) in asked {
        let mut object = another(&web, service);
        object["spec"]["loadBalancerIP"] = address.into();
        control.apply(&object);
        cluster.is_told(service, "AddressRefused", why);
        assert_eq!(cluster.ingress(service), None, "{service}");
    }
    // Its address is kept under every edit.
    let ports = |port: u16| json!([{ "name": format!("p{port}"), "port": port, "targetPort": PORT }]);
    for port in [81, 82, PORT] {
        cluster.patch("web", &json!({ "ports": ports(port) }));
        cluster.answer_at((wanted, port), &pods);
    }
    control.run(&["scale", "deployment", "web", "--replicas=0"]);
    until("no pod is left", LONG, || cluster.pods("web").is_empty().then_some(()));
    assert_eq!(cluster.ingress("web"), Some(wanted));
    control.run(&["scale", "deployment", "web", "--replicas=2"]);
    until("pods are back", LONG, || (cluster.pods("web").len() == 2).then_some(()));
    cluster.answer(wanted, &cluster.pods("web"));
    // The one that waited has it next.
    control.run(&["delete", "service", "web"]);
    until("the next one has it", LONG, || (cluster.ingress("theirs")? == wanted).then_some(()));
    cluster.answer(wanted, &cluster.pods("web"));
}

#[test]
fn only_clients_of_the_ranges_get_in() {
    let (mut cluster, _web) = with_web(4);
    let vip = cluster.external("web");
    let other = cluster.lan.client(60, ROUTES);
    assert!(name(&other, vip).is_some());
    cluster.patch("web", &json!({ "loadBalancerSourceRanges": ["192.0.2.50/32"] }));
    let stays_out = |cluster: &Cluster, from: &Netns| {
        until("it isn't let in", PATIENCE, || name(from, vip).is_none().then_some(()));
        // By neither node's pods.
        assert!((0..4).all(|_| name(from, vip).is_none()));
        cluster.answer(vip, &cluster.pods("web"));
    };
    stays_out(&cluster, &other);
    stays_out(&cluster, &cluster.workers[0].node.ns);
    for number in 0..cluster.workers.len() {
        cluster.workers[number].restart_viprouted();
    }
    stays_out(&cluster, &other);
    cluster.patch("web", &json!({ "loadBalancerSourceRanges": Value::Null }));
    until("everybody is let in", PATIENCE, || name(&other, vip));
}

#[test]
fn a_clients_connections_go_to_one_pod() {
    let (mut cluster, _web) = with_web(4);
    let vip = cluster.external("web");
    cluster.patch("web", &json!({ "sessionAffinity": "ClientIP" }));
    let others: Vec<Netns> = (60..66).map(|host| cluster.lan.client(host, ROUTES)).collect();
    until("it is in force", PATIENCE, || (names(&others[0], vip, 8).len() == 1).then_some(()));
    let all =
        |clients: &[Netns]| -> Vec<BTreeSet<String>> { clients.iter().map(|client| names(client, vip, 8)).collect() };
    let before = all(&others);
    assert!(before.iter().all(|names| names.len() == 1), "{before:?}");
    for number in 0..cluster.workers.len() {
        cluster.workers[number].restart_viprouted();
        assert_eq!(all(&others), before);
    }
    cluster.control.run(&["scale", "deployment", "web", "--replicas=6"]);
    until("pods have come", LONG, || (cluster.pods("web").len() == 6).then_some(()));
    assert_eq!(all(&others), before, "more pods");
    cluster.control.run(&["scale", "deployment", "web", "--replicas=3"]);
    until("pods have gone", LONG, || (cluster.pods("web").len() == 3).then_some(()));
    let (after, left) = (all(&others), cluster.pods("web"));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after.len(), 1, "{after:?}");
        assert!(before.is_disjoint(&left) || before == after, "{before:?} {after:?}");
    }
}

/// Only nodes with ready pods attract, and there the pods of the node answer; in the cluster all do.
#[test]
fn clients_outside_are_served_where_they_come() {
    let (cluster, web) = with_web(4);
    let (control, vip, all) = (&cluster.control, cluster.external("web"), cluster.pods("web"));
    let mut flows = Flows::open("the client", &cluster.client, vip, 100);
    cluster.patch("web", &json!({ "externalTrafficPolicy": "Local" }));
    // Whichever of them answers ARP.
    let (node, other) = until("one node's pods answer", LONG, || {
        let seen = names(&cluster.client, vip, 40);
        [("n1", "n2"), ("n2", "n1")].into_iter().find(|(node, _)| seen == cluster.pods_on(node))
    });
    let here = cluster.pods_on(node);
    assert!(!here.is_empty() && here.len() < all.len(), "{here:?} of {all:?}");
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
    until("the cluster's own clients are served by all", PATIENCE, || {
        (names(&cluster.workers[0].node.ns, vip, 40) == all).then_some(())
    });
    // A node whose pods go attracts no more.
    control.run(&["cordon", node]);
    for pod in &here {
        control.run(&["delete", "pod", pod, "--wait=false"]);
    }
    until("they are elsewhere", LONG, || {
        let pods = cluster.pods_on(other);
        (pods.len() == web.replicas as usize && cluster.pods("web") == pods).then_some(())
    });
    until("it advertises nothing of it any more", PATIENCE, || {
        let routes = cluster.worker(node).node.ns.ip(&format!("route show {vip} proto 118"));
        (!routes.contains("unreachable")).then_some(())
    });
    cluster.answer(vip, &cluster.pods("web"));
}

/// One with more pods has more to answer with; a client that reaches one pod alone has affinity, whatever its Service says.
#[test]
fn of_the_nodes_with_ready_pods_the_one_with_the_most_attracts() {
    let (cluster, web) = with_web(3);
    let nodes = ["n1", "n2"];
    let (most, _) =
        nodes.map(|node| (cluster.pods_on(node), node)).into_iter().max_by_key(|(pods, _)| pods.len()).unwrap();
    assert_eq!(most.len(), 2, "two of three are on one node");
    let services: Vec<String> = (0..6).map(|number| format!("local-{number}")).collect();
    for name in &services {
        let mut service = another(&web, name);
        service["spec"]["externalTrafficPolicy"] = "Local".into();
        cluster.control.apply(&service);
    }
    for service in &services {
        let vip = cluster.external(service);
        until(&format!("both pods answer for {service}"), LONG, || {
            let seen: Option<BTreeSet<String>> = (0..20).map(|_| name(&cluster.client, vip)).collect();
            (seen? == most).then_some(())
        });
    }
}

/// Its type and back, no pods at all, and pods elsewhere.
#[test]
fn the_address_outlives_types_and_moves() {
    let (cluster, _web) = with_web(2);
    let (control, vip) = (&cluster.control, cluster.external("web"));
    // The API takes the address out of the status with the type.
    for kind in ["ClusterIP", "LoadBalancer"] {
        cluster.patch("web", &json!({ "type": kind }));
    }
    until("it has its address again", LONG, || (cluster.ingress("web")? == vip).then_some(()));
    cluster.answer(vip, &cluster.pods("web"));
    // For longer it is given back, and then there is one again.
    cluster.patch("web", &json!({ "type": "ClusterIP" }));
    until("it is no VIP any more", LONG, || cluster.vip("default/web").is_none().then_some(()));
    cluster.patch("web", &json!({ "type": "LoadBalancer" }));
    let vip = cluster.external("web");
    cluster.answer(vip, &cluster.pods("web"));
    for (closed, open) in [("n1", "n2"), ("n2", "n1")] {
        control.run(&["scale", "deployment", "web", "--replicas=0"]);
        until("no pod is left", LONG, || cluster.pods("web").is_empty().then_some(()));
        cluster.is_silent(vip);
        assert_eq!(cluster.ingress("web"), Some(vip));
        control.run(&["cordon", closed]);
        control.run(&["scale", "deployment", "web", "--replicas=2"]);
        until("pods are on the other node", LONG, || (cluster.pods_on(open).len() == 2).then_some(()));
        cluster.answer(vip, &cluster.pods("web"));
        control.run(&["uncordon", closed]);
        assert_eq!(cluster.ingress("web"), Some(vip));
    }
}
