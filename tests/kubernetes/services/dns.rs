//! A DNS server's pods behind a Service: one port number of two protocols, by a server that listens on all addresses with one socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use super::serving;
use crate::bed::{Cluster, Deployment, part};
use crate::harness::{LONG, Netns, TempDir, image, scaled, until};

const IMAGE: &str = "viproute.test/coredns:1";
const NAME: &str = "kubernetes.default.svc.cluster.local";
/// The address of the Service `kubernetes`.
const ADDRESS: [u8; 4] = [10, 96, 0, 1];

/// A DNS server as a cluster has it: it asks the API by an account of its own.
fn objects() -> Vec<Value> {
    let corefile = ".:53 {\n errors\n kubernetes cluster.local\n}\n";
    let account = json!({ "kind": "ServiceAccount", "name": "dns", "namespace": "default" });
    let rules = json!([
        { "apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    let container = json!({
        "name": "coredns",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{ "name": "corefile", "mountPath": "/etc/coredns" }],
        "readinessProbe": { "tcpSocket": { "port": 53 }, "periodSeconds": 1 },
    });
    let template = json!({
        "metadata": { "labels": { "app": "dns" } },
        "spec": {
            "serviceAccountName": "dns",
            "containers": [container],
            "volumes": [{ "name": "corefile", "configMap": { "name": "dns" } }],
        },
    });
    let rbac = "rbac.authorization.k8s.io";
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "dns" } }),
        json!({ "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": { "name": "dns" }, "rules": rules }),
        json!({
            "apiVersion": format!("{rbac}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "dns" },
            "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": "dns" },
            "subjects": [account],
        }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "dns" }, "data": { "Corefile": corefile } }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "dns" },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "dns" } }, "template": template },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "dns" },
            "spec": {
                "type": "LoadBalancer",
                "selector": { "app": "dns" },
                "ports": [
                    { "name": "dns", "port": 53, "protocol": "UDP" },
                    { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
                ],
            },
        }),
    ]
}

fn with_dns() -> Cluster {
    let (cluster, dir) = (serving(), TempDir::new());
    let archive = dir.path().join("coredns.tar");
    let content = image::Content { name: IMAGE, entrypoint: &["/bin/coredns"], programs: &[part("coredns")] };
    image::of(&archive, &content);
    for worker in &cluster.workers {
        worker.containerd.import(&archive, IMAGE);
    }
    for object in objects() {
        cluster.control.apply(&object);
    }
    Deployment::new("dns", 2).wait(&cluster.control);
    cluster
}

/// A question for an address (RFC 1035, 4.1).
fn question(id: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// The answer to that question has the Service's address at its end.
fn is_answer(id: u16, answer: &[u8]) -> bool {
    answer.starts_with(&id.to_be_bytes()) && answer.windows(4).any(|window| window == ADDRESS)
}

/// By a connected socket, which takes answers from the one it has asked alone.
fn by_udp(from: &Netns, to: Ipv4Addr, id: u16) -> Option<bool> {
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).ok()?;
    socket.set_read_timeout(Some(scaled(Duration::from_secs(1)))).ok()?;
    socket.connect((to, 53)).ok()?;
    socket.send(&question(id)).ok()?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    Some(is_answer(id, &answer[..length]))
}

/// With its length before it (4.2.2 there).
fn by_tcp(from: &Netns, to: Ipv4Addr, id: u16) -> Option<bool> {
    let mut stream = from.run(|| TcpStream::connect((to, 53))).ok()?;
    stream.set_read_timeout(Some(scaled(Duration::from_secs(1)))).ok()?;
    let question = question(id);
    stream.write_all(&u16::try_from(question.len()).ok()?.to_be_bytes()).ok()?;
    stream.write_all(&question).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).ok()?;
    Some(is_answer(id, &answer))
}

/// From outside at its VIP, and by the same sockets at its `ClusterIP`, which a node asks.
#[test]
fn a_dns_server_answers_from_who_was_asked() {
    let cluster = with_dns();
    let (vip, inside) = (cluster.external("dns"), cluster.internal("dns"));
    let node = &cluster.workers[0].node.ns;
    let mut wrong = Vec::new();
    for (who, from, to) in [("a client", &cluster.client, vip), ("a node", node, vip), ("a node", node, inside)] {
        // A node hears of the other one's replicas a moment after the first client does.
        until(&format!("{who} has an answer of {to}"), LONG, || by_udp(from, to, 1).filter(|is_right| *is_right));
        for id in 2..42 {
            let answers = [("UDP", by_udp(from, to, id)), ("TCP", by_tcp(from, to, id))];
            let wrong_ones = answers.iter().filter(|(_, answer)| *answer != Some(true));
            wrong.extend(wrong_ones.map(|(protocol, answer)| format!("{who} asks {to} by {protocol}: {answer:?}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
