//! What the programs for people say of a port that has another number in the pod.

use serde_json::{Value, json};

use super::service;
use crate::harness::{Connection, Crowd, Join, Lan, Node, PATIENCE, PORT, Run, Sidecar, connect, until};

#[test]
fn where_finds_the_connection_and_names_the_pods_number() {
    let service = service(3, 0);
    let stream = super::dial(&service.client, (service.vip.into(), PORT)).expect("connect");
    let client = stream.local_addr().expect("its address");
    let name = Connection::over(stream.try_clone().expect("a second descriptor")).and_then(|mut talk| talk.ask());
    let name = name.expect("an answer").name;
    let pod = service.pods.iter().find(|pod| pod.name == name).expect("a replica");
    let mut command = service.node.ctl();
    command.args(["where", &client.to_string(), &format!("{}:{PORT}", service.vip), "--output", "json"]);
    let place: Value = serde_json::from_str(&command.finish("").ok()).expect("JSON");
    assert_eq!(place["because"], "connection", "{place}");
    assert_eq!(place["replica"]["pod"], json!(format!("default/{name}")), "{place}");
    assert_eq!(place["replica"]["port"], json!(service.target(pod)), "{place}");
    let mut command = service.node.ctl();
    command.args(["where", &client.to_string(), &format!("{}:{PORT}", service.vip)]);
    let text = command.finish("").ok();
    assert!(text.contains(&format!("port {}", service.target(pod))), "{text}");
}

#[test]
fn status_shows_both_numbers() {
    let service = service(2, 0);
    let replicas = service.status()["replicas"].clone();
    for pod in &service.pods {
        let ports =
            json!([format!("{PORT}:{}/tcp", service.target(pod)), format!("{PORT}:{}/udp", service.target(pod))]);
        let is_it = |replica: &&Value| replica["ports"] == ports;
        assert!(replicas.as_array().expect("replicas").iter().any(|replica| is_it(&replica)), "{replicas}");
    }
}

/// The check asks for the pod's number.
#[test]
fn a_check_waits_for_the_pods_port() {
    for check in ["listen", "tcp"] {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let settings = "backend = \"pool\"\nannounce = \"none\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
        let sidecar = Sidecar::start(&node, settings);
        let join = Join::annotated("web").annotation("viproute.io/ports", &format!("{PORT}:9090/tcp"));
        let join = join.annotation("viproute.io/health", &format!("{check} interval=200ms"));
        let pod = node.joined(&join);
        // The VIP's number is none of the pod's.
        let _decoy = Crowd::start(&pod);
        let state = || crate::harness::status(&node, pod.vip())["replicas"][0]["state"].clone();
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(state(), "pending", "{check}");
        let _server = Crowd::on(&pod, 9090);
        until("the replica is ready", PATIENCE, || (state() == "ready").then_some(()));
        connect(&lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]), pod.vip(), 20);
        drop(sidecar);
    }
}
