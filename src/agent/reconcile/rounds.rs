//! The looks themselves: at one attachment, at one VIP, at what no event tells of, at everything.

use std::path::Path;
use std::time::Instant;

use super::patience::Thing;
use super::{FULL, Reconciler, Vip};
use crate::bpf::Maps;
use crate::net::{link, sysctl};
use crate::registry::{VipKey, attachment_of};
use crate::vip::repair::{self, Outcome};
use crate::vip::settings::SETTINGS;
use crate::vip::{self, Tables, owner, pair, sweep};

/// So many pods at most are asked for their settings each second: all that kubelet lets a node have, unless told otherwise.
/// On a node that has more, their turn comes later.
const PODS: usize = 110;
/// So many entries of the flow owner's maps at most are looked at each second, likewise: one a replica and one a VIP.
const ENTRIES: usize = 256;

impl Reconciler {
    /// True: something was amiss, and its VIPs may be too.
    pub(super) fn attachment(&mut self, name: &str) -> bool {
        let thing = Thing::Attachment(name.to_owned());
        let now = Instant::now();
        let Some(attachment) = attachment_of(name).filter(|_| self.patience.allows(&thing, now)) else { return false };
        match repair::attachment(&self.node, &self.registry, &attachment) {
            Ok(Outcome::Busy) => {
                // Its VIPs wait for it: without a pair that it is to get again its connections would be nobody's.
                for key in self.known.vips_of(name) {
                    self.patience.busy(Thing::Vip(key.clone()), now);
                }
                self.patience.busy(thing, now);
            }
            Ok(Outcome::Nothing) => self.patience.well(&thing, now),
            Ok(Outcome::Gone) => {
                self.known.is_gone(name);
                self.patience.well(&thing, now);
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
        let thing = Thing::Vip(key.clone());
        let now = Instant::now();
        if !self.patience.allows(&thing, now) {
            return;
        }
        match repair::vip(&self.node, &self.registry, key) {
            Ok(found) => self.repaired(thing, Some(key), &found, &key.to_string()),
            Err(error) => self.failed(thing, Some(key), &key.to_string(), &error),
        }
    }

    pub(super) fn sweep_strays(&mut self) {
        self.sweep = None;
        let dirs = self.known.bpf_dirs();
        let removed = sweep::objects(&self.node, &self.registry, dirs.iter().map(std::path::PathBuf::as_path));
        self.swept = Some(Instant::now());
        match removed {
            Ok(removed) => self.repaired(Thing::Strays, None, &removed, "the node"),
            Err(error) => self.failed(Thing::Strays, None, "what is nobody's can't be removed", &error),
        }
    }

    /// What no event tells of: three settings, the flow owner's pins and maps, the pods' ARP settings. A few system calls
    /// an attachment.
    pub(super) fn look_around(&mut self) {
        // A node without VIPs is none of our business.
        if self.known.vips().is_empty() {
            return;
        }
        for (name, value) in SETTINGS {
            self.setting(name, value);
        }
        for dir in self.known.bpf_dirs() {
            self.flow_owner(&dir);
        }
        let wrong = |(name, netns, ifname): (&str, u32, &str)| {
            // One that can't be read is a pod that is going.
            let settings = link::settings_in(&self.node, netns, ifname).ok().flatten()?;
            (!pair::has_arp_settings(&settings)).then(|| name.to_owned())
        };
        let asked: Vec<_> = self.known.pods_behind(&self.last_pod).take(PODS).collect();
        let last = asked.last().map(|(name, ..)| (*name).to_owned());
        self.todo.attachments.extend(asked.into_iter().filter_map(wrong));
        self.last_pod = last.unwrap_or_default();
        self.turn = self.turn.wrapping_add(1);
    }

    fn setting(&mut self, name: &str, value: i64) {
        let thing = Thing::Other(name.to_owned());
        let found = match sysctl::get(name) {
            Ok(have) if have == value => return self.patience.well(&thing, Instant::now()),
            Ok(have) => format!("sysctl {name} is {have}, not {value}"),
            Err(error) => return self.failed(thing, None, name, &vip::Error::from(error)),
        };
        if !self.patience.allows(&thing, Instant::now()) {
            return;
        }
        match sysctl::ensure(name, value) {
            Ok(()) => self.repaired(thing, None, &[found], "the node"),
            Err(error) => self.failed(thing, None, &found, &vip::Error::from(error)),
        }
    }

    fn flow_owner(&mut self, dir: &Path) {
        let place = dir.display().to_string();
        let thing = Thing::Other(place.clone());
        let checked = owner::standing(dir).and_then(|standing| match standing {
            Some(_) => self.wrong_in_maps(dir).map(|wrong| (wrong, Vec::new())),
            None if !self.patience.allows(&thing, Instant::now()) => Ok((Vec::new(), Vec::new())),
            None => {
                owner::ensure(&self.node, &self.registry, dir)?;
                Ok((Vec::new(), vec!["programs or maps of the flow owner weren't pinned".to_owned()]))
            }
        });
        match checked {
            Ok((wrong, found)) => {
                self.todo.vips.extend(wrong);
                self.repaired(thing, None, &found, &place);
            }
            Err(error) => self.failed(thing, None, &place, &error),
        }
    }

    /// The VIPs whose entries in the maps aren't right, as far as it is their turn.
    fn wrong_in_maps(&self, dir: &Path) -> vip::Result<Vec<VipKey>> {
        // Another build's may have another form: they are that build's to fill.
        let Some(maps) = Maps::open(dir)? else { return Ok(Vec::new()) };
        let entries = |(_, vip): (&VipKey, &Vip)| vip.record.addresses().count() * (1 + vip.want.attached.len());
        let mut share = Share::new(self.known.vips_in(dir).map(entries).sum(), ENTRIES, self.turn);
        let mut wrong = Vec::new();
        for (key, vip) in self.known.vips_in(dir) {
            for address in vip.record.addresses() {
                if !owner::is_right(&maps, address, &vip.want, || share.has_next())? {
                    wrong.push(key.clone());
                }
            }
        }
        Ok(wrong)
    }

    /// Everything: the VIPs now, by one reading of the tables, the attachments one after the other.
    pub(super) fn begin_full_round(&mut self) {
        let now = Instant::now();
        (self.begun, self.full) = (Some(now), now + FULL);
        if !std::mem::replace(&mut self.ensured, true) {
            // Where another build's programs stand, this one's take their place.
            for dir in self.known.bpf_dirs() {
                if let Err(error) = owner::ensure(&self.node, &self.registry, &dir) {
                    self.failed(Thing::Other(dir.display().to_string()), None, "the flow owner", &error);
                }
            }
        }
        self.forget_the_gone();
        self.backlog = self.known.attachments().cloned().collect();
        if let Err(error) = self.registry.sweep_removed_vips() {
            self.failed(Thing::Strays, None, "what was left of removed VIPs", &vip::Error::from(error));
        }
        match self.wrong_vips() {
            Ok((wrong, tables)) => wrong.iter().for_each(|key| self.sweep_vip(key, &tables)),
            Err(error) => self.failed(Thing::Strays, None, "the node's tables", &error),
        }
        self.sweep_strays();
        self.look = Instant::now();
    }

    /// The VIPs that need a closer look, and the tables as they were.
    fn wrong_vips(&self) -> vip::Result<(Vec<VipKey>, Tables)> {
        let tables = Tables::read(&self.node)?;
        let mut wrong = Vec::new();
        for key in self.registry.vips()? {
            let names = self.registry.endpoint_names(&key)?;
            let has_orphans = names.iter().any(|name| !self.registry.is_attached(name));
            let known = self.known.vips().get(&key);
            let is_right = known.is_some_and(|vip| tables.have(&vip.record, &vip.replicas));
            if has_orphans || names.is_empty() || !is_right {
                wrong.push(key);
            }
        }
        Ok((wrong, tables))
    }

    fn sweep_vip(&mut self, key: &VipKey, tables: &Tables) {
        let thing = Thing::Vip(key.clone());
        if !self.patience.allows(&thing, Instant::now()) {
            return;
        }
        match sweep::vip(&self.node, &self.registry, key, tables) {
            Ok(found) => self.repaired(thing, Some(key), &found, &key.to_string()),
            Err(error) => self.failed(thing, Some(key), &key.to_string(), &error),
        }
    }

    fn repaired(&mut self, thing: Thing, vip: Option<&VipKey>, found: &[String], about: &str) {
        let now = Instant::now();
        if found.is_empty() {
            return self.patience.well(&thing, now);
        }
        let what = summary(found);
        let say = self.patience.repaired(thing, &what, now);
        self.teller.repaired(say, vip, about, &what);
    }

    fn failed(&mut self, thing: Thing, vip: Option<&VipKey>, about: &str, error: &vip::Error) {
        if self.patience.failed(thing, &crate::with_causes(error), Instant::now()) {
            self.teller.trouble(vip, about, error);
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
