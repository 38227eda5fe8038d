//! Where it is played: namespaces, programs, nodes with pods and a client.

mod command;
mod daemon;
mod namespace;
mod pod;
mod world;

pub use command::{Run, base_plugin, program};
pub use daemon::Daemon;
pub use namespace::Ns;
pub use pod::{Pod, PodKind};
pub use world::{CLIENT, NODE, POD_NET, World};
