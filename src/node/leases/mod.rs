//! The loop: each event goes into [`crate::lease::state::State`], and what that decides is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::Duration;

use ipnetwork::IpNetwork;

mod beside;
mod callers;
mod calls;
mod claims;
mod dataplane;
mod delegation;
mod error;
mod event_log;
mod events;
mod executor;
mod foreign;
mod leasing;
mod link;
mod links;
mod pool;
mod reports;
mod services;
mod sharing;
mod start;
mod usage;

use super::config::{Announce, Config};
use crate::api::protocol::{Directory, Grant};
use crate::api::server::{self, Server};
use crate::lease::clock;
use crate::lease::cluster::Cluster;
use crate::lease::decider::PoolClaims;
use crate::lease::settings::Settings;
use crate::lease::state::{Action, Caller, Input, LocalUsage};
use crate::lease::store::{self, Contents};
use crate::lease::writer::Done;
use crate::model::{Addresses, Family, VipKey};
use crate::net::NodeNet;
use crate::registry::Registry;
use crate::{node, with_causes};

pub use error::Error;

use beside::Unlike;
use callers::{Answer, Callers};
use claims::Claims;
use dataplane::Order;
use delegation::Delegation;
use error::failed;
use events::{Event, Events};
use foreign::ForeignServers;
use leasing::{Acted, Leasing};
use links::Links;
use sharing::Sharing;
use usage::Batch;

use super::reconcile::{self, Advertised, Discarded, LinkSettings, NodeSettings};
use super::{notify, uplink};

/// The loop turns at least this often: the clock may have been set meanwhile.
const LOOK_AROUND: Duration = Duration::from_secs(30);
/// Between two tries to bind everything to another link.
const REBIND: Duration = Duration::from_secs(1);

/// Runs viprouted until SIGTERM or SIGINT. Leases, routes and proxy entries stay as they are then: traffic goes on.
pub fn run(config: &Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let result = runtime.block_on(async {
        let (mut daemon, mut events) = start::start(config).await?;
        let server = Server::bind(&config.socket)?;
        let (sender, status_requests) = tokio::sync::mpsc::unbounded_channel();
        events.status_requests = status_requests;
        // The metrics' socket goes with it.
        let (links, heard) = tokio::sync::mpsc::unbounded_channel();
        events.links = heard;
        let wake = reconcile::waker()?;
        let advertised = Advertised::new(wake.clone());
        daemon.advertised = Some(advertised.clone());
        daemon.advertise();
        let delegated = daemon.delegation.as_ref().and_then(|delegation| delegation.network).map(IpNetwork::V6);
        let discarded = config.discarded().into_iter().chain(delegated).collect();
        let discarded = Discarded::new(discarded, wake.clone());
        if let Some(delegation) = &mut daemon.delegation {
            delegation.discarded = Some(discarded.clone());
        }
        let settings = NodeSettings {
            uplink: LinkSettings {
                want: uplink::want(config),
                purpose: uplink::purpose(config),
                link: daemon.links.of(Family::V4).link.clone(),
            },
            ipv6: uplink::want_ipv6(config).map(|want| LinkSettings {
                want,
                purpose: Some(uplink::DHCPV6),
                link: daemon.links.of(Family::V6).link.clone(),
            }),
            answers: config.announce == Announce::Arp,
            advertised,
            links,
            discarded,
        };
        let _agent = node::start(&daemon.agent, &config.metrics, sender, (wake, settings))?;
        node::kubernetes::start(&daemon.agent, config)?;
        let (sender, calls) = tokio::sync::mpsc::unbounded_channel();
        events.calls = calls;
        let serving = tokio::spawn(async move { server.run(sender).await });
        notify::ready();
        tracing::info!(socket = %config.socket.display(), backend = config.lease.backend.name(), "serving");
        let result = daemon.run(&mut events).await;
        // The socket's file goes with the server.
        serving.abort();
        let _ = serving.await;
        result
    });
    // A search or a probe under way needn't be waited for.
    runtime.shutdown_background();
    result
}

struct Daemon {
    v4: Leasing,
    /// IPv6 addresses that are leased by themselves; none: those that VIPs have are derived.
    v6: Option<Leasing>,
    /// The prefix that they are of where a server delegates one.
    delegation: Option<Delegation>,
    callers: Callers,
    orders: Sender<Order>,
    registry: Registry,
    agent: node::Context,
    /// The addresses that this node answers for on its links, which the reconciler reads.
    advertised: Option<Advertised>,
    /// What searches are made by.
    settings: Settings,
    /// The same of IPv6 addresses that are leased by themselves.
    settings6: Option<Settings>,
    links: Links,
    claims: Claims,
    /// The link's routers and name servers, as far as DHCP has named them.
    infrastructure: BTreeSet<IpAddr>,
    /// DHCP servers that refuse what others have given.
    foreign: ForeignServers,
    sharing: Sharing,
    /// This node's part in the pool; none: it stands alone.
    pool: Option<PoolClaims>,
    cluster: Option<Cluster>,
    /// VIPs that are to have addresses for Services' sake.
    demanded: BTreeSet<VipKey>,
    /// What VIPs are served at here beside the address that they lease, as the registry has it.
    beside: BTreeMap<VipKey, Vec<IpAddr>>,
    /// VIPs that are served without what they are to have beside that address, or with something else.
    unlike: BTreeMap<VipKey, Unlike>,
    /// Sees whether links are up.
    node: NodeNet,
    /// Callers count from 1.
    last_caller: u64,
    /// Files in the lease directory that belong to no VIP.
    strangers: Vec<PathBuf>,
}

impl Daemon {
    async fn run(&mut self, events: &mut Events) -> Result<(), Error> {
        loop {
            let due = self.due();
            match events.next(due).await? {
                Event::End => {
                    self.agent.express.stop(&self.node);
                    self.agent.peers.restart();
                    tracing::info!("ending; leases, routes and proxy entries stay");
                    return Ok(());
                }
                event => self.handle(event),
            }
            for family in Family::ALL {
                if let Some(acted) = self.leasing(family).map(Leasing::tick) {
                    self.finish(family, acted);
                }
            }
            self.decide(PoolClaims::tick);
            self.advertise();
            self.rebind(events);
        }
    }

    fn due(&self) -> Duration {
        let tick = self.families().filter_map(|leasing| leasing.state.next_tick()).min();
        let tick = tick.map(|at| at.duration_since(clock::now()).unwrap_or_default());
        let rebind = self.links.is_waiting().then_some(REBIND);
        let due = [tick, rebind, self.decide_in()].into_iter().flatten().min().unwrap_or(LOOK_AROUND);
        // Not less: a timer that is due and does nothing must not take the processor.
        due.clamp(Duration::from_millis(5), LOOK_AROUND)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Call(call) => self.call(call),
            Event::StatusRequest(reply) => drop(reply.send(self.allocator_status())), // the page may have timed out
            Event::Report(report) => self.report(report),
            Event::Prefix(change) => self.prefix(change),
            Event::Claim(claim) => self.claimed(claim),
            Event::Strange(claim) => self.claimed_by_a_stranger(claim),
            Event::Done(Done::Registered(number, result)) => {
                self.decide(|pool, here, now| pool.saved(number, &result, here, now));
            }
            Event::Done(Done::Prefix(saved)) => self.prefix_saved(saved),
            Event::Pool(order) => self.decide(|pool, here, now| pool.order(order, here, now)),
            Event::Done(Done::Loaded(family, vip, found)) => self.loaded(family, &vip, found),
            Event::Done(Done::Saved(family, vip, number, result)) => {
                if self.leasing(family).is_some_and(|leasing| leasing.executor.is_latest(&vip, number)) {
                    self.step_of(family, &vip, Input::Saved(result));
                }
            }
            Event::Found(vip, address, found) => self.found(&vip, address, found),
            Event::Registry(batch) => self.present(batch),
            Event::Link(family, link) => self.links.of_mut(family).next = Some(link),
            Event::Heard(heard) => self.heard(heard),
            Event::Demand(vip, demand) => self.demanded(&vip, demand),
            Event::DataplaneFailed(vip, error) => {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "routes not reconciled");
                self.step(&vip, Input::DataplaneFailed(with_causes(&error)));
            }
            Event::Time => {
                let unlike: Vec<_> = self.unlike.iter().map(|(vip, unlike)| (vip.clone(), unlike.served)).collect();
                for (vip, served) in unlike {
                    self.bring_beside(&vip, served);
                }
            }
            Event::End => {}
        }
    }

    /// Goes on with what is in use or was lately; forgets the rest.
    fn resume(&mut self, contents: Contents, contents6: Contents, first: Batch) {
        for path in &self.strangers {
            tracing::warn!(path = %path.display(), "a file among the leases that belongs to no VIP");
        }
        for (family, contents) in [(Family::V4, contents), (Family::V6, contents6)] {
            let hold = self.settings.hold;
            let Some((acted, services)) = self.leasing(family).map(|leasing| leasing.resume(contents, &first, hold))
            else {
                continue;
            };
            for vip in services {
                self.agent.services.had(vip);
            }
            self.finish(family, acted);
        }
        self.present(first);
        self.compare_links();
    }

    /// Those that are leased by themselves.
    fn families(&self) -> impl Iterator<Item = &Leasing> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// The leases of a family; none: they aren't leased by themselves.
    fn leasing(&mut self, family: Family) -> Option<&mut Leasing> {
        match family {
            Family::V4 => Some(&mut self.v4),
            Family::V6 => self.v6.as_mut(),
        }
    }

    /// `input` happened to `vip`'s IPv4 address.
    fn step(&mut self, vip: &VipKey, input: Input) {
        self.step_of(Family::V4, vip, input);
    }

    fn step_of(&mut self, family: Family, vip: &VipKey, input: Input) {
        if let Some(acted) = self.leasing(family).and_then(|leasing| leasing.step(vip, input)) {
            self.finish(family, acted);
        }
    }

    /// Does what is left to do for VIPs as a whole.
    fn finish(&mut self, family: Family, acted: Acted) {
        for (vip, action) in acted.left {
            match (family, action) {
                (_, Action::Answer(caller, answer)) => self.answer(family, &vip, (caller, answer)),
                (Family::V4, Action::Serve(address)) => self.order(&vip, Some(address)),
                (Family::V4, Action::Withdraw) => self.order(&vip, None),
                // What it has beside has changed.
                (Family::V6, Action::Serve(_) | Action::Withdraw) => {
                    if let Some(served) = self.v4.state.served_at(&vip) {
                        self.order(&vip, Some(served));
                    }
                }
                _ => {}
            }
        }
        for vip in &acted.vips {
            self.share(vip, family);
            self.tell_service(vip);
        }
    }

    fn answer(&mut self, family: Family, vip: &VipKey, (caller, answer): (Caller, Answer)) {
        match &answer {
            Ok(grant) => tracing::info!(%vip, address = %grant.address, "granted"),
            Err(refusal) => tracing::warn!(%vip, ?family, code = refusal.code, why = refusal.msg, "acquire refused"),
        }
        let Some((reply, answer)) = self.callers.hear(family, caller, answer) else { return };
        let registry = Some(Directory::at(self.registry.dir()));
        let answer = answer.map(|grant| Grant {
            registry,
            policy: self.agent.services.policy(vip),
            expires: grant.expires.map(clock::to_wall),
            ..self.with_derived(vip, grant)
        });
        // The caller may have closed its connection; the lease is kept for its next try.
        let _ = reply.send(server::line(&answer));
    }

    /// A VIP is to be served at this address, and what it has beside; none: not at all.
    fn order(&self, vip: &VipKey, address: Option<IpAddr>) {
        if let Some(address) = address {
            tracing::info!(%vip, %address, "serve");
        } else {
            tracing::warn!(%vip, "withdraw");
        }
        let addresses = address.map(|address| {
            let mut addresses = Addresses::from(address);
            self.beside_of(vip, address).map(|beside| addresses.replace(beside));
            addresses
        });
        if self.orders.send((vip.clone(), addresses)).is_err() {
            tracing::error!("the dataplane's thread has ended");
        }
    }

    fn loaded(&mut self, family: Family, vip: &VipKey, found: Result<Option<store::Record>, String>) {
        if let Some(acted) = self.leasing(family).map(|leasing| leasing.loaded(vip, found)) {
            self.finish(family, acted);
        }
    }

    fn present(&mut self, batch: Batch) {
        self.beside.retain(|vip, _| !batch.is_over(vip));
        self.beside.extend(batch.others.clone());
        let gone: Vec<VipKey> = if batch.full {
            let seen: BTreeSet<_> = batch.vips.iter().map(|(vip, _)| vip).collect();
            self.v4.state.present().filter(|vip| !seen.contains(vip)).cloned().collect()
        } else {
            Vec::new()
        };
        self.present_beside(&batch, &gone);
        self.compare_beside(&batch);
        let gone = gone.into_iter().map(|vip| (vip, LocalUsage::default()));
        for (vip, usage) in batch.vips.into_iter().chain(gone) {
            self.step(&vip, Input::LocalUsage(usage));
        }
    }

    /// The addresses that are to be answered for on the link now, each with its VIP.
    fn announced(&self) -> impl Iterator<Item = (IpAddr, &VipKey)> {
        let all = self.v4.state.announced().flat_map(|(address, vip)| {
            let beside = self.beside.get(vip).into_iter().flatten().copied();
            std::iter::once(address).chain(beside).map(move |address| (address, vip))
        });
        all.filter(|(address, vip)| !self.is_led_here(vip, *address))
    }

    /// The router leads the addresses of a delegated prefix here, also those of one that VIPs are about to leave.
    fn is_led_here(&self, vip: &VipKey, address: IpAddr) -> bool {
        self.delegation.is_some() && address.is_ipv6() && !self.settings.beside.pins.contains_key(vip)
    }

    /// Publishes them.
    fn advertise(&self) {
        let served: BTreeSet<IpAddr> = self.announced().map(|(address, _)| address).collect();
        self.links.serve(&served);
        if let Some(advertised) = &self.advertised {
            advertised.set(served);
        }
    }
}
