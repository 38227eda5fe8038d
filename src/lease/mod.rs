//! The address side of viproute: what `viprouted` runs, and the client the plugin talks to it with.
//!
//! A VIP's address comes from DHCP or from a pool, is checked against what the network already routes (address conflict search),
//! kept on disk, renewed while the VIP is in use and given up some time after its last replica left.

pub mod allow;
pub mod beside;
pub mod clock;
pub mod cluster;
pub mod conflict;
pub mod decider;
pub mod gateway;
pub mod grant;
pub mod heartbeat;
pub mod nodes;
pub mod pools;
pub mod search;
pub mod settings;
pub mod source;
pub mod state;
pub mod store;
pub mod writer;

pub use settings::Settings;
pub use store::decode as decode_lease_file;
