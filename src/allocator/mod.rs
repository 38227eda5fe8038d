//! The address side of viproute: what `viprouted` runs, and the client the plugin talks to it with.
//!
//! A VIP's address comes from DHCP or from a pool, is checked against what the network already routes (claim 3),
//! kept on disk, renewed while the VIP is in use and let go some time after its last replica left.

pub mod allow;
mod arp;
pub mod client;
pub mod config;
mod conflict;
mod lease;
pub mod protocol;
mod source;
mod state;
mod store;
