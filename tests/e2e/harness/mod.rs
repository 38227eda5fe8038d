//! What the tests are written with: the common bed, and what they alone need of runtimes, load and disturbances.

mod bare;
mod churn;
mod containerd;
mod cri;
mod crowd;
mod datagrams;
mod debian;
mod endpoints;
mod files;
mod flows;
mod http;
pub mod image;
mod kill;
mod kubernetes;
pub mod machine;
mod metrics;
mod page;
mod root;
mod routing;
pub mod segment;
mod service;
mod smallfs;
mod storm;
pub mod tcx;
mod traffic;

#[path = "../../bed/mod.rs"]
mod bed;

use bed::{cni, command, daemon, join, lan, load, netns, node, pod, serve, sidecar, snapshot, tempdir, wait};

pub use bare::{bare_pod, for_each, nothing_left};
pub use bed::dhcp_server::{DELEGATED6, DhcpServer, KEA_POOL, KEA_POOL6, RANGE, RANGE6, RELAYED, RELAYED6, Software};
pub use churn::churn;
pub use cni::{Environment, Failure, Reply};
pub use command::{Finished, Run, base_plugin, tool};
pub use containerd::{Containerd, POOL};
pub use crowd::Crowd;
pub use daemon::Daemon;
pub use datagrams::{Datagrams, Echo, Kind, Outcome, by_kind, unspecified};
pub use debian::Debian;
pub use endpoints::{FAR_NEXTHOPS, FarReplicas, far_endpoint, vip_dir, write_endpoint};
pub use files::allow_many_files;
pub use flows::{Flows, hear};
pub use http::{HttpServer, SILENCE};
pub use join::{CAPABILITY, Join};
pub use kill::killed_after;
pub use kubernetes::{BEHIND, KubeApi};
pub use lan::{GATEWAY, Lan};
pub use load::{Connection, Load, Tally};
pub use machine::Machine;
pub use metrics::{Answer, Page, get};
pub use netns::Netns;
pub use node::{Families, Node};
pub use page::{blocks, script};
pub use pod::Pod;
pub use routing::{Bird, Frr};
pub use serve::Server;
pub use service::{Service, hashes_own_ports, status};

/// The programs under test.
pub const VIPROUTE: &str = env!("CARGO_BIN_EXE_viproute");
pub const VIPROUTECTL: &str = env!("CARGO_BIN_EXE_viproutectl");

pub use bed::stub::Stub;
pub use sidecar::{Sidecar, ask};
pub use smallfs::SmallFs;
pub use snapshot::Snapshot;
pub use storm::Storm;
pub use tempdir::TempDir;
pub use traffic::{PORT, PodServer, attempt, connect, serve_all, share};
pub use wait::{LONG, PATIENCE, REPAIRED, SOON, deadline, quiet, scaled, until};
