//! Carries out what [`super::state`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::dataplane::Order;
use super::keeper::{Job, Keeper};
use super::protocol::{Grant, Refusal};
use super::search::Search;
use super::server;
use super::source::Sources;
use super::state::{Action, Caller, Findings, State, Step};
use crate::dhcp;
use crate::registry::VipKey;
use crate::with_causes;

/// A search that couldn't be made is made again after this long.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

/// What a search says: of which VIP, for which address, and what was found, or why nothing could be looked for (yet).
pub type Found = (VipKey, Ipv4Addr, Result<Findings, String>);

/// All that actions are carried out with.
#[derive(Debug)]
pub struct Hands {
    sources: Sources,
    search: Search,
    keeper: Keeper,
    orders: mpsc::UnboundedSender<Order>,
    found: mpsc::UnboundedSender<Found>,
    /// Who waits for an answer.
    callers: BTreeMap<Caller, oneshot::Sender<Vec<u8>>>,
    /// Searches under way.
    searches: BTreeMap<VipKey, AbortHandle>,
    /// The last file written of each VIP, while it is being written.
    writing: BTreeMap<VipKey, u64>,
    last_write: u64,
}

impl Hands {
    /// With these tools; what searches find comes by the receiver.
    pub fn new(
        sources: Sources,
        search: Search,
        keeper: Keeper,
        orders: mpsc::UnboundedSender<Order>,
    ) -> (Self, mpsc::UnboundedReceiver<Found>) {
        let (found, results) = mpsc::unbounded_channel();
        let (callers, searches, writing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let hands = Self { sources, search, keeper, orders, found, callers, searches, writing, last_write: 0 };
        (hands, results)
    }

    /// `caller` is to be answered by `reply`.
    pub fn expect(&mut self, caller: Caller, reply: oneshot::Sender<Vec<u8>>) {
        self.callers.insert(caller, reply);
    }

    /// The DHCP engine's messages; none without one.
    pub fn dhcp_counters(&self) -> Option<dhcp::Counters> {
        self.sources.dhcp_counters()
    }

    /// Has a VIP's lease file read.
    pub fn load(&mut self, vip: &VipKey) {
        self.keeper.give(Job::Load(vip.clone()));
    }

    /// Removes a VIP's lease file.
    pub fn erase(&mut self, vip: &VipKey) {
        self.writing.remove(vip);
        self.keeper.give(Job::Erase(vip.clone()));
    }

    /// Whether the file written under `number` is what the VIP's file is to say: an older one on disk is worth nothing.
    pub fn is_latest(&mut self, vip: &VipKey, number: u64) -> bool {
        let latest = self.writing.get(vip) == Some(&number);
        if latest {
            self.writing.remove(vip);
        }
        latest
    }

    /// Carries out `steps`, which `state` decided on.
    pub fn perform(&mut self, state: &State, steps: Vec<Step>) {
        for (vip, action) in steps {
            self.carry_out(state, &vip, action);
        }
    }

    fn carry_out(&mut self, state: &State, vip: &VipKey, action: Action) {
        match action {
            Action::Ask(remembered) => self.sources.ask(vip, remembered, &others(state, vip)),
            Action::Decline => self.sources.decline(vip, &others(state, vip)),
            Action::Restart => self.sources.restart(vip, &others(state, vip)),
            Action::Stop => {
                self.stop_search(vip);
                self.sources.stop(vip);
            }
            Action::Check(address) => self.check(vip, address),
            Action::Save(record) => {
                self.last_write += 1;
                self.writing.insert(vip.clone(), self.last_write);
                self.keeper.give(Job::Save(vip.clone(), self.last_write, record));
            }
            Action::Erase => self.erase(vip),
            Action::Answer(caller, answer) => self.answer(vip, caller, &answer),
            Action::Serve(address) => self.order(vip, Some(address)),
            Action::Withdraw => self.order(vip, None),
        }
    }

    fn answer(&mut self, vip: &VipKey, caller: Caller, answer: &Result<Grant, Refusal>) {
        match answer {
            Ok(grant) => tracing::info!(%vip, address = %grant.address, "granted"),
            Err(refusal) => tracing::warn!(%vip, code = refusal.code, why = refusal.msg, "refused"),
        }
        if let Some(reply) = self.callers.remove(&caller) {
            // Who asked may have gone; the lease is kept for its next try.
            let _ = reply.send(server::line(answer));
        }
    }

    fn order(&mut self, vip: &VipKey, address: Option<Ipv4Addr>) {
        if let Some(address) = address {
            tracing::info!(%vip, %address, "serve");
        } else {
            tracing::warn!(%vip, "withdraw");
        }
        if self.orders.send((vip.clone(), address)).is_err() {
            tracing::error!("the dataplane's thread has ended");
        }
    }

    fn check(&mut self, vip: &VipKey, address: Ipv4Addr) {
        self.stop_search(vip);
        let (search, found, name) = (self.search.clone(), self.found.clone(), vip.clone());
        let task = tokio::spawn(async move {
            loop {
                let result = search.run(address).await.map_err(|error| with_causes(&error));
                let again = result.is_err();
                if found.send((name.clone(), address, result)).is_err() || !again {
                    return;
                }
                tokio::time::sleep(SEARCH_AGAIN).await;
            }
        });
        self.searches.insert(vip.clone(), task.abort_handle());
    }

    fn stop_search(&mut self, vip: &VipKey) {
        if let Some(search) = self.searches.remove(vip) {
            search.abort();
        }
    }
}

/// The addresses of all VIPs but `vip`.
fn others(state: &State, vip: &VipKey) -> BTreeSet<Ipv4Addr> {
    state.addresses().filter(|(_, other)| *other != vip).map(|(address, _)| address).collect()
}
