//! Which attachments a call is about that names a container of the runtime's: that one's, and one that was made by hand
//! for the same pod when the plugin had never been called for it.

use std::path::Path;

use crate::model::AttachmentId;
use crate::registry::{Netns, Registry, Result};

/// In the order of their weight; perhaps without a record. Without a namespace, or one that is gone, those made by hand
/// whose pods are gone.
pub fn attachments(registry: &Registry, named: &AttachmentId, netns: Option<&Path>) -> Result<Vec<AttachmentId>> {
    let mut found = vec![named.clone()];
    match netns.map(Netns::at) {
        Some(Ok(netns)) => found.push(netns.attachment(&named.ifname)),
        _ => found.extend(gone(registry)?),
    }
    Ok(found)
}

fn gone(registry: &Registry) -> Result<Vec<AttachmentId>> {
    let mut gone = Vec::new();
    for attachment in registry.attachments()?.into_iter().filter(AttachmentId::is_by_netns) {
        // GC reports a damaged one.
        let record = registry.attachment_record(&attachment).ok().flatten();
        if record.is_some_and(|record| !record.netns.is_still_there()) {
            gone.push(attachment);
        }
    }
    Ok(gone)
}
