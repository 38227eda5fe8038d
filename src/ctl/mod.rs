//! `viproutectl`'s work: what a person asks, answered from the registry, the kernel and the allocator.

pub mod locate;
pub mod status;

use crate::registry::Endpoint;

/// How a replica is called.
fn pod_name(attachment: &str, endpoint: &Endpoint) -> String {
    endpoint.pod_name(attachment)
}
