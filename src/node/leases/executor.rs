//! Carries out what [`crate::lease::state`] decides of a family's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::dhcp::{self, Turn};
use crate::lease::allow::Allow;
use crate::lease::beside::Beside;
use crate::lease::decider::register::Register;
use crate::lease::grant::Lease;
use crate::lease::search::Search;
use crate::lease::source::Sources;
use crate::lease::state::{Action, Findings, State, Step};
use crate::lease::store::Delegated;
use crate::lease::writer::{Job, LeaseWriter};
use crate::model::{Family, VipKey};
use crate::with_causes;

/// A search that couldn't be made is made again after this long.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);

/// A search's result: of which VIP, for which address, and the findings, or why the search couldn't be made (yet).
pub type Found = (VipKey, IpAddr, Result<Findings, String>);

/// All that actions are carried out with.
#[derive(Debug)]
pub struct Executor {
    family: Family,
    sources: Sources,
    search: Search,
    writer: Arc<LeaseWriter>,
    found: mpsc::UnboundedSender<Found>,
    /// Searches under way.
    searches: BTreeMap<VipKey, AbortHandle>,
    /// The same for what VIPs are to have beside what they are served at.
    searches_beside: BTreeMap<VipKey, AbortHandle>,
    /// The last file written of each VIP, while it is being written.
    writing: BTreeMap<VipKey, u64>,
    last_write: u64,
    /// What VIPs have beside what they lease.
    pub beside: Beside,
}

impl Executor {
    /// Of a family, with these tools; what searches find goes to `found`.
    pub fn new(
        (family, sources): (Family, Sources),
        search: Search,
        writer: Arc<LeaseWriter>,
        found: mpsc::UnboundedSender<Found>,
    ) -> Self {
        Self {
            family,
            sources,
            search,
            writer,
            found,
            searches: BTreeMap::new(),
            searches_beside: BTreeMap::new(),
            writing: BTreeMap::new(),
            last_write: 0,
            beside: Beside::default(),
        }
    }

    /// Searches are made by `search` from now on.
    pub fn search_by(&mut self, search: Search) {
        self.search = search;
    }

    /// DHCP goes over the link of that name from now on.
    pub fn rebind(&self, interface: &str) {
        self.sources.rebind(interface);
    }

    /// The DHCP engine's messages; none without one.
    pub fn dhcp_counters(&self) -> Option<dhcp::Counters> {
        self.sources.dhcp_counters()
    }

    /// Who the VIP is to a DHCP server; none where it isn't asked.
    pub fn identity(&self, vip: &VipKey) -> Option<dhcp::Identity> {
        self.sources.identity(vip)
    }

    /// For which address a VIP that has none is to ask a DHCP server; none: any. Whether that is another than before.
    pub fn wish(&mut self, vip: &VipKey, address: Option<IpAddr>) -> bool {
        self.sources.wish(vip, address.filter(|address| Family::of(*address) == self.family))
    }

    /// Another node was granted this lease in the VIP's name.
    pub fn learn(&self, vip: &VipKey, lease: &Lease) {
        self.sources.learn(vip, lease);
    }

    /// Who of the nodes renews the VIP's lease from now on, also when it is asked for anew.
    pub fn take_turn(&mut self, vip: &VipKey, turn: Turn) {
        self.sources.take_turn(vip, turn);
    }

    /// Whose turn it is isn't known any more.
    pub fn forget_turn(&mut self, vip: &VipKey) {
        self.sources.forget_turn(vip);
    }

    /// Finds out whose an Ethernet address is.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// Has a VIP's lease file read.
    pub fn load(&mut self, vip: &VipKey) {
        self.writer.give(Job::Load(self.family, vip.clone()));
    }

    /// Writes the register of the pool.
    pub fn save_register(&self, number: u64, register: Register) {
        self.writer.give(Job::Register(number, register));
    }

    /// Writes the prefix that is delegated; none: it is lost.
    pub fn save_prefix(&self, prefix: Option<Delegated>) {
        self.writer.give(Job::Prefix(prefix));
    }

    /// Removes a VIP's lease file.
    pub fn erase(&mut self, vip: &VipKey) {
        self.writing.remove(vip);
        self.writer.give(Job::Erase(self.family, vip.clone()));
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
            Action::Release => {
                tracing::info!(%vip, "address given back");
                self.stop_search(vip);
                self.sources.release(vip);
            }
            Action::Check(address) => self.check(vip, address, state.allow().clone()),
            Action::Save(record) => {
                self.last_write += 1;
                self.writing.insert(vip.clone(), self.last_write);
                self.writer.give(Job::Save(vip.clone(), self.last_write, record));
            }
            Action::Erase => self.erase(vip),
            // Of the VIP as a whole: not this one's business.
            Action::Answer(..) | Action::Serve(_) | Action::Withdraw => {}
        }
    }

    fn check(&mut self, vip: &VipKey, address: IpAddr, allow: Allow) {
        self.stop_search(vip);
        let all = self.beside.addresses(vip, address).iter().collect();
        let task = self.search_for(vip, address, all, allow);
        self.searches.insert(vip.clone(), task);
    }

    /// Searches for conflicts of an address that a VIP in service is to have beside the one it has.
    pub fn check_beside(&mut self, vip: &VipKey, address: IpAddr, allow: Allow) {
        self.searches_beside.retain(|_, task| !task.is_finished());
        if !self.searches_beside.contains_key(vip) {
            let task = self.search_for(vip, address, vec![address], allow);
            self.searches_beside.insert(vip.clone(), task);
        }
    }

    /// Ends the searches of [`Self::check_beside`] but for those VIPs'.
    pub fn keep_searches_beside(&mut self, is_kept: impl Fn(&VipKey) -> bool) {
        self.searches_beside.retain(|vip, search| {
            let stays = is_kept(vip);
            if !stays {
                search.abort();
            }
            stays
        });
    }

    /// Searches for conflicts of all these addresses, and reports what it finds as of the first.
    fn search_for(&self, vip: &VipKey, address: IpAddr, all: Vec<IpAddr>, allow: Allow) -> AbortHandle {
        let (search, found, name) = (self.search.clone(), self.found.clone(), vip.clone());
        let task = tokio::spawn(async move {
            loop {
                let result = search.run(&name, &all, &allow).await.map_err(|error| with_causes(&error));
                let again = result.is_err();
                if found.send((name.clone(), address, result)).is_err() || !again {
                    return;
                }
                tokio::time::sleep(SEARCH_AGAIN).await;
            }
        });
        task.abort_handle()
    }

    fn stop_search(&mut self, vip: &VipKey) {
        if let Some(search) = self.searches.remove(vip) {
            search.abort();
        }
    }
}

/// The addresses of all VIPs but `vip`.
fn others(state: &State, vip: &VipKey) -> BTreeSet<IpAddr> {
    state.addresses().filter(|(_, other)| *other != vip).map(|(address, _)| address).collect()
}
