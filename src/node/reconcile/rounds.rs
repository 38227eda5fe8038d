//! The rounds: one attachment, one VIP, what causes no event, everything.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use crate::dataplane::node::settings::{self, SETTINGS, SETTINGS_IPV6};
use crate::dataplane::node::{notrack, pod_links, source};
use crate::dataplane::{self, Tables, address, attachment, owner};
use crate::ebpf::{Maps, Parts};
use crate::membership::gc;
use crate::membership::repair::{self, Outcome};
use crate::model::{Family, VipKey};
use crate::net::{self, link};
use crate::registry::{VipRecord, attachment_name, attachment_of};

use super::backoff::ObjectId;
use super::queue::LinkNews;
use super::{FULL, Reconciler, Vip};

/// So many pods' settings at most are read each second: kubelet's default limit of pods a node. On a node that has more,
/// their turn comes later.
const PODS: usize = 110;
/// So many entries of the flow owner's maps at most are compared each second, likewise: one a replica and one a VIP.
const ENTRIES: usize = 256;

impl Reconciler {
    /// True: it differed, and its VIPs may differ too.
    pub(super) fn attachment(&mut self, name: &str) -> bool {
        let thing = ObjectId::Attachment(name.to_owned());
        let now = Instant::now();
        let Some(attachment) = attachment_of(name).filter(|_| self.backoff.allows(&thing, now)) else { return false };
        match repair::attachment(&self.node, &self.registry, &attachment) {
            Ok(Outcome::Busy) => {
                // Its VIPs wait too: reconciled before its missing veth pair is back, they would leave its connections
                // without an owner.
                for key in self.cache.vips_of(name) {
                    self.backoff.busy(ObjectId::Vip(key.clone()), now);
                }
                self.backoff.busy(thing, now);
            }
            Ok(Outcome::Nothing) => self.backoff.reset(&thing, now),
            Ok(Outcome::Gone) => {
                self.cache.is_gone(name);
                self.backoff.reset(&thing, now);
            }
            Ok(Outcome::Done(found)) => {
                self.repaired(thing, None, found.as_slice(), name);
                return !found.is_empty();
            }
            Err(error) => self.failed(thing, None, name, &error),
        }
        false
    }

    pub(super) fn vip(&mut self, key: &VipKey) {
        let thing = ObjectId::Vip(key.clone());
        let now = Instant::now();
        if !self.backoff.allows(&thing, now) {
            return;
        }
        match repair::vip(&self.node, &self.registry, key) {
            Ok(found) => self.repaired(thing, Some(key), &found, &key.to_string()),
            Err(error) => self.failed(thing, Some(key), &key.to_string(), &error),
        }
    }

    pub(super) fn sweep_orphans(&mut self) {
        self.sweep = None;
        let dirs = self.cache.all_bpf_dirs();
        let removed = dataplane::gc::objects(&self.node, &self.registry, dirs.iter().map(std::path::PathBuf::as_path));
        self.swept = Some(Instant::now());
        match removed {
            Ok(removed) => self.repaired(ObjectId::Orphans, None, &removed, "the node"),
            Err(error) => self.failed(ObjectId::Orphans, None, "orphans can't be removed", &error),
        }
    }

    /// The node's own objects, where an event concerns them or they are due. Settings are in [`Self::look_around`].
    pub(super) fn node_objects(&mut self) {
        let is_full = self.queue.all || Instant::now() >= self.full;
        let search = self.queue.link == LinkNews::DefaultRoute;
        if self.queue.link > LinkNews::None || is_full {
            self.objects.find_links(&self.node, search);
        }
        // Links may have changed since.
        if std::mem::take(&mut self.vips_changed) || (self.started && (is_full || !self.queue.addresses.is_empty())) {
            self.want_table();
        }
        if !self.queue.addresses.is_empty() || search || is_full {
            self.source();
        }
        let is_moved = self.queue.link > LinkNews::None || !self.queue.addresses.is_empty();
        if is_moved || !self.queue.networks.is_empty() || is_full || self.objects.discards_others() {
            self.discard();
        }
        let cache = &self.cache;
        let excluded = self.objects.excluded();
        let repaired = self.objects.proxies(&self.node, |address| cache.answers_for(address, &excluded));
        self.repaired(ObjectId::Other("proxy neighbours".into()), None, &repaired, "the node");
        self.objects.announce();
    }

    /// What comes for an address of the pools that is no VIP's here, or not yet.
    fn discard(&mut self) {
        let thing = ObjectId::Other("discard routes".into());
        match self.objects.discard(&self.node) {
            Ok(found) => self.repaired(thing, None, &found, "the node"),
            Err(error) => self.failed(thing, None, "the discard routes of the pools", &error.into()),
        }
    }

    fn want_table(&mut self) {
        let links = match link::list(&self.node) {
            Ok(links) => links,
            Err(error) => {
                self.vips_changed = true;
                return self.failed(ObjectId::Other("links".into()), None, "the node's links", &error.into());
            }
        };
        let pods = pod_links::of(&links, &self.pods());
        let served = || self.cache.vips().values().map(|vip| &vip.record).filter(|record| !record.withdrawn);
        let (of_ipv4, of_ipv6): (BTreeSet<IpAddr>, _) =
            served().flat_map(VipRecord::all_addresses).partition(IpAddr::is_ipv4);
        let nodes = served().map(|record| record.node).filter(IpAddr::is_ipv4).collect();
        let others = self.cache.cluster().into_iter().flat_map(|cluster| &cluster.nodes);
        let (members, members6): (BTreeSet<IpAddr>, _) = others.map(|node| node.tunnel).partition(IpAddr::is_ipv4);
        // Routes of IPv6 name no source: the node may call from any of its addresses.
        let own = if of_ipv6.is_empty() { Ok(Vec::new()) } else { net::address::list(&self.node, Family::V6, None) };
        match own {
            Ok(own) => {
                let own = own.iter().filter(|own| own.global).map(|own| own.address).take(notrack::NODES as usize);
                let (nodes, pods) = (own.collect(), pods.clone());
                self.objects.notrack6.want(notrack::Want { vips: of_ipv6, nodes, pods, members: members6 });
            }
            Err(error) => {
                self.vips_changed = true;
                self.failed(ObjectId::Other("addresses".into()), None, "the node's addresses", &error.into());
            }
        }
        self.objects.notrack.want(notrack::Want { vips: of_ipv4, nodes, pods, members });
    }

    /// What tells pods' devices from others.
    pub(super) fn pods(&self) -> pod_links::About {
        let replicas = || self.cache.vips().values().flat_map(|vip| vip.replicas.values());
        pod_links::About {
            netns: replicas().filter_map(|replica| replica.netns_id).collect(),
            pairs: replicas().map(|replica| replica.ifindex).collect(),
            uplinks: self.objects.indexes(),
        }
    }

    /// The source of the VIPs' routes follows the node's address. With an address the kernel deletes the routes that have it
    /// as their source, and sends no event (`fib_sync_down_addr`).
    fn source(&mut self) {
        let about = self.cache.vips().values().map(|vip| vip.record.node).collect();
        let have = match source::Have::read(&self.node, &about, self.objects.link()) {
            Ok(have) => have,
            Err(error) => {
                return self.failed(ObjectId::Other("source".into()), None, "the node's address", &error.into());
            }
        };
        let moved = &self.queue.addresses;
        let is_due = |node: &IpAddr| moved.contains(node) || source::difference(*node, &have).is_some();
        let due = self.cache.vips().iter().filter(|(_, vip)| is_due(&vip.record.node));
        let due: Vec<VipKey> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            let thing = ObjectId::Vip(key.clone());
            match address::follow(&self.node, &self.registry, &key, &have) {
                Ok(found) => self.repaired(thing, Some(&key), &found, &key.to_string()),
                Err(error) => self.failed(thing, Some(&key), &key.to_string(), &error),
            }
        }
    }

    /// What causes no event: three settings, the flow owner's pins and maps, the pods' ARP settings. A few system calls an
    /// attachment.
    pub(super) fn look_around(&mut self) {
        self.objects.notrack.look();
        self.objects.notrack6.look();
        self.redirects();
        // A node without VIPs keeps its settings as they are.
        if self.cache.vips().is_empty() {
            return;
        }
        for (name, value) in SETTINGS {
            self.setting(name, value);
        }
        if self.cache.vips().values().any(|vip| vip.record.has_ipv6()) {
            for (name, value) in SETTINGS_IPV6 {
                self.setting(name, value);
            }
        }
        for dir in self.cache.bpf_dirs() {
            self.flow_owner(&dir);
        }
        let wrong = |(name, netns, ifname): (&str, u32, &str)| {
            // A pod whose settings can't be read is being removed.
            let settings = link::settings_in(&self.node, netns, ifname).ok().flatten()?;
            (!attachment::has_arp_settings(&settings)).then(|| name.to_owned())
        };
        let asked: Vec<_> = self.cache.pods_behind(&self.last_pod).take(PODS).collect();
        let last = asked.last().map(|(name, ..)| (*name).to_owned());
        self.queue.attachments.extend(asked.into_iter().filter_map(wrong));
        self.last_pod = last.unwrap_or_default();
        self.turn = self.turn.wrapping_add(1);
    }

    /// Whatever VIPs there are: clients call those that aren't here yet.
    fn redirects(&mut self) {
        let thing = ObjectId::Other("send_redirects".into());
        match self.objects.redirects() {
            Ok(found) => self.repaired(thing, None, &found, "the node"),
            Err(error) => self.failed(thing, None, "redirects of the links to the gateways", &error.into()),
        }
    }

    fn setting(&mut self, name: &'static str, value: i64) {
        let thing = ObjectId::Other(name.to_owned());
        let change = match settings::read((name, value)) {
            Ok(Some(change)) => change,
            Ok(None) => return self.backoff.reset(&thing, Instant::now()),
            Err(error) => return self.failed(thing, None, name, &dataplane::Error::from(error)),
        };
        if !self.backoff.allows(&thing, Instant::now()) {
            return;
        }
        match change.apply() {
            Ok(()) => self.repaired(thing, None, &[change.finding()], "the node"),
            Err(error) => self.failed(thing, None, &change.finding(), &dataplane::Error::from(error)),
        }
    }

    fn flow_owner(&mut self, dir: &Path) {
        let place = dir.display().to_string();
        let thing = ObjectId::Other(place.clone());
        let parts = self.cache.parts();
        let checked = owner::status(dir, parts).and_then(|standing| match standing {
            Some(_) => self.wrong_in_maps(dir).map(|wrong| (wrong, Vec::new())),
            None if !self.backoff.allows(&thing, Instant::now()) => Ok((Vec::new(), Vec::new())),
            None => {
                // Those that an ADD is just about to load were never there.
                let is_amiss = owner::status(dir, Parts::default())?.is_none();
                owner::ensure(&self.node, &self.registry, dir, parts)?;
                let found = is_amiss.then(|| "programs or maps of the flow owner weren't pinned".to_owned());
                Ok((Vec::new(), found.into_iter().collect()))
            }
        });
        match checked {
            Ok((wrong, found)) => {
                self.queue.vips.extend(wrong);
                self.repaired(thing, None, &found, &place);
            }
            Err(error) => self.failed(thing, None, &place, &error),
        }
    }

    /// The VIPs whose entries in the maps differ, of those whose turn it is.
    fn wrong_in_maps(&self, dir: &Path) -> dataplane::Result<Vec<VipKey>> {
        // Another build's maps may have another layout: that build fills them.
        let Some(maps) = Maps::open(dir)? else { return Ok(Vec::new()) };
        let entries =
            |(_, vip): (&VipKey, &Vip)| vip.by_address().map(|(_, want)| 1 + want.attached.len()).sum::<usize>();
        let mut share = Share::new(self.cache.vips_in(dir).map(entries).sum(), ENTRIES, self.turn);
        let mut wrong = Vec::new();
        for (key, vip) in self.cache.vips_in(dir) {
            for (address, want) in vip.by_address() {
                if !owner::is_right(&maps, address, want, || share.has_next())? {
                    wrong.push(key.clone());
                }
            }
        }
        Ok(wrong)
    }

    /// Begins a full resync: the VIPs now, by one reading of the tables; the attachments one after the other.
    pub(super) fn begin_full_round(&mut self) {
        let now = Instant::now();
        (self.begun, self.full) = (Some(now), now + FULL);
        if !std::mem::replace(&mut self.ensured, true) {
            // This build's programs replace another build's.
            for dir in self.cache.bpf_dirs() {
                if let Err(error) = owner::ensure(&self.node, &self.registry, &dir, self.cache.parts()) {
                    self.failed(ObjectId::Other(dir.display().to_string()), None, "the flow owner", &error);
                }
            }
        }
        self.evict_deleted();
        self.backlog = self.recorded_attachments();
        if let Err(error) = self.registry.sweep_removed_vips() {
            self.failed(ObjectId::Orphans, None, "what was left of removed VIPs", &dataplane::Error::from(error));
        }
        match self.wrong_vips() {
            Ok((wrong, tables)) => wrong.iter().for_each(|key| self.sweep_vip(key, &tables)),
            Err(error) => self.failed(ObjectId::Orphans, None, "the node's tables", &error),
        }
        self.sweep_orphans();
        self.look = Instant::now();
    }

    /// All that are recorded: an attachment that a killed call left may have no VIP.
    fn recorded_attachments(&self) -> Vec<String> {
        match self.registry.attachments() {
            Ok(attachments) => attachments.iter().map(attachment_name).collect(),
            Err(_) => self.cache.attachments().cloned().collect(), // reported with the VIPs
        }
    }

    /// The VIPs that differ from the registry, and the tables they were compared with.
    fn wrong_vips(&self) -> dataplane::Result<(Vec<VipKey>, Tables)> {
        let tables = Tables::read(&self.node, &self.registry)?;
        let mut wrong = Vec::new();
        for key in self.registry.vips()? {
            let names = self.registry.endpoint_names(&key)?;
            let has_orphans = names.iter().any(|name| gc::is_orphan(&self.registry, &key, name));
            let known = self.cache.vips().get(&key);
            let is_right = known.is_some_and(|vip| tables.have(&vip.record, &vip.replicas));
            if has_orphans || names.is_empty() || !is_right {
                wrong.push(key);
            }
        }
        Ok((wrong, tables))
    }

    fn sweep_vip(&mut self, key: &VipKey, tables: &Tables) {
        let thing = ObjectId::Vip(key.clone());
        if !self.backoff.allows(&thing, Instant::now()) {
            return;
        }
        match gc::vip(&self.node, &self.registry, key, tables) {
            Ok(found) => self.repaired(thing, Some(key), &found, &key.to_string()),
            Err(error) => self.failed(thing, Some(key), &key.to_string(), &error),
        }
    }

    pub(super) fn repaired(&mut self, thing: ObjectId, vip: Option<&VipKey>, found: &[String], about: &str) {
        let now = Instant::now();
        if found.is_empty() {
            return self.backoff.reset(&thing, now);
        }
        let what = summary(found);
        let say = self.backoff.repaired(thing, &what, now);
        self.reporter.repaired(say, vip, about, &what);
    }

    pub(super) fn failed(&mut self, thing: ObjectId, vip: Option<&VipKey>, about: &str, error: &dataplane::Error) {
        if self.backoff.failed(thing, &crate::with_causes(error), Instant::now()) {
            self.reporter.trouble(vip, about, error);
        }
    }
}

/// One in so many of a long row, others each time.
struct Share {
    step: usize,
    place: usize,
}

impl Share {
    /// Of so many, and no more than that; all have had their turn when as many turns have been as it takes.
    fn new(all: usize, most: usize, turn: usize) -> Self {
        let step = all.div_ceil(most).max(1);
        Self { step, place: turn % step }
    }

    /// Whether the next one in the row is among them.
    fn has_next(&mut self) -> bool {
        self.place += 1;
        self.place.is_multiple_of(self.step)
    }
}

/// The first few of the findings, and how many more there are.
fn summary(found: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = found.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match found.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Share, summary};

    #[test]
    fn all_have_their_turn() {
        for (all, most, turns) in [(0, 3, 1), (1, 3, 1), (3, 3, 1), (4, 3, 2), (10, 3, 4)] {
            let mut seen = vec![0; all];
            for turn in 0..turns {
                let mut share = Share::new(all, most, turn);
                let mut chosen = 0;
                for times in seen.iter_mut().filter(|_| share.has_next()) {
                    *times += 1;
                    chosen += 1;
                }
                assert!(chosen <= most, "{chosen} of {all} in one turn");
            }
            assert_eq!(seen, vec![1; all], "{most} of {all}, {turns} times");
        }
    }

    #[test]
    fn a_summary_is_short() {
        let found: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        assert_eq!(summary(&found[..1]), "a");
        assert_eq!(summary(&found[..3]), "a; b; c");
        assert_eq!(summary(&found), "a; b; c; and 2 more");
    }
}
