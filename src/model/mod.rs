//! The terms that all rooms share: names, addresses, ports, checks. No I/O.

pub mod address;
mod attachment;
mod backend;
pub mod check;
pub mod cni;
mod egress;
mod families;
mod group;
mod key;
mod mac;
mod network;
pub mod node;
mod policy;
pub mod port;
mod recorded;
mod served;
mod source;

pub use address::{Addresses, Family};
pub use attachment::{AttachmentId, DEFAULT_NAMESPACE};
pub use backend::{Backend, Peer};
pub use check::{CheckSpec, Probe};
pub use egress::Egress;
pub use families::{EXPECTED_FAMILIES, FamilyChoice};
pub use group::GroupSpec;
pub use key::{BadKey, VipKey};
pub use mac::Mac;
pub use network::{DEFAULT_BPF_DIR, NetworkSpec};
pub use node::Cluster;
pub use policy::{PortPolicy, VipPolicy};
pub use port::{Port, PortMap, Transport};
pub use recorded::Recorded;
pub use served::Served;
pub use source::Source;
