//! The node's own objects, a projection like VIPs and attachments: what must be, what is, the difference (pure), and what
//! applies it. One file each; `node::reconcile` drives them.

pub mod discard;
#[cfg(feature = "node")]
pub mod election;
pub mod notrack;
pub mod pod_links;
pub mod proxy;
pub mod settings;
pub mod source;
pub mod tunnel;
pub mod uplink;
#[cfg(feature = "node")]
pub mod uplinks;
