//! Where addresses come from: a pin, a pool or a DHCP server. All take the same calls and answer by
//! [`Report`]s, one VIP at a time.

mod dhcp;
pub mod identity;
mod pool;
pub mod prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::sync::mpsc::UnboundedSender;

use crate::dhcp::{self as dhcp_engine, Identity, Turn};
use crate::lease::settings::{Backend, Settings};
use crate::model::{Family, VipKey};

use super::clock;
use super::cluster::Cluster;
use super::decider::Decider;
use super::grant::{Lease, News, Report};

pub use dhcp::{Error, report};

/// All sources together.
#[derive(Debug)]
pub struct Sources {
    family: Family,
    pins: BTreeMap<VipKey, IpAddr>,
    backend: Source,
    reports: UnboundedSender<Report>,
    /// Who of the nodes asks for an address first, until that is said of a VIP.
    turn: Turn,
    /// What was said.
    turns: BTreeMap<VipKey, Turn>,
    /// Addresses that are asked for.
    wishes: BTreeMap<VipKey, IpAddr>,
}

#[derive(Debug)]
enum Source {
    Dhcp(dhcp::Client),
    Pool(Box<dyn Decider>),
}

/// The notices of a DHCP engine, for [`report`]; none without one.
pub type Notices = Option<tokio::sync::mpsc::UnboundedReceiver<crate::dhcp::Notice>>;

impl Sources {
    /// Starts what `settings` says of a family, on the link named `interface`, with identities of `cluster` (none without DHCP). Answers
    /// go to `reports`, except a DHCP engine's, which are returned.
    pub fn start(
        (family, settings): (Family, &Settings),
        cluster: Option<&Cluster>,
        interface: Option<&str>,
        reports: UnboundedSender<Report>,
    ) -> Result<(Self, Notices), Error> {
        let pins = settings.pins.clone();
        let (backend, notices) = match &settings.backend {
            Backend::Dhcp(dhcp) => {
                let cluster = cluster.map_or("", |cluster| &cluster.name);
                let (client, notices) = dhcp::Client::start(family, cluster, dhcp, interface)?;
                (Source::Dhcp(client), Some(notices))
            }
            Backend::Pool(pools) => {
                let pool = pool::Pool::new(pools.clone(), pins.values().copied());
                (Source::Pool(Box::new(pool)), None)
            }
        };
        let (turn, turns, wishes) = (Turn::Own, BTreeMap::new(), BTreeMap::new());
        Ok((Self { family, pins, backend, reports, turn, turns, wishes }, notices))
    }

    /// Not this node alone decides which address of the pool a VIP has.
    pub fn decide_by(&mut self, decider: Box<dyn Decider>) {
        if let Source::Pool(pool) = &mut self.backend {
            *pool = decider;
        }
    }

    /// Other nodes may ask in this one's place: whose turn it is, is said for each VIP ([`Sources::take_turn`]).
    pub fn share(&mut self) {
        self.turn = Turn::Others;
    }

    /// Who of the nodes renews the VIP's address from now on, also when it is asked for anew.
    pub fn take_turn(&mut self, vip: &VipKey, turn: Turn) {
        self.turns.insert(vip.clone(), turn);
        if let Source::Dhcp(client) = &self.backend {
            client.take_turn(vip, turn);
        }
    }

    /// Whose turn it is isn't known any more.
    pub fn forget_turn(&mut self, vip: &VipKey) {
        self.turns.remove(vip);
    }

    /// Another node was granted this lease in the VIP's name.
    pub fn learn(&self, vip: &VipKey, lease: &Lease) {
        if let Source::Dhcp(client) = &self.backend {
            client.learn(vip, lease);
        }
    }

    /// For which address a VIP that has none is to ask a DHCP server; none: any. Whether that is another than before.
    pub fn wish(&mut self, vip: &VipKey, address: Option<IpAddr>) -> bool {
        let before = match address {
            Some(address) => self.wishes.insert(vip.clone(), address),
            None => self.wishes.remove(vip),
        };
        before != address && matches!(self.backend, Source::Dhcp(_))
    }

    /// Asks for an address, for the remembered one first. `others`: the addresses of all other VIPs.
    pub fn ask(&mut self, vip: &VipKey, remembered: Option<Lease>, others: &BTreeSet<IpAddr>) {
        if let Some(pin) = self.pins.get(vip) {
            let news = News::Bound(Lease::permanent(*pin, clock::now()));
            return self.tell(vip, news);
        }
        match &mut self.backend {
            Source::Dhcp(client) => {
                let turn = self.turns.get(vip).copied().unwrap_or(self.turn);
                let wish = self.wishes.get(vip).copied();
                client.ask(vip, (remembered.as_ref(), wish), turn);
            }
            Source::Pool(pool) => {
                let news = pool.ask(vip, remembered.map(|lease| lease.address), others);
                self.tell_if_known(vip, news);
            }
        }
    }

    /// Another host has the address offered: asks for another.
    pub fn decline(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) {
        if self.is_local(vip) {
            return self.another(vip, others);
        }
        if let Source::Dhcp(client) = &self.backend {
            client.decline(vip);
        }
    }

    /// The address offered can't be used: asks again without a DECLINE.
    pub fn restart(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) {
        if self.is_local(vip) {
            return self.another(vip, others);
        }
        if let Source::Dhcp(client) = &self.backend {
            client.restart(vip);
        }
    }

    /// Stops, and releases the address: no other node uses it for the VIP.
    pub fn release(&mut self, vip: &VipKey) {
        match &mut self.backend {
            Source::Dhcp(client) => client.release(vip),
            Source::Pool(pool) => pool.stop(vip),
        }
    }

    /// Who the VIP is to a DHCP server; none where it isn't asked.
    pub fn identity(&self, vip: &VipKey) -> Option<Identity> {
        match &self.backend {
            Source::Dhcp(client) if !self.pins.contains_key(vip) => Some(client.identity(vip)),
            _ => None,
        }
    }

    /// Stops without a message to the server.
    pub fn stop(&mut self, vip: &VipKey) {
        match &mut self.backend {
            Source::Dhcp(client) => client.stop(vip),
            Source::Pool(pool) => pool.stop(vip),
        }
    }

    /// DHCP goes over the link of that name from now on.
    pub fn rebind(&self, interface: &str) {
        if let Source::Dhcp(client) = &self.backend {
            client.rebind(interface);
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

    fn another(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) {
        let news = match (self.pins.get(vip), &mut self.backend) {
            (Some(pin), _) => {
                Some(News::Failed { why: format!("its pinned address {pin} can't be used"), exhausted: false })
            }
            (None, Source::Pool(pool)) => pool.another(vip, others),
            (None, Source::Dhcp(_)) => None,
        };
        self.tell_if_known(vip, news);
    }

    /// None: it follows.
    fn tell_if_known(&self, vip: &VipKey, news: Option<News>) {
        if let Some(news) = news {
            self.tell(vip, news);
        }
    }

    fn tell(&self, vip: &VipKey, news: News) {
        // The receiver is closed only while viprouted ends.
        let _ = self.reports.send(Report::new(self.family, vip.clone(), news));
    }
}
