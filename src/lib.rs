//! viproute: a NAT-free load balancer for pods that lives in the routing table.
//!
//! Dependencies point one way: `bin` → `plugin` → `vip` → (`registry`, `net`); `allocator` → `dhcp`.
//! `net` and `dhcp` know nothing of VIPs; `cni` knows nothing of the kernel.

pub mod allocator;
pub mod cni;
pub mod ctl;
pub mod dhcp;
pub mod net;
pub mod plugin;
pub mod registry;
pub mod vip;
