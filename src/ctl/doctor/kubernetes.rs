//! Findings about Kubernetes Services: what viprouted says of them and of the API, which it asks for this, and what kube-proxy has of VIPs.

use std::time::Duration;

use crate::api::client;
use crate::api::protocol::{ClusterFinding, ClusterFindingKind};

use super::scene::Scene;
use super::{Cure, Finding, advice, command, kube_proxy};

/// viprouted asks the API for four seconds.
const ANSWER: Duration = Duration::from_secs(6);
/// So many findings of a kind are shown.
const SHOWN: usize = 10;

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    if scene.good_config().is_none_or(|config| config.kubernetes.is_none()) {
        return Vec::new();
    }
    let mut findings = kube_proxy::look(scene);
    // Where it can't be reached, that is found elsewhere.
    if let Ok(found) = client::kubernetes(&scene.places.allocator, true, ANSWER) {
        let mut all: Vec<ClusterFinding> = found.findings;
        all.sort();
        for of_kind in all.chunk_by(|one, other| one.kind == other.kind) {
            findings.extend(of_kind.iter().take(SHOWN).map(|finding| told(finding, scene)));
        }
    }
    findings
}

fn ignores_policies(scene: &Scene<'_>) -> bool {
    let kubernetes = scene.good_config().and_then(|config| config.kubernetes.as_ref());
    kubernetes.is_some_and(|kubernetes| kubernetes.ignore_policies)
}

fn told(finding: &ClusterFinding, scene: &Scene<'_>) -> Finding {
    let what = finding.text.clone();
    let config = scene.places.config.display();
    match finding.kind {
        ClusterFindingKind::Right => {
            let why = "What it can't read it doesn't follow, and what it can't write nobody sees.";
            Finding::error(what, why, command("kubectl apply -f conf/kubernetes-rbac.yaml"))
        }
        ClusterFindingKind::Clock => {
            let why = "Certificates and tokens count as expired, or as not valid yet, and events are in a wrong order.";
            Finding::warning(
                what,
                why,
                advice("Let both follow the same time servers (chronyc tracking, timedatectl).".to_owned()),
            )
        }
        ClusterFindingKind::Policy => {
            let why = if ignores_policies(scene) {
                "What comes for a VIP enters the pod by an interface of its own, vip0: whether the policy holds for it depends on where its engine \
                 looks. viproute enforces none."
            } else {
                "What comes for a VIP enters the pod by an interface of its own, vip0, where engines of policies don't look: the pod gets no \
                 connections by VIPs."
            };
            let cure = format!(
                "Say who may reach the VIP by a firewall on the nodes, or on the routers before them (docs/how-to/kubernetes.md), and let the policy \
                 not select the pod, or set network_policy = \"ignore\" in [kubernetes] of {config}."
            );
            Finding::hint(what, why, advice(cure))
        }
        ClusterFindingKind::Class => {
            let why = "No load balancer takes a Service without a class, unless one is set to.";
            let cure = format!(
                "Set spec.loadBalancerClass of those that viproute is to serve (it can be set once alone: make them again), or default_class = true \
                 in [kubernetes] of {config}."
            );
            Finding::hint(what, why, advice(cure))
        }
        ClusterFindingKind::Api => {
            let why = "kube-proxy may take the VIP for its own address, and answer in viproute's place.";
            Finding::warning(
                what,
                why,
                advice("Upgrade the cluster: viproute is made for Kubernetes 1.34 and later.".to_owned()),
            )
        }
        ClusterFindingKind::Service | ClusterFindingKind::Other => {
            let why = "The Service's Events say it too.";
            let (namespace, name) = what.split(": ").next().and_then(|key| key.split_once('/')).unwrap_or_default();
            let cure: Cure = command(format!("kubectl describe service --namespace {namespace} {name}"));
            Finding::warning(what.clone(), why, cure)
        }
    }
}
