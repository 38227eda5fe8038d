//! The kernel: one file per kind of object, each with its requests (made here, sent by [`Socket::apply`]) and its
//! reads. Nothing above this module knows netlink; nothing in it knows VIPs.
//!
//! A socket belongs to one network namespace for life. [`NodeNet`] and [`PodNet`] are distinct types, so that the two
//! can't be swapped.

pub mod address;
pub mod departures;
pub mod error;
pub mod filter;
pub mod link;
pub mod monitor;
pub mod neighbour;
pub mod netns;
pub mod nexthop;
pub mod nftables;
pub mod route;
pub mod rule;
pub mod socket;
pub mod sockets;
pub mod sysctl;
pub mod unix;

pub use error::Error;
pub use monitor::Monitor;
pub use netns::{Netns, NodeNet, PodNet};
pub use socket::{Request, Socket};

/// The mark of ownership on every route, rule, nexthop and neighbour of ours (`rtm_protocol`, `/etc/iproute2/rt_protos`).
pub const PROTOCOL: u8 = 118;

/// What a call on the kernel gives.
pub type Result<T> = std::result::Result<T, Error>;
