//! viproute: a NAT-free load balancer for pods that lives in the routing table.
//!
//! Dependencies point one way: `bin` → `plugin` → `vip` → (`registry`, `net`, `bpf`); `allocator` → (`dhcp`, `agent`); `agent` → `vip`,
//! and of the allocator it knows its configuration and its protocol; `ctl` looks at all of them.
//! `net` and `dhcp` know nothing of VIPs; `cni` knows nothing of the kernel; `health`, what can be asked for, is pure.

pub mod agent;
pub mod allocator;
pub mod bpf;
pub mod cni;
pub mod ctl;
pub mod dhcp;
pub mod health;
pub mod net;
pub mod plugin;
pub mod registry;
pub mod vip;

/// What `--version` says of each binary: the release, and which build of the flow owner's programs it brings.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (flow owner ", env!("VIPROUTE_OWNER_VERSION"), ")");

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
