//! The links that addresses are leased and searched for by: the one to the gateways, and another one for IPv6 addresses where `dhcp6.interface` names one.
//! The reconciler finds them, and says which is another one; everything is bound to that one here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use crate::lease::search::Asked;
use crate::model::Family;
use crate::net::acd::{self, Acd, Claim};
use crate::net::link::Link;

/// Of a link: what claims to an address come by; none: there is no link.
pub(super) type Claims = Option<Receiver<Claim>>;

/// One of them.
#[derive(Default)]
pub(super) struct OneLink {
    pub(super) link: Option<Link>,
    /// Asks hosts for addresses there, and receives their claims to an address.
    pub(super) acd: Option<Arc<Acd>>,
    /// Another link in its place, to which not everything could be bound so far.
    pub(super) next: Option<Link>,
}

impl OneLink {
    /// Binds to it, where there is one.
    pub(super) fn open(link: Option<Link>) -> Result<(Self, Claims), acd::Error> {
        let (acd, claims) = link.as_ref().map(Acd::open).transpose()?.unzip();
        Ok((Self { link, acd, next: None }, claims))
    }
}

/// See the module.
pub(super) struct Links {
    uplink: OneLink,
    /// None: it is the same.
    ipv6: Option<OneLink>,
}

impl Links {
    /// The one to the gateways, and another one of IPv6 addresses.
    pub(super) fn new(uplink: OneLink, ipv6: Option<OneLink>) -> Self {
        Self { uplink, ipv6 }
    }

    /// The one of a family's addresses.
    pub(super) fn of(&self, family: Family) -> &OneLink {
        self.ipv6.as_ref().filter(|_| family == Family::V6).unwrap_or(&self.uplink)
    }

    /// The same.
    pub(super) fn of_mut(&mut self, family: Family) -> &mut OneLink {
        self.ipv6.as_mut().filter(|_| family == Family::V6).unwrap_or(&mut self.uplink)
    }

    /// The families whose addresses are on that one's link.
    pub(super) fn beside(&self, family: Family) -> &'static [Family] {
        match (&self.ipv6, family) {
            (None, _) => &Family::ALL,
            (Some(_), Family::V4) => &[Family::V4],
            (Some(_), Family::V6) => &[Family::V6],
        }
    }

    /// Those of IPv6 addresses are on another one.
    pub(super) fn are_two(&self) -> bool {
        self.ipv6.is_some()
    }

    /// What hosts are asked by.
    pub(super) fn asked(&self) -> Asked {
        let [v4, v6] = Family::ALL.map(|family| self.of(family).acd.clone());
        Asked { v4, v6 }
    }

    /// What could not be bound to another link so far is tried again.
    pub(super) fn is_waiting(&self) -> bool {
        Family::ALL.into_iter().any(|family| self.of(family).next.is_some())
    }

    /// These addresses are answered for: what is claimed on a link is claimed to an address of that one.
    pub(super) fn serve(&self, served: &BTreeSet<IpAddr>) {
        let (six, four) = served.iter().copied().partition(IpAddr::is_ipv6);
        let of_links = match &self.ipv6 {
            None => vec![(&self.uplink, served)],
            Some(ipv6) => vec![(&self.uplink, &four), (ipv6, &six)],
        };
        for (link, addresses) in of_links {
            if let Some(acd) = &link.acd {
                acd.serve(addresses);
            }
        }
    }
}
