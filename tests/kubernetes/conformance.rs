//! Kubernetes' own specs of load balancers, as its end-to-end suite has them: `./install.sh test --kubernetes --conformance`.

use crate::bed::{Cluster, Setup, Spec, Suite};

/// Processes of the suite: its specs wait for minutes, and do each other no harm.
const PROCESSES: usize = 6;

/// A spec that can't pass, and why.
type LeftOut = (&'static str, &'static str);

/// By decision.
const FINALIZER: LeftOut = (
    "should handle load balancer cleanup finalizer for service",
    "viproute sets no finalizer: a Service's end waits for nobody (docs/how-to/kubernetes.md)",
);

/// In dual stack, whoever balances the load.
const HEALTH_PORTS: LeftOut = (
    "should only target nodes with endpoints",
    "kube-proxy answers healthCheckNodePort by the Service's families alone, and the spec asks all of a node's addresses for a Service of IPv4",
);

#[test]
#[ignore = "takes many minutes: ./install.sh test --kubernetes --conformance"]
fn load_balancers() {
    conform(&Setup { services: true, ..Setup::default() }, &[FINALIZER]);
}

#[test]
#[ignore = "takes many minutes: ./install.sh test --kubernetes --conformance"]
fn load_balancers_in_dual_stack() {
    conform(&Setup { services: true, dual: true, ..Setup::default() }, &[FINALIZER, HEALTH_PORTS]);
}

/// The suite's Services have no class: the nodes serve those, too.
fn conform(setup: &Setup, left_out: &[LeftOut]) {
    let focus = std::env::var("VIPROUTE_CONFORMANCE").unwrap_or_else(|_| r"\[sig-network\] LoadBalancers".to_owned());
    let cluster = Cluster::with(setup);
    let suite = Suite::new(&cluster);
    let names = suite.names(&focus);
    let names: Vec<String> =
        names.into_iter().filter(|name| !left_out.iter().any(|(spec, _)| name.contains(spec))).collect();
    assert!(!names.is_empty(), "no spec is {focus}");
    let specs = suite.run(&names, PROCESSES);
    for Spec { name, state, seconds, said } in &specs {
        eprintln!("{state:8} {seconds:5} s  {name}  {said}");
    }
    for (name, why) in left_out {
        eprintln!("left out          {name}: {why}");
    }
    let failed: Vec<_> = specs.iter().filter(|spec| !matches!(spec.state.as_str(), "passed" | "skipped")).collect();
    assert!(failed.is_empty() && specs.len() >= names.len(), "{failed:#?}");
}
