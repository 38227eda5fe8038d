//! Carries out what [`State`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use super::announce::Announcer;
use super::config::Announce;
use super::lease::Report;
use super::protocol::{Leases, Refusal, Released, Request, Status, code};
use super::run::Error;
use super::search::Search;
use super::server::{Call, line};
use super::source::Sources;
use super::state::{Action, Caller, Findings, Input, Presence, State, Step};
use super::store::Store;
use super::watch::Batch;
use super::{dataplane, saver, sentence};
use crate::net::NodeNet;
use crate::net::link::{self, Link};
use crate::registry::VipKey;
use crate::vip;

/// Something that was started is done.
#[derive(Debug)]
pub struct Outcome {
    /// For which VIP.
    pub vip: VipKey,
    /// How it went.
    pub input: Input,
}

/// Everything viprouted has in its hands.
#[derive(Debug)]
pub struct Daemon {
    pub(super) announce: Announce,
    pub(super) state: State,
    pub(super) backend: &'static str,
    pub(super) store: Arc<Store>,
    pub(super) sources: Sources,
    pub(super) search: Search,
    pub(super) announcer: Option<Announcer>,
    pub(super) link: Option<Link>,
    pub(super) node: NodeNet,
    pub(super) orders: mpsc::UnboundedSender<dataplane::Order>,
    pub(super) saver: mpsc::UnboundedSender<saver::Job>,
    pub(super) outcomes: mpsc::UnboundedSender<Outcome>,
    pub(super) callers: BTreeMap<Caller, oneshot::Sender<Vec<u8>>>,
    pub(super) next_caller: u64,
    /// Files in the lease directory that belong to no VIP.
    pub(super) strangers: Vec<PathBuf>,
    /// Why VIPs aren't announced.
    pub(super) trouble: Option<String>,
}

impl Daemon {
    /// Takes up the leases on disk.
    pub(super) fn load(&mut self) -> Result<(), Error> {
        let contents = self.store.load_all()?;
        for (vip, found) in contents.records {
            let found = found.map(Some).map_err(|error| sentence(&error));
            if let Err(why) = &found {
                tracing::error!(%vip, why, "lease file left alone, its VIP is refused");
            }
            self.input(&vip, Input::Loaded(found));
        }
        self.strangers = contents.strangers;
        for path in &self.strangers {
            tracing::warn!(path = %path.display(), "not a lease file, left alone");
        }
        Ok(())
    }

    /// A request has come.
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Acquire(request) => return self.acquire(&request, reply),
            Request::Leases {} => line(&Ok(Leases { leases: self.state.leases() })),
            Request::Status {} => line(&Ok(self.status())),
            // The registry tells the same, and it is the truth.
            Request::Release(request) => line(&parse(&request.vip).map(|vip| Released { released: vip.to_string() })),
        };
        // A caller that has hung up needs no answer.
        let _ = reply.send(answer);
    }

    fn acquire(&mut self, request: &super::protocol::AcquireRequest, reply: oneshot::Sender<Vec<u8>>) {
        let vip = match parse(&request.vip) {
            Ok(vip) => vip,
            Err(refusal) => return drop(reply.send(line::<()>(&Err(refusal)))),
        };
        tracing::debug!(%vip, pod = %request.pod, node = %request.node, gateway = ?request.gateway, "acquire");
        let caller = Caller(self.next_caller);
        self.next_caller += 1;
        self.callers.insert(caller, reply);
        self.know(&vip);
        self.input(&vip, Input::Acquire(caller));
    }

    fn status(&self) -> Status {
        let strangers = self.strangers.iter().map(|path| format!("{} is no lease file", path.display()));
        let problems = strangers.chain(self.trouble.clone()).collect();
        Status { backend: self.backend.into(), vips: self.state.status(), problems }
    }

    /// A source of addresses has something to say.
    pub(super) fn report(&mut self, report: Report) {
        tracing::info!(vip = %report.vip, "{}", report.news);
        self.input(&report.vip, Input::News(report.news));
    }

    /// Something started here is done.
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        if let Input::Checked(address, Findings { conflicts, .. }) = &outcome.input
            && !conflicts.is_empty()
        {
            tracing::warn!(vip = %outcome.vip, %address, ?conflicts, "address in conflict");
        }
        self.input(&outcome.vip, outcome.input);
    }

    /// The dataplane has failed.
    pub(super) fn stuck(&mut self, vip: &VipKey, error: &vip::Error) {
        let why = sentence(error);
        tracing::error!(%vip, why, "routes not changed");
        self.input(vip, Input::Stuck(why));
    }

    /// The registry has been read.
    pub(super) fn registry(&mut self, batch: Batch) -> Result<(), Error> {
        let Batch { full, vips } = batch;
        if full {
            self.check_link()?;
            let read: BTreeSet<_> = vips.iter().map(|(vip, _)| vip).collect();
            let gone: Vec<_> = self.state.present().filter(|vip| !read.contains(vip)).cloned().collect();
            for vip in gone {
                self.input(&vip, Input::Present(Presence::default()));
            }
        }
        for (vip, presence) in vips {
            if presence.endpoints > 0 {
                self.know(&vip);
            }
            self.input(&vip, Input::Present(presence));
        }
        if full {
            self.set_announced(true);
        }
        Ok(())
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        let steps = self.state.tick(SystemTime::now());
        self.carry_out(steps);
    }

    /// When [`Daemon::tick`] has something to do.
    pub(super) fn next_tick(&self) -> Option<SystemTime> {
        self.state.next_tick()
    }

    /// When [`Daemon::announce`] has something to do.
    pub(super) fn next_announcement(&self) -> Option<Instant> {
        self.announcer.as_ref().and_then(Announcer::next)
    }

    /// Makes the link know of the VIPs that are here.
    pub(super) async fn announce(&mut self) {
        self.set_announced(false);
        if let Some(announcer) = &mut self.announcer {
            announcer.announce().await;
        }
    }

    fn set_announced(&mut self, verify: bool) {
        let Some(announcer) = &mut self.announcer else { return };
        let wanted = match self.announce {
            Announce::Arp => self.state.announced(),
            Announce::None => BTreeSet::new(),
        };
        let result = announcer.set(&wanted, verify);
        let trouble = result.err().map(|error| format!("VIPs are not announced: {}", sentence(&error)));
        if trouble != self.trouble {
            if let Some(trouble) = &trouble {
                tracing::error!("{trouble}");
            }
            self.trouble = trouble;
        }
    }

    /// A device of the same name with another index is another device; everything here is bound to the index.
    fn check_link(&self) -> Result<(), Error> {
        let Some(link) = &self.link else { return Ok(()) };
        match link::by_name(&self.node, &link.name)? {
            Some(found) if found.index != link.index => Err(Error::LinkReplaced { name: link.name.clone() }),
            _ => Ok(()),
        }
    }

    /// Reads a VIP's lease file before anything is decided about it.
    fn know(&mut self, vip: &VipKey) {
        if self.state.needs_record(vip) {
            let found = self.store.load(vip).map_err(|error| sentence(&error));
            self.input(vip, Input::Loaded(found));
        }
    }

    fn input(&mut self, vip: &VipKey, input: Input) {
        let steps = self.state.step(vip, input, SystemTime::now());
        self.carry_out(steps);
    }

    fn carry_out(&mut self, steps: Vec<Step>) {
        for (vip, action) in steps {
            self.act(vip, action);
        }
    }

    fn act(&mut self, vip: VipKey, action: Action) {
        match action {
            Action::Ask(remembered) => {
                let others = self.others(&vip);
                self.sources.ask(&vip, remembered, &others);
            }
            Action::Decline => {
                let others = self.others(&vip);
                self.sources.decline(&vip, &others);
            }
            Action::Restart => {
                let others = self.others(&vip);
                self.sources.restart(&vip, &others);
            }
            Action::Stop => self.sources.stop(&vip),
            Action::Check(address) => self.check(vip, address),
            // Threads end after this does.
            Action::Save(record) => drop(self.saver.send((vip, Some(record)))),
            Action::Erase => {
                tracing::info!(%vip, "let go");
                let _ = self.saver.send((vip, None));
            }
            Action::Answer(caller, answer) => {
                if let Some(reply) = self.callers.remove(&caller) {
                    let _ = reply.send(line(&answer));
                }
            }
            Action::Serve(address) => {
                tracing::info!(%vip, %address, "served");
                let _ = self.orders.send((vip, Some(address)));
            }
            Action::Withdraw => {
                tracing::warn!(%vip, "withdrawn");
                let _ = self.orders.send((vip, None));
            }
        }
    }

    /// Addresses of all other VIPs; only a source of this node's own has to know them.
    fn others(&self, vip: &VipKey) -> BTreeSet<Ipv4Addr> {
        if !self.sources.needs_others() {
            return BTreeSet::new();
        }
        self.state.addresses().filter(|(_, other)| *other != vip).map(|(address, _)| address).collect()
    }

    fn check(&self, vip: VipKey, address: Ipv4Addr) {
        let outcomes = self.outcomes.clone();
        // Two VIPs can't share an address, however they came by it; their routes are our own, which the search passes over.
        if let Some((_, other)) = self.state.addresses().find(|(a, other)| *a == address && **other != vip) {
            let findings = Findings { conflicts: vec![format!("it is {other}'s")], at_peer: false };
            let _ = outcomes.send(Outcome { vip, input: Input::Checked(address, findings) });
            return;
        }
        let search = self.search.clone();
        tokio::spawn(async move {
            let input = match search.run(address).await {
                Ok(findings) => Input::Checked(address, findings),
                Err(error) => Input::Unchecked(address, sentence(&error)),
            };
            // Its reader is gone only while viprouted ends.
            let _ = outcomes.send(Outcome { vip, input });
        });
    }
}

fn parse(vip: &str) -> Result<VipKey, Refusal> {
    vip.parse().map_err(|error: crate::registry::BadKey| Refusal { code: code::INVALID, msg: error.to_string() })
}
