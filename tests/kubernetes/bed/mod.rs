//! What the tests here stand on, beyond the end-to-end tests' harness.

mod answers;
mod arrivals;
mod cluster;
mod control;
mod image;
mod manifest;
pub mod many;
mod parts;
mod pki;
mod rollout;
mod service;
mod suite;
mod worker;

pub use arrivals::Arrivals;
pub use cluster::{Cluster, DHCP_ADDRESSES, SERVER, Setup};
pub use image::{programs, tag};
pub use manifest::Deployment;
pub use many::Many;
pub use parts::part;
pub use rollout::{Outcome, Rollout};
pub use suite::{Spec, Suite};
pub use worker::Worker;
