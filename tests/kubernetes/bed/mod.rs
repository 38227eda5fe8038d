//! What the tests here stand on, beyond the end-to-end tests' harness.

mod answers;
mod arrivals;
mod cluster;
mod control;
mod image;
mod manifest;
mod parts;
mod pki;
mod rollout;
mod service;
mod suite;
mod worker;

pub use arrivals::Arrivals;
pub use cluster::{Cluster, DHCP_ADDRESSES, Setup};
pub use image::programs;
pub use manifest::Deployment;
pub use rollout::{Outcome, Rollout};
pub use suite::{Spec, Suite};
pub use worker::Worker;
