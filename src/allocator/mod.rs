//! The address side of viproute: what `viprouted` runs, and the client the plugin talks to it with.
//!
//! A VIP's address comes from DHCP or from a pool, is checked against what the network already routes (claim 3),
//! kept on disk, renewed while the VIP is in use and let go some time after its last replica left.

pub mod allow;
mod announce;
mod arp;
pub mod client;
pub mod config;
mod conflict;
mod daemon;
mod dataplane;
mod lease;
pub mod protocol;
pub mod run;
mod saver;
mod search;
mod server;
mod source;
mod state;
mod store;
mod watch;

/// An error and its causes in one sentence.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
