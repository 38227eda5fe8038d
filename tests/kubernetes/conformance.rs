//! Kubernetes' own specs of load balancers, as its end-to-end suite has them: `./install.sh test --kubernetes --conformance`.

use crate::bed::{Cluster, Setup, Spec, Suite};

/// Processes of the suite: its specs wait for minutes, and do each other no harm.
const PROCESSES: usize = 6;

/// Specs that can't pass by decision, and why.
const DECIDED: [(&str, &str); 1] = [(
    "should handle load balancer cleanup finalizer for service",
    "viproute sets no finalizer: a Service's end waits for nobody (docs/how-to/kubernetes.md)",
)];

#[test]
#[ignore = "takes many minutes: ./install.sh test --kubernetes --conformance"]
fn load_balancers() {
    conform(&Setup { services: true, ..Setup::default() });
}

#[test]
#[ignore = "takes many minutes: ./install.sh test --kubernetes --conformance"]
fn load_balancers_in_dual_stack() {
    conform(&Setup { services: true, dual: true, ..Setup::default() });
}

/// The suite's Services have no class: the nodes serve those, too.
fn conform(setup: &Setup) {
    let focus = std::env::var("VIPROUTE_CONFORMANCE").unwrap_or_else(|_| r"\[sig-network\] LoadBalancers".to_owned());
    let cluster = Cluster::with(setup);
    let suite = Suite::new(&cluster);
    let names = suite.names(&focus);
    let names: Vec<String> =
        names.into_iter().filter(|name| !DECIDED.iter().any(|(decided, _)| name.contains(decided))).collect();
    assert!(!names.is_empty(), "no spec is {focus}");
    let specs = suite.run(&names, PROCESSES);
    for Spec { name, state, seconds, said } in &specs {
        eprintln!("{state:8} {seconds:5} s  {name}  {said}");
    }
    for (name, why) in DECIDED {
        eprintln!("left out          {name}: {why}");
    }
    let failed: Vec<_> = specs.iter().filter(|spec| !matches!(spec.state.as_str(), "passed" | "skipped")).collect();
    assert!(failed.is_empty() && specs.len() >= names.len(), "{failed:#?}");
}
