//! viprouted's socket: protocol, client and server.

pub mod client;
pub mod protocol;
#[cfg(feature = "node")]
pub mod server;
