//! `viproutectl nodes`: the nodes that serve the same VIPs.

use std::path::Path;
use std::time::Duration;

use comfy_table::{Table, presets};

use crate::api::client;
use crate::api::protocol::{NodeEntry, Nodes};
use crate::ctl::ANSWER;

/// The table's columns.
pub const COLUMNS: [&str; 8] = ["NODE", "ID", "TUNNEL", "STATE", "HEARD", "VIPS", "READY", "VERSION"];

/// Asks viprouted.
pub fn ask(allocator: &Path) -> Result<Nodes, client::Error> {
    client::nodes(allocator, ANSWER)
}

/// Has the others told that this node leaves. What came of it.
pub fn leave(allocator: &Path) -> Result<&'static str, client::Error> {
    Ok(if client::depart(allocator, ANSWER)? {
        "The other nodes send no new connections here until viprouted starts again."
    } else {
        "This node stands alone: there are no others to be told."
    })
}

/// As a table, this node first.
pub fn table(found: &Nodes) -> String {
    let Some(own) = &found.own else {
        return "This node stands alone: viprouted.toml has no [membership], or viprouted has just started.".to_owned();
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(COLUMNS);
    table.add_row(row(own, "this node".to_owned()));
    for node in &found.nodes {
        let silent = Duration::from_millis(node.silent_ms - node.silent_ms % 100);
        let heard = if node.silent_ms < 1000 {
            "now".to_owned()
        } else {
            format!("{} ago", humantime::format_duration(silent))
        };
        table.add_row(row(node, heard));
    }
    let mut text = table.trim_fmt();
    for finding in &found.findings {
        text.push_str("\n! ");
        text.push_str(&finding.text);
    }
    text
}

fn row(node: &NodeEntry, heard: String) -> [String; 8] {
    let NodeEntry { name, id, tunnel, state, vips, ready, version, .. } = node;
    [
        name.clone(),
        id.to_string(),
        tunnel.to_string(),
        state.clone(),
        heard,
        vips.to_string(),
        ready.to_string(),
        version.clone(),
    ]
}
