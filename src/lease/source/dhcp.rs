//! The DHCP engine as a source of addresses.

use std::net::{IpAddr, Ipv4Addr};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::dhcp::{
    self, Acquisition, Change, Engine, Handle, Identity, Notice, Reason, TransportConfig, Trouble, Turn,
};
use crate::lease::grant::{Lease, News, Report};
use crate::lease::{clock, settings};
use crate::model::VipKey;
use crate::model::address::ipv4;

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
    cluster: String,
    handle: Handle,
}

impl Client {
    pub(super) fn start(
        cluster: &str,
        settings: &settings::Dhcp,
        interface: Option<&str>,
    ) -> Result<(Self, UnboundedReceiver<Notice>), Error> {
        let transport = match settings.relay {
            Some(settings::Relay { server, subnet }) => TransportConfig::Relay { server, subnet },
            None => TransportConfig::Link { interface: interface.ok_or(Error::NoInterface)?.into() },
        };
        let (servers, clock) = (settings.servers.clone(), clock::now as dhcp::Clock);
        let (handle, notices) = Engine::start(dhcp::Settings { transport, servers, clock })?;
        Ok((Self { cluster: cluster.into(), handle }, notices))
    }

    pub(super) fn rebind(&self, interface: &str) {
        self.handle.rebind(interface.to_owned());
    }

    pub(super) fn counters(&self) -> dhcp::Counters {
        self.handle.counters()
    }

    /// `turn`: who of the nodes asks first.
    pub(super) fn ask(&self, vip: &VipKey, (remembered, wish): (Option<&Lease>, Option<Ipv4Addr>), turn: Turn) {
        let remembered = remembered.and_then(to_engine);
        self.handle.acquire(vip.to_string(), Acquisition { identity: self.identity(vip), remembered, wish, turn });
    }

    pub(super) fn learn(&self, vip: &VipKey, lease: &Lease) {
        if let Some(lease) = to_engine(lease) {
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
}

/// The engine's notice as a report; none for a key that isn't ours.
pub fn report(notice: Notice) -> Option<Report> {
    let vip = notice.key.parse().ok()?;
    let (infrastructure, told) = match &notice.change {
        Change::Bound(lease) | Change::Renewed(lease) => {
            (lease.infrastructure.iter().copied().map(IpAddr::V4).collect(), lease.told)
        }
        _ => (Vec::new(), false),
    };
    let news = match notice.change {
        Change::Bound(lease) => News::Bound(from_engine(&lease)),
        Change::Renewed(lease) => News::Renewed(from_engine(&lease)),
        Change::Lost { lease, reason } => {
            let how = match reason {
                Reason::Nak { server, why } => format!("refused by the DHCP server {server} (NAK {why:?})"),
                Reason::Expired => "it ran out and was not renewed".to_owned(),
            };
            News::Lost { reason: format!("{}: {how}", lease.address) }
        }
        Change::Refused { server, why } => News::Refused { server: server.into(), why },
        Change::Failed { tries, why } => {
            let exhausted = matches!(why, Trouble::NothingOffered { .. });
            News::Trouble { why: format!("{why} ({tries} tries)"), exhausted }
        }
    };
    Some(Report { vip, news, infrastructure, told })
}

fn from_engine(lease: &dhcp::Lease) -> Lease {
    Lease {
        address: lease.address.into(),
        server: lease.server.map(Into::into),
        link: None,
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
    }
}

/// `None`: not of DHCP for IPv4.
fn to_engine(lease: &Lease) -> Option<dhcp::Lease> {
    Some(dhcp::Lease {
        address: ipv4(lease.address)?,
        server: lease.server.and_then(ipv4),
        granted: lease.granted,
        renew: lease.renew,
        rebind: lease.rebind,
        expires: lease.expires,
        infrastructure: Vec::new(),
        told: false,
    })
}
