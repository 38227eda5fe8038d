//! DHCP servers that refuse what others have granted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// So long a server's refusal is shown after its last.
const FOREIGN_KEPT: Duration = Duration::from_secs(3600);

/// DHCP servers that refuse addresses which others have given, and when they last did.
#[derive(Debug, Default)]
pub(super) struct ForeignServers(BTreeMap<IpAddr, (Instant, String)>);

impl ForeignServers {
    /// It did so again; a sentence if it hasn't for long.
    pub(super) fn heard(&mut self, server: IpAddr, granted_by: Option<IpAddr>, why: &str) -> Option<String> {
        let by = granted_by.map_or_else(|| "another server".to_owned(), |server| server.to_string());
        let text = format!(
            "the DHCP server {server} refuses (NAK {why:?}) an address that {by} has granted, which changes nothing: two servers \
             of one link must know of each other, or dhcp.servers must name the one that counts"
        );
        let before = self.0.insert(server, (Instant::now(), text.clone()));
        before.is_none_or(|(at, _)| at.elapsed() > FOREIGN_KEPT).then_some(text)
    }

    /// What is wrong now, a sentence each.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.0.values().filter(|(at, _)| at.elapsed() < FOREIGN_KEPT).map(|(_, text)| text.clone())
    }
}
