//! Takes the express path's programs off all devices, and the tunnel to other nodes and the pools' discard routes away, where no viprouted is left
//! that would.

use crate::dataplane::node::pod_links::About;
use crate::dataplane::node::{discard, tunnel, uplinks};
use crate::dataplane::{self, ids};
use crate::net::{NodeNet, link};

/// What was removed.
pub fn unload() -> dataplane::Result<Vec<String>> {
    let node = NodeNet::open()?;
    let links = link::list(&node)?;
    let left = uplinks::left(&node, &links, &About::default())?;
    let had = links.iter().filter(|link| left.contains(&link.index));
    let mut removed: Vec<String> = had
        .map(|link| {
            Ok(uplinks::clear(&node, link.index).map(|()| format!("the express path's programs on {}", link.name))?)
        })
        .collect::<dataplane::Result<_>>()?;
    // The programs' maps go with their pins.
    let had_tunnel = !tunnel::remove(&node, [])?.is_empty();
    removed.extend(had_tunnel.then(|| format!("the tunnel {}", ids::TUNNEL_DEVICE)));
    removed.extend(discard::remove(&node)?);
    Ok(removed)
}
