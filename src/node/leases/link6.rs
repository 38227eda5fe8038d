//! The link that IPv6 addresses are leased by where that is another than the one to the gateways (`dhcp6.interface`): `DHCPv6` and the search for
//! conflicts of these addresses go over it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use crate::dataplane::node::uplink;
use crate::model::Family;
use crate::net::acd::{Acd, Claim};
use crate::net::link::Link;
use crate::with_causes;

use super::Daemon;

/// It, and what receives other hosts' claims there.
pub(super) struct Link6 {
    pub(super) link: Link,
    pub(super) acd: Arc<Acd>,
}

impl Daemon {
    /// The link that addresses of a family are leased by.
    pub(super) fn link_of(&self, family: Family) -> Option<&Link> {
        let other = self.link6.as_ref().filter(|_| family == Family::V6).map(|other| &other.link);
        other.or(self.link.as_ref())
    }

    /// What receives claims to that address.
    pub(super) fn acd_of(&self, address: IpAddr) -> Option<&Arc<Acd>> {
        let other = self.link6.as_ref().filter(|_| address.is_ipv6()).map(|other| &other.acd);
        other.or(self.acd.as_ref())
    }

    /// Binds to the link of that name anew, if it was made anew: it has another index then. `DHCPv6` does so by itself.
    pub(super) fn follow_link6(&mut self, claims: &mut Option<Receiver<Claim>>) {
        let Some(known) = &self.link6 else { return };
        let now = match uplink::again(&self.node, &known.link) {
            Ok(have) => have.link.filter(|now| now.mac.is_some() && !uplink::is_same(&known.link, now)),
            Err(error) => return tracing::debug!(error = with_causes(&error), "{} not read", known.link.name),
        };
        let Some(link) = now else { return };
        let opened = self.search_on(&link);
        let Some(leasing) = &mut self.v6 else { return };
        match opened {
            Ok((acd, heard, search)) => {
                leasing.executor.rebind(search, &link.name);
                (self.link6, *claims) = (Some(Link6 { link, acd }), Some(heard));
                self.permit_link();
            }
            Err(error) => tracing::debug!(link = link.name, error, "not bound to"),
        }
    }
}
