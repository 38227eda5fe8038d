//! Everything the loop waits for, in one place.

use std::net::IpAddr;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::api::server::Call;
use crate::dataplane;
use crate::dhcp::Change;
use crate::lease::decider::Order;
use crate::lease::grant::Report;
use crate::lease::source::{self, Notices};
use crate::lease::state::{Demand, Findings};
use crate::lease::writer::Done;
use crate::model::{Family, VipKey};
use crate::net::acd::Claim;
use crate::net::link::Link;
use crate::node::AllocatorStatus;
use crate::node::peers::{Heard, OthersLeases};
use crate::registry::watch::Update;

use super::Error;
use super::executor::Found;
use super::links::Claims;
use super::usage::Batch;

/// Everything that can happen, other than time passing.
pub struct Events {
    /// What clients of the socket want.
    pub calls: UnboundedReceiver<Call>,
    /// Requests for the allocator's status.
    pub status_requests: UnboundedReceiver<oneshot::Sender<AllocatorStatus>>,
    /// Reports of pins and of the pool.
    pub reports: UnboundedReceiver<Report>,
    /// Notices of the DHCP engine.
    pub notices: Notices,
    /// The same of the one for IPv6.
    pub notices6: Notices,
    /// What becomes of the prefix that is delegated.
    pub prefix: Notices,
    /// Lease files read and written.
    pub done: UnboundedReceiver<Done>,
    /// What searches for conflicts found.
    pub found: UnboundedReceiver<Found>,
    /// Updates of the registry.
    pub registry: UnboundedReceiver<Update>,
    /// Another link of that family's addresses: the one to the gateways is IPv4's.
    pub links: UnboundedReceiver<(Family, Link)>,
    /// What is heard of other nodes' leases; none: they aren't shared.
    pub others: OthersLeases,
    /// What is asked of the node that gives out the pool's addresses.
    pub wanted: UnboundedReceiver<Order>,
    /// Which VIPs are to have addresses for Services' sake.
    pub demands: UnboundedReceiver<(VipKey, Demand)>,
    /// What the dataplane could not do.
    pub failures: UnboundedReceiver<(VipKey, dataplane::Error)>,
    /// Claims of other hosts to an address of ours; none without a link.
    pub claims: Claims,
    /// The same on the link that IPv6 addresses are leased by; none: it is the same link.
    pub claims6: Claims,
    /// The same, of those that are no peers.
    pub strange: UnboundedReceiver<Claim>,
    /// SIGTERM.
    pub terminate: Signal,
    /// SIGINT.
    pub interrupt: Signal,
}

/// One of them.
pub enum Event {
    /// A client of the socket wants something.
    Call(Call),
    /// The metrics and health pages ask for the allocator's status.
    StatusRequest(oneshot::Sender<AllocatorStatus>),
    /// A source of addresses reports.
    Report(Report),
    /// The prefix that is delegated has changed, or couldn't be had.
    Prefix(Change),
    /// A lease file is read or written.
    Done(Done),
    /// A search for conflicts is done.
    Found(VipKey, IpAddr, Result<Findings, String>),
    /// The registry was read.
    Registry(Batch),
    /// Another host claims an address of ours.
    Claim(Claim),
    /// And it is no peer.
    Strange(Claim),
    /// Another link is that of a family's addresses.
    Link(Family, Link),
    /// Other nodes have told of leases.
    Heard(Heard),
    /// An address of the pool is asked for, or given up.
    Pool(Order),
    /// A Service wants an address, or no longer does.
    Demand(VipKey, Demand),
    /// The dataplane could not carry out an order.
    DataplaneFailed(VipKey, dataplane::Error),
    /// Time has passed.
    Time,
    /// viprouted is to end.
    End,
}

impl Events {
    /// What claims to addresses of a family come by, where these have a link of their own; IPv4's is that to the gateways.
    pub fn claims_of(&mut self, family: Family) -> &mut Claims {
        match family {
            Family::V4 => &mut self.claims,
            Family::V6 => &mut self.claims6,
        }
    }

    /// Waits for the next one, or until `due`.
    pub async fn next(&mut self, due: Duration) -> Result<Event, Error> {
        let ended = Error::Ended;
        let event = tokio::select! {
            _ = self.terminate.recv() => Some(Event::End),
            _ = self.interrupt.recv() => Some(Event::End),
            call = self.calls.recv() => Some(Event::Call(call.ok_or(ended("the server"))?)),
            Some(request) = self.status_requests.recv() => Some(Event::StatusRequest(request)),
            report = self.reports.recv() => Some(Event::Report(report.ok_or(ended("the source of addresses"))?)),
            notice = next_notice(&mut self.notices) => {
                source::report(Family::V4, notice.ok_or(ended("the DHCP engine"))?).map(Event::Report)
            }
            notice = next_notice(&mut self.notices6) => {
                source::report(Family::V6, notice.ok_or(ended("the DHCPv6 engine"))?).map(Event::Report)
            }
            notice = next_notice(&mut self.prefix) => {
                Some(Event::Prefix(notice.ok_or(ended("the DHCPv6 engine"))?.change))
            }
            done = self.done.recv() => Some(Event::Done(done.ok_or(ended("the thread that keeps leases"))?)),
            found = self.found.recv() => {
                let (vip, address, found) = found.ok_or(ended("the search"))?;
                Some(Event::Found(vip, address, found))
            }
            update = self.registry.recv() => {
                Some(Event::Registry(Batch::of(&update.ok_or(ended("the registry's watcher"))?)))
            }
            Some((family, link)) = self.links.recv() => Some(Event::Link(family, link)),
            Some(order) = self.wanted.recv() => Some(Event::Pool(order)),
            Some((vip, demand)) = self.demands.recv() => Some(Event::Demand(vip, demand)),
            heard = next_heard(&mut self.others) => Some(Event::Heard(heard.ok_or(ended("the gossip among nodes"))?)),
            failure = self.failures.recv() => {
                let (vip, error) = failure.ok_or(ended("the dataplane's thread"))?;
                Some(Event::DataplaneFailed(vip, error))
            }
            claim = next_claim(&mut self.claims) => Some(Event::Claim(claim.ok_or(ended("the listener for other hosts' claims"))?)),
            claim = next_claim(&mut self.claims6) => Some(Event::Claim(claim.ok_or(ended("the listener for other hosts' claims"))?)),
            Some(claim) = self.strange.recv() => Some(Event::Strange(claim)),
            () = tokio::time::sleep(due) => None,
        };
        Ok(event.unwrap_or(Event::Time))
    }
}

async fn next_claim(claims: &mut Claims) -> Option<Claim> {
    match claims {
        Some(claims) => claims.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_heard(others: &mut OthersLeases) -> Option<Heard> {
    match others {
        Some(others) => others.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_notice(notices: &mut Notices) -> Option<crate::dhcp::Notice> {
    match notices {
        Some(notices) => notices.recv().await,
        None => std::future::pending().await,
    }
}
