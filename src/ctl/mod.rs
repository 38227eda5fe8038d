//! `viproutectl`'s work: what a person asks, answered from the registry, the kernel and the allocator.

pub mod arguments;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod locate;
pub mod manual;
pub mod status;
pub mod watch;

use crate::registry::Endpoint;

/// `<namespace>/<name>` of a replica's pod where the runtime names it, else its attachment.
fn pod_name(attachment: &str, endpoint: &Endpoint) -> String {
    endpoint.pod.label().unwrap_or_else(|| attachment.to_owned())
}
