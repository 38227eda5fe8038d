//! viproute: a NAT-free load balancer for pods that lives in the routing table.
//!
//! Dependencies point one way: `bin` → (`cni`, `node`, `ctl`) → (`membership`, `lease`, `api`) → `dataplane` → (`registry`, `ebpf`, `net`, `chain`) →
//! `model`; `lease` → `dhcp`. `tests/layers.rs` checks it.

mod api;
#[cfg(feature = "node")]
pub mod chain;
pub mod cni;
#[cfg(feature = "node")]
pub mod ctl;
mod dataplane;
#[cfg(feature = "node")]
mod dhcp;
mod ebpf;
#[cfg(feature = "node")]
mod lease;
mod membership;
mod model;
mod net;
#[cfg(feature = "node")]
pub mod node;
mod registry;

/// What this is: `0.2.0`, or `0.2.0+g<commit>` where it was built of a commit that is no release.
pub const RELEASE: &str = env!("VIPROUTE_RELEASE");

/// What `--version` says of each binary: the release, and which build of the flow owner's programs it brings.
pub const VERSION: &str = concat!(env!("VIPROUTE_RELEASE"), " (flow owner ", env!("VIPROUTE_OWNER_VERSION"), ")");

/// An error and what led to it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What end-to-end tests, fuzzing and benchmarks use of the rooms. No interface: everything else in them is seen to be dead
/// where nothing uses it.
#[cfg(feature = "node")]
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internals {
    pub mod api {
        pub mod client {
            pub use crate::api::client::{acquire_all, leases};
        }
        pub use crate::api::protocol;
    }
    pub mod dataplane {
        pub use crate::dataplane::{Tables, ids, reconcile_vip, settings};
    }
    pub mod dhcp {
        pub use crate::dhcp::read_anything;
    }
    pub mod ebpf {
        pub use crate::ebpf::{
            Attached, Counts, Express, ExpressCounts, Known, LinkDrops, Listening, Maps, Member, PORTS, Question,
            express_counts,
        };
    }
    pub mod lease {
        pub use crate::lease::decode_lease_file;
    }
    pub mod membership {
        pub use crate::membership::{admission, running};
    }
    pub mod model {
        pub use crate::model::address;
        pub use crate::model::{Family, Recorded, Transport, VipKey};
    }
    pub mod net {
        pub use crate::net::{Netns, NodeNet, PROTOCOL};
        pub mod acd {
            pub use crate::net::acd::read_anything;
        }
        pub mod socket {
            pub use crate::net::socket::read_anything;
        }
        pub mod sockets {
            pub use crate::net::sockets::{Connection, Sockets};
        }
    }
    pub mod registry {
        pub use crate::registry::{AttachmentRecord, Endpoint, Registry, State, VipRecord, file};
    }
}
