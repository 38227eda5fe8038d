//! The other nodes; nothing where this one stands alone.

use crate::node::Peers;

use super::page::Page;

/// Writes it on the page.
pub fn write(page: &Page, peers: &Peers) -> prometheus::Result<()> {
    let Some(status) = peers.status() else { return Ok(()) };
    let nodes = page.gauge("viproute_nodes", "Other nodes that serve VIPs, by their state.", &["state"])?;
    for state in ["live", "suspect", "restarting", "left"] {
        nodes.with_label_values(&[state]);
    }
    for node in &status.nodes {
        nodes.with_label_values(&[&node.state]).inc();
    }
    let help = "Datagrams of the membership that were dropped: of a source that sent too many (rate), that are none \
                (malformed), with another key (bad_key), that were there before (replay), of or for a process that has \
                ended (stale).";
    let dropped = page.counter("viproute_gossip_dropped_datagrams_total", help, &["reason"])?;
    for (why, count) in peers.dropped() {
        dropped.with_label_values(&[why.name()]).inc_by(count);
    }
    Ok(())
}
