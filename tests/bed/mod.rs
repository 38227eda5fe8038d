//! What tests, benchmarks and demo share: namespaces, programs, a LAN, nodes with pods, the CNI call, viprouted, real
//! DHCP servers. What fails here panics; what a benchmark has to report as a failure of what it measures returns it.

// Each of the three uses another part of it.
#![allow(dead_code)]

pub mod bpffs;
pub mod cni;
pub mod command;
pub mod daemon;
pub mod dhcp_server;
pub mod join;
pub mod lan;
pub mod load;
pub mod netns;
pub mod node;
pub mod pod;
pub mod serve;
pub mod sidecar;
pub mod snapshot;
pub mod stub;
pub mod tempdir;
pub mod wait;
