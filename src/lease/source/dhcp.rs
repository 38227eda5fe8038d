//! The DHCP engine as a source of addresses.

use std::net::IpAddr;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::dhcp::{
    self, Acquisition, Change, Engine, Flaw, Handle, Identity, Notice, Server, TransportConfig, Trouble, Turn,
};
use crate::lease::grant::{Lease, News, Report};
use crate::lease::{clock, settings};
use crate::model::{Family, VipKey};

use super::identity;

/// Why DHCP can't be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither configured nor found.
    #[error("no interface for DHCP: dhcp.interface isn't set, and there is no default route to take it from")]
    NoInterface,
    /// The engine's own.
    #[error(transparent)]
    Engine(#[from] dhcp::Error),
}

/// One DHCP client for each VIP of the cluster.
#[derive(Debug)]
pub(super) struct Client {
    family: Family,
    cluster: String,
    handle: Handle,
}

impl Client {
    pub(super) fn start(
        family: Family,
        cluster: &str,
        settings: &settings::Dhcp,
        interface: Option<&str>,
    ) -> Result<(Self, UnboundedReceiver<Notice>), Error> {
        let transport = match settings.relay {
            Some(settings::Relay { server, subnet }) => TransportConfig::Relay { server, subnet },
            None => TransportConfig::Link { family, interface: interface.ok_or(Error::NoInterface)?.into() },
        };
        let (servers, clock) = (settings.servers.clone(), clock::now as dhcp::Clock);
        let (handle, notices) = Engine::start(dhcp::Settings { transport, servers, clock })?;
        Ok((Self { family, cluster: cluster.into(), handle }, notices))
    }

    pub(super) fn rebind(&self, interface: &str) {
        self.handle.rebind(interface.to_owned());
    }

    pub(super) fn counters(&self) -> dhcp::Counters {
        self.handle.counters()
    }

    /// `turn`: who of the nodes asks first.
    pub(super) fn ask(&self, vip: &VipKey, (remembered, wish): (Option<&Lease>, Option<IpAddr>), turn: Turn) {
        let (identity, remembered) = (self.identity(vip), remembered.and_then(|lease| self.to_engine(lease)));
        self.handle.acquire(vip.to_string(), Acquisition { identity, remembered, wish, turn, prefix: None });
    }

    pub(super) fn learn(&self, vip: &VipKey, lease: &Lease) {
        if let Some(lease) = self.to_engine(lease) {
            self.handle.learn(&vip.to_string(), lease);
        }
    }

    pub(super) fn take_turn(&self, vip: &VipKey, turn: Turn) {
        self.handle.take_turn(&vip.to_string(), turn);
    }

    pub(super) fn identity(&self, vip: &VipKey) -> Identity {
        identity::of(&self.cluster, vip)
    }

    pub(super) fn release(&self, vip: &VipKey) {
        self.handle.release(&vip.to_string());
    }

    pub(super) fn decline(&self, vip: &VipKey) {
        self.handle.decline(&vip.to_string());
    }

    pub(super) fn restart(&self, vip: &VipKey) {
        self.handle.restart(&vip.to_string());
    }

    pub(super) fn stop(&self, vip: &VipKey) {
        self.handle.forget(&vip.to_string());
    }

    /// `None`: of the other family.
    fn to_engine(&self, lease: &Lease) -> Option<dhcp::Lease> {
        let is_own = Family::of(lease.address) == self.family;
        is_own.then(|| to_engine(lease, None))
    }
}

/// A lease of before as the engine knows it; `prefix`: the bits of one that is delegated.
pub(super) fn to_engine(lease: &Lease, prefix: Option<u8>) -> dhcp::Lease {
    dhcp::Lease {
        address: lease.address,
        server: lease.server.map(Server::at),
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
        infrastructure: Vec::new(),
        told: false,
        prefix,
    }
}

/// A notice of the engine for that family as a report; none for a key that isn't ours.
pub fn report(family: Family, notice: Notice) -> Option<Report> {
    let vip = notice.key.parse().ok()?;
    let (infrastructure, told) = match &notice.change {
        Change::Bound(lease) | Change::Renewed(lease) => (lease.infrastructure.clone(), lease.told),
        _ => (Vec::new(), false),
    };
    let news = match notice.change {
        Change::Bound(lease) => News::Bound(from_engine(&lease)),
        Change::Renewed(lease) => News::Renewed(from_engine(&lease)),
        Change::Lost { lease, reason } => News::Lost { reason: format!("{}: {reason}", lease.address) },
        Change::Refused { server, why } => News::Refused { server, why },
        Change::Failed { tries, why } => {
            let exhausted =
                matches!(why, Trouble::NothingOffered { .. } | Trouble::Unfit { flaw: Flaw::NoAddress, .. });
            News::Trouble { why: format!("{} ({tries} tries)", why.said(family)), exhausted }
        }
    };
    Some(Report { family, vip, news, infrastructure, told })
}

pub(super) fn from_engine(lease: &dhcp::Lease) -> Lease {
    Lease {
        address: lease.address,
        server: lease.server.map(|server| server.address()),
        link: None,
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
    }
}
