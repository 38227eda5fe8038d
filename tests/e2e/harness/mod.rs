//! What the tests are written with: namespaces, nodes, pods, the CNI call, real DHCP servers, load, snapshots.

mod bare;
mod bpffs;
mod churn;
mod cni;
mod command;
mod containerd;
mod cri;
mod crowd;
mod daemon;
mod datagrams;
mod dhcp_server;
mod files;
mod flows;
mod http;
mod image;
mod join;
mod kill;
mod lan;
mod machine;
mod metrics;
mod netns;
mod node;
mod pod;
mod service;
mod sidecar;
mod smallfs;
mod snapshot;
mod storm;
mod stub;
mod tempdir;
mod traffic;
mod wait;

// The example program's own client and server, so that tests and demo speak the same.
#[path = "../../../examples/peer/load.rs"]
#[allow(dead_code)]
mod load;
#[path = "../../../examples/peer/serve.rs"]
#[allow(dead_code)]
mod serve;

pub use bare::{bare_pod, for_each, nothing_left};
pub use churn::churn;
pub use cni::{Environment, Failure, Reply, VIPROUTE};
pub use command::{Finished, Run, base_plugin, tool};
pub use containerd::{Containerd, POOL};
pub use crowd::Crowd;
pub use daemon::Daemon;
pub use datagrams::{Datagrams, Echo, Kind, Outcome, by_kind};
pub use dhcp_server::{DhcpServer, KEA_POOL, RANGE, RELAYED, Software};
pub use files::allow_many_files;
pub use flows::{Flows, hear};
pub use http::{HttpServer, SILENCE};
pub use join::{CAPABILITY, Join};
pub use kill::killed_after;
pub use lan::Lan;
pub use load::{Connection, Load, Tally};
pub use machine::Machine;
pub use metrics::{Answer, Page, get};
pub use netns::Netns;
pub use node::Node;
pub use pod::Pod;
pub use serve::Server;
pub use service::{Service, VIPROUTECTL, status};
pub use sidecar::{Sidecar, ask};
pub use smallfs::SmallFs;
pub use snapshot::Snapshot;
pub use storm::Storm;
pub use stub::Stub;
pub use tempdir::TempDir;
pub use traffic::{PORT, PodServer, attempt, connect, serve_all, share};
pub use wait::until;
