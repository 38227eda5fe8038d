//! A real Kubernetes: API server, controllers, scheduler, two kubelets with containerd, kube-proxy and `CoreDNS` on a LAN of network
//! namespaces, with viproute in the pods' network.
//!
//! Run as root: `./install.sh test --kubernetes`, which builds what this needs. No other run of the tests has this target.

// A test stops at the first difference from what it expects, by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Files here are for one reader, who waits until the writer is done.
#![allow(clippy::disallowed_methods)]

mod bed;
mod chart;
mod conformance;
mod quickstart;
mod replicas;
mod services;

// The end-to-end tests' own; not every item is used here.
#[allow(dead_code, unused_imports)]
#[path = "../e2e/harness/mod.rs"]
mod harness;
