//! DHCP servers that refuse what others have granted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::Family;

/// So long a server's refusal is shown after its last.
const FOREIGN_KEPT: Duration = Duration::from_secs(3600);

/// DHCP servers that refuse addresses which others have given, and when they last did.
#[derive(Debug, Default)]
pub(super) struct ForeignServers(BTreeMap<IpAddr, (Instant, String)>);

impl ForeignServers {
    /// It did so again; a sentence if it hasn't for long.
    pub(super) fn heard(&mut self, server: IpAddr, granted_by: Option<IpAddr>, why: &str) -> Option<String> {
        let by = granted_by.map_or_else(|| "another server".to_owned(), |server| server.to_string());
        let text = match Family::of(server) {
            Family::V4 => format!(
                "the DHCP server {server} refuses (NAK {why:?}) an address that {by} has granted, which changes nothing: two \
                 servers of one link must know of each other, or dhcp.servers must name the one that counts"
            ),
            Family::V6 => format!(
                "the DHCPv6 server {server} refuses an address that {by} has granted ({why}), which changes nothing: two servers \
                 of one link must know of each other"
            ),
        };
        let before = self.0.insert(server, (Instant::now(), text.clone()));
        before.is_none_or(|(at, _)| at.elapsed() > FOREIGN_KEPT).then_some(text)
    }

    /// What is wrong now, a sentence each.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.0.values().filter(|(at, _)| at.elapsed() < FOREIGN_KEPT).map(|(_, text)| text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_words_and_each_server_is_said_once() {
        let mut foreign = ForeignServers::default();
        let [four, six]: [IpAddr; 2] = ["192.0.2.253", "fe80::fd"].map(|text| text.parse().unwrap());
        let said = foreign.heard(four, Some([192, 0, 2, 254].into()), "wrong network").unwrap();
        assert!(said.contains("(NAK \"wrong network\") an address that 192.0.2.254") && said.contains("dhcp.servers"));
        let said = foreign.heard(six, None, "NoBinding").unwrap();
        assert!(said.starts_with("the DHCPv6 server fe80::fd refuses an address that another server"), "{said}");
        assert!(said.contains("(NoBinding)") && !said.contains("NAK") && !said.contains("dhcp.servers"), "{said}");
        assert_eq!(foreign.heard(six, None, "NoBinding"), None);
        assert_eq!(foreign.problems().count(), 2);
    }
}
