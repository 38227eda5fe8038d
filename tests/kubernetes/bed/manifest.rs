//! Objects as people write them.

use serde_json::{Value, json};

use super::cluster::SERVER;
use super::control::ControlPlane;
use crate::harness::PORT;

/// A Deployment of the tests' server.
#[derive(Clone)]
pub struct Deployment {
    pub name: &'static str,
    pub replicas: u32,
    /// Of its pods.
    pub annotations: Value,
    /// The port that its pods listen on.
    pub port: u16,
    /// One more, which is named `second`.
    pub second: Option<u16>,
    /// What its pods have in common with those of other Deployments, by the label `part`.
    pub part: &'static str,
    /// Further arguments of the server.
    pub arguments: Vec<String>,
    /// `terminationGracePeriodSeconds`
    pub grace: u32,
    /// A change of it is a rollout.
    pub revision: u32,
}

impl Deployment {
    pub fn new(name: &'static str, replicas: u32) -> Self {
        let (annotations, arguments) = (json!({}), Vec::new());
        Self { name, replicas, annotations, port: PORT, second: None, part: name, arguments, grace: 2, revision: 1 }
    }

    /// The same, whose pods ignore SIGTERM: they are killed after their grace.
    pub fn stubborn(mut self) -> Self {
        self.arguments.push("-term=ignore".into());
        self
    }

    pub fn annotated(mut self, annotations: Value) -> Self {
        self.annotations = annotations;
        self
    }

    /// As it is given to the API.
    pub fn object(&self) -> Value {
        let labels = json!({ "app": self.name });
        let ports: Vec<_> = [self.port].into_iter().chain(self.second).map(|port| port.to_string()).collect();
        let mut arguments = vec![format!("-ports={}", ports.join(","))];
        arguments.extend(self.arguments.iter().cloned());
        let mut named = vec![json!({ "name": "main", "containerPort": self.port })];
        named.extend(self.second.map(|port| json!({ "name": "second", "containerPort": port })));
        let container = json!({
            "name": "server",
            "image": SERVER,
            "imagePullPolicy": "Never",
            "args": arguments,
            "env": [{ "name": "REVISION", "value": self.revision.to_string() }],
            "ports": named,
            "readinessProbe": { "tcpSocket": { "port": self.port }, "periodSeconds": 1 },
        });
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.name },
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": labels },
                "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "template": {
                    "metadata": { "labels": { "app": self.name, "part": self.part }, "annotations": self.annotations },
                    "spec": {
                        "containers": [container],
                        "terminationGracePeriodSeconds": self.grace,
                        // Half of them on each node.
                        "topologySpreadConstraints": [{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": { "matchLabels": labels },
                        }],
                    },
                },
            },
        })
    }

    /// Until all its pods are ready, and no other is left.
    pub fn apply(&self, control: &ControlPlane) {
        control.apply(&self.object());
        self.wait(control);
    }

    /// Until that is so of one that the API has.
    pub fn wait(&self, control: &ControlPlane) {
        control.run(&["rollout", "status", "--timeout=180s", "deployment", self.name]);
    }

    /// Until none of its pods is left.
    pub fn delete(&self, control: &ControlPlane) {
        control.run(&["delete", "deployment", self.name, "--cascade=foreground", "--timeout=60s"]);
    }

    /// A Service of it: each of its ports, by the number that is called and the pods' own.
    pub fn service(&self, kind: &str, ports: &[(u16, u16)]) -> Value {
        let port =
            |&(port, target): &(u16, u16)| json!({ "name": format!("p{port}"), "port": port, "targetPort": target });
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name },
            "spec": {
                "type": kind,
                "selector": { "app": self.name },
                "ports": ports.iter().map(port).collect::<Vec<_>>(),
            },
        })
    }
}
