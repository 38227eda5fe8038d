//! What contenders are measured on: nodes with pods and a client, on the tests' own bed.

// A benchmark reports what can't be measured; what fails before ends it.
#[path = "../../tests/bed/mod.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]
mod bed;
mod pod;
mod world;

pub use bed::cni::conf;
pub use bed::command::{Run, program, try_base_plugin};
pub use bed::daemon::Daemon;
pub use bed::join::Join;
pub use bed::lan::Lan;
pub use bed::netns::Netns;
pub use bed::node::Node;
pub use bed::pod::Pod as NodePod;
pub use bed::sidecar::Sidecar;
pub use bed::wait::{PATIENCE, try_until};
pub use pod::{Pod, PodKind};
pub use world::{CLIENT, NODE, POD_NET, VIPS, VIPS6, World, as_ipv6};
