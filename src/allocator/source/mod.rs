//! Where addresses come from: a pin, a pool or a DHCP server. All are asked in the same words and answer by
//! [`Report`]s, one VIP at a time.

mod dhcp;
pub mod identity;
mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use tokio::sync::mpsc::UnboundedSender;

use super::config::{Backend, Config};
use super::lease::{Lease, News, Report};
use crate::dhcp as dhcp_engine;
use crate::registry::VipKey;

pub use dhcp::{Error, report};

/// All sources together.
#[derive(Debug)]
pub struct Sources {
    pins: BTreeMap<VipKey, Ipv4Addr>,
    backend: Source,
    reports: UnboundedSender<Report>,
}

#[derive(Debug)]
enum Source {
    Dhcp(dhcp::Client),
    Pool(pool::Pool),
}

/// The notices of a DHCP engine, for [`report`]; none without one.
pub type Notices = Option<tokio::sync::mpsc::UnboundedReceiver<crate::dhcp::Notice>>;

impl Sources {
    /// Starts what `config` says, on the link named `interface`. Answers go to `reports`, except a DHCP engine's, which
    /// are returned.
    pub fn start(
        config: &Config,
        interface: Option<&str>,
        reports: UnboundedSender<Report>,
    ) -> Result<(Self, Notices), Error> {
        let pins = config.pins.clone();
        let (backend, notices) = match &config.backend {
            Backend::Dhcp(dhcp) => {
                let (client, notices) = dhcp::Client::start(&config.cluster, dhcp, interface)?;
                (Source::Dhcp(client), Some(notices))
            }
            Backend::Pool(pool) => (Source::Pool(pool::Pool::new(pool, pins.values().copied())), None),
        };
        Ok((Self { pins, backend, reports }, notices))
    }

    /// Asks for an address, for the remembered one first. `others`: the addresses of all other VIPs.
    pub fn ask(&mut self, vip: &VipKey, remembered: Option<Lease>, others: &BTreeSet<Ipv4Addr>) {
        if let Some(pin) = self.pins.get(vip) {
            let news = News::Bound(Lease::permanent(*pin, SystemTime::now()));
            return self.tell(vip, news);
        }
        match &mut self.backend {
            Source::Dhcp(client) => client.ask(vip, remembered.as_ref()),
            Source::Pool(pool) => {
                let news = pool.ask(vip, remembered.map(|lease| lease.address), others);
                self.tell(vip, news);
            }
        }
    }

    /// The address offered is somebody else's: asks for another.
    pub fn decline(&mut self, vip: &VipKey, others: &BTreeSet<Ipv4Addr>) {
        if self.is_local(vip) {
            return self.another(vip, others);
        }
        if let Source::Dhcp(client) = &self.backend {
            client.decline(vip);
        }
    }

    /// The address offered can't be used, and nobody is to be told: asks again.
    pub fn restart(&mut self, vip: &VipKey, others: &BTreeSet<Ipv4Addr>) {
        if self.is_local(vip) {
            return self.another(vip, others);
        }
        if let Source::Dhcp(client) = &self.backend {
            client.restart(vip);
        }
    }

    /// Stops without a word to anybody.
    pub fn stop(&mut self, vip: &VipKey) {
        match &mut self.backend {
            Source::Dhcp(client) => client.stop(vip),
            Source::Pool(pool) => pool.stop(vip),
        }
    }

    /// The DHCP engine's messages; none without one.
    pub fn dhcp_counters(&self) -> Option<dhcp_engine::Counters> {
        match &self.backend {
            Source::Dhcp(client) => Some(client.counters()),
            Source::Pool(_) => None,
        }
    }

    /// No server is behind its address.
    fn is_local(&self, vip: &VipKey) -> bool {
        self.pins.contains_key(vip) || matches!(self.backend, Source::Pool(_))
    }

    fn another(&mut self, vip: &VipKey, others: &BTreeSet<Ipv4Addr>) {
        let news = match (self.pins.get(vip), &mut self.backend) {
            (Some(pin), _) => News::Failed { why: format!("its pinned address {pin} can't be used") },
            (None, Source::Pool(pool)) => pool.another(vip, others),
            (None, Source::Dhcp(_)) => return,
        };
        self.tell(vip, news);
    }

    fn tell(&self, vip: &VipKey, news: News) {
        // Nobody listens any more only while viprouted ends.
        let _ = self.reports.send(Report { vip: vip.clone(), news });
    }
}
