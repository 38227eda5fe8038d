//! The address side of viproute: what `viprouted` runs, and the client the plugin talks to it with.
//!
//! A VIP's address comes from DHCP or from a pool, is checked against what the network already routes (claim 3),
//! kept on disk, renewed while the VIP is in use and let go some time after its last replica left.

pub mod allow;
mod announce;
pub mod arguments;
mod arp;
mod chronicle;
pub mod client;
pub mod config;
mod conflict;
mod dataplane;
mod events;
mod hands;
mod keeper;
mod lease;
mod notify;
pub mod protocol;
mod run;
mod search;
mod server;
mod source;
mod state;
mod store;
mod uplink;
mod watch;

pub use run::{Error, run};
pub use store::decode as decode_lease_file;
