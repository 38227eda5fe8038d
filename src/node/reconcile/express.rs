//! The express path: whether it is on, and its programs on the uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;

use crate::api::protocol::{self, ExpressOff, ExpressUplink, UplinkOff};
use crate::dataplane::node::pod_links::About;
use crate::dataplane::node::uplinks::{self, Op, Uplink};
use crate::dataplane::{self, owner};
use crate::ebpf::{Hook, Programs, set_uplinks};
use crate::net::{self, NodeNet, link};
use crate::node::{Context, Express};
use crate::with_causes;

use super::Reconciler;
use super::backoff::ObjectId;
use super::queue::{LinkNews, WorkQueue};

/// Routes are read again no sooner than after so many times as long as that took: a table may be long.
const REST: u32 = 20;

/// What is known of the uplinks.
pub struct Uplinks {
    /// Switched on by the configuration.
    on: bool,
    express: Express,
    /// As links and routes had it when they were read last.
    known: Vec<Uplink>,
    /// Links or routes may have changed since.
    stale: bool,
    /// When they may be read again.
    rested: Instant,
    /// What a run before has left was searched for on all links.
    searched: bool,
    /// Uplinks whose programs were all there: one that is missing was removed by another.
    settled: BTreeSet<u32>,
}

/// The ids and descriptors of the programs wanted, by hook.
type Wanted = BTreeMap<Hook, (u32, std::os::fd::RawFd)>;

impl Uplinks {
    pub fn new(context: &Context) -> Self {
        Self {
            on: context.wanted.express,
            express: context.express.clone(),
            known: Vec::new(),
            stale: true,
            rested: Instant::now(),
            searched: false,
            settled: BTreeSet::new(),
        }
    }

    /// Ends all leases: what the programs read of VIPs and pods may have changed.
    pub fn bump(&self) {
        self.express.bump();
    }

    /// Whether what has happened may concern an uplink.
    pub fn heard(&mut self, queue: &WorkQueue, is_full: bool) -> bool {
        self.stale |= queue.link > LinkNews::None || !queue.addresses.is_empty() || is_full;
        let touched = self.settled.iter().any(|index| queue.devices.contains(index));
        touched || (self.stale && self.rested <= Instant::now())
    }

    /// Reads links and routes where they may have changed.
    fn read(&mut self, node: &NodeNet, about: &About) -> net::Result<()> {
        let begun = Instant::now();
        if !self.stale || self.rested > begun {
            return Ok(());
        }
        let links = link::list(node)?;
        let before = self.known.iter().map(|uplink| uplink.index).collect();
        self.known = uplinks::of(&links, &uplinks::named(node)?, about, &before);
        if !self.searched
            && let Some(mut attached) = self.express.attached()
        {
            attached.indexes.extend(uplinks::left(node, &links, about)?);
            self.searched = true;
        }
        self.rested = Instant::now() + begun.elapsed() * REST;
        self.stale = false;
        Ok(())
    }
}

impl Reconciler {
    /// Switches the express path on or off, and puts its programs where they belong.
    pub(super) fn express(&mut self) {
        if !self.started {
            return;
        }
        let about = self.pods();
        if let Err(error) = self.uplinks.read(&self.node, &about) {
            return self.failed(ObjectId::Other("uplinks".into()), None, "the node's uplinks", &error.into());
        }
        let dirs = self.cache.bpf_dirs();
        self.tell_uplinks(&dirs);
        let (programs, mut off) = match self.programs(dirs.first()) {
            Ok(programs) => (Some(programs), None),
            Err(off) => (None, Some(off)),
        };
        if off.is_some()
            && let Err(error) = self.uplinks.express.off(dirs.iter().map(PathBuf::as_path))
        {
            self.failed(ObjectId::Other("express".into()), None, "the express path", &error.into());
        }
        let uplinks = self.attach(programs.as_ref());
        if let (None, Some(dir)) = (&off, dirs.first()) {
            off = self.switch_on(dir);
        }
        let generation = 0; // that of the moment in which it is asked for
        self.uplinks.express.publish(protocol::Express { off, generation, uplinks });
    }

    /// The flow owner tells clients outside by the devices that they come by, with the express path or without.
    fn tell_uplinks(&mut self, dirs: &BTreeSet<PathBuf>) {
        let indexes: BTreeSet<u32> = self.uplinks.known.iter().map(|uplink| uplink.index).collect();
        for dir in dirs {
            if let Err(error) = set_uplinks(dir, &indexes) {
                self.failed(ObjectId::Other("uplinks".into()), None, "the node's uplinks", &error.into());
            }
        }
    }

    fn switch_on(&self, dir: &Path) -> Option<ExpressOff> {
        match self.uplinks.express.on(dir) {
            Ok(0) => Some(ExpressOff::NoFlowOwner),
            Ok(_) => None,
            Err(error) => Some(ExpressOff::Failed(with_causes(&error))),
        }
    }

    /// The programs, or why none is wanted.
    fn programs(&self, dir: Option<&PathBuf>) -> Result<Programs, ExpressOff> {
        if !self.uplinks.on {
            return Err(ExpressOff::Configured);
        }
        if self.cache.vips().is_empty() {
            return Err(ExpressOff::NoVips);
        }
        let dir = dir.ok_or(ExpressOff::NoFlowOwner)?;
        if self.objects.notrack.leaves_tracked() {
            return Err(ExpressOff::Tracked);
        }
        match owner::status(dir, self.cache.parts()) {
            // Another build's may have none for uplinks.
            Ok(programs) => programs.filter(has_all).ok_or(ExpressOff::NoFlowOwner),
            Err(error) => Err(ExpressOff::Failed(with_causes(&error))),
        }
    }

    /// Puts the programs on all uplinks, and takes them off all other devices.
    fn attach(&mut self, programs: Option<&Programs>) -> Vec<ExpressUplink> {
        let known = self.uplinks.known.clone();
        let express = self.uplinks.express.clone();
        let Some(mut attached) = express.attached() else { return Vec::new() };
        let has_ipv6 = self.cache.has_ipv6();
        let wanted = programs.map(|programs| wanted(programs, has_ipv6)).transpose();
        let mut shown = Vec::new();
        for uplink in &known {
            let off = match &wanted {
                Ok(wanted) => self.uplink(uplink, wanted.as_ref().filter(|_| uplink.ethernet)),
                Err(error) => Some(UplinkOff::Failed(with_causes(error))),
            };
            let off = off.map(|off| if uplink.ethernet { off } else { UplinkOff::NoEthernet });
            match off {
                None => drop(self.uplinks.settled.insert(uplink.index)),
                Some(_) => drop(self.uplinks.settled.remove(&uplink.index)),
            }
            match off {
                None | Some(UplinkOff::Failed(_)) => drop(attached.indexes.insert(uplink.index)),
                Some(_) => drop(attached.indexes.remove(&uplink.index)),
            }
            shown.push(ExpressUplink { device: uplink.name.clone(), off });
        }
        let is_known = |index: &u32| known.iter().any(|uplink| uplink.index == *index);
        let stale: Vec<u32> = attached.indexes.iter().copied().filter(|index| !is_known(index)).collect();
        for index in stale {
            match uplinks::clear(&self.node, index) {
                Ok(()) => drop(attached.indexes.remove(&index)),
                Err(error) => {
                    self.failed(ObjectId::Other(format!("link {index}")), None, "the express path", &error.into());
                }
            }
            self.uplinks.settled.remove(&index);
        }
        shown
    }

    /// One uplink; why the express path is off there.
    fn uplink(&mut self, uplink: &Uplink, wanted: Option<&Wanted>) -> Option<UplinkOff> {
        let thing = ObjectId::Other(format!("the express path on {}", uplink.name));
        let was_settled = self.uplinks.settled.contains(&uplink.index);
        let allowed = self.backoff.allows(&thing, Instant::now());
        match put(&self.node, uplink, wanted, allowed) {
            Ok(Put { later: true, .. }) => Some(UplinkOff::Failed("its programs are removed again and again".into())),
            Ok(Put { others, ops, .. }) => {
                if !ops.is_empty() {
                    self.uplinks.bump();
                }
                let is_off = wanted.is_none() || !others.is_empty();
                let repaired = was_settled && !is_off;
                let found: Vec<String> = ops.iter().filter(|_| repaired).map(ToString::to_string).collect();
                self.repaired(thing, None, &found, &format!("the express path on {}", uplink.name));
                if was_settled == is_off {
                    tell(uplink, is_off, &others);
                }
                match (others.is_empty(), wanted) {
                    (false, _) => Some(UplinkOff::Others(others)),
                    (true, None) => Some(UplinkOff::Node),
                    (true, Some(_)) => None,
                }
            }
            // It has gone since: the next reading of the links knows.
            Err(error) if error.errno == Errno::ENODEV => Some(UplinkOff::Failed(with_causes(&error))),
            Err(error) => {
                let error = dataplane::Error::from(error);
                self.failed(thing, None, &format!("the express path on {}", uplink.name), &error);
                Some(UplinkOff::Failed(with_causes(&error)))
            }
        }
    }
}

fn tell(uplink: &Uplink, is_off: bool, others: &[String]) {
    let device = &uplink.name;
    match (is_off, others) {
        (false, _) => tracing::info!(device, "express path on"),
        (true, []) => tracing::info!(device, "express path off"),
        (true, others) => tracing::info!(device, others = others.join(", "), "express path off: others are there"),
    }
}

fn has_all(programs: &Programs) -> bool {
    Hook::UPLINK.iter().all(|hook| programs.iter().any(|program| program.spec.hook == *hook))
}

/// Those of IPv6 only where some VIP has an address of it: they cost other packets a moment each. Another build's may have none.
fn wanted(programs: &Programs, has_ipv6: bool) -> dataplane::Result<Wanted> {
    let is_wanted = |hook: Hook| uplinks::hooks().any(|of| of == hook) && (has_ipv6 || !hook.is_of_ipv6());
    let ours = programs.iter().filter(|program| is_wanted(program.spec.hook));
    ours.map(|program| Ok((program.spec.hook, (program.id(), program.fd()?)))).collect()
}

/// What was done to an uplink.
struct Put {
    /// What others have there.
    others: Vec<String>,
    ops: Vec<Op>,
    /// Something is missing, and left to a later time.
    later: bool,
}

/// Puts the programs wanted on an uplink, unless others are there; without any it has none. Where it isn't `allowed` nothing
/// is put there, and what must not be there goes all the same.
fn put(node: &NodeNet, uplink: &Uplink, wanted: Option<&Wanted>, allowed: bool) -> net::Result<Put> {
    let id = |hook: Hook| Some(wanted?.get(&hook)?.0);
    let known = wanted.into_iter().flatten().map(|(hook, (id, _))| (*id, *hook)).collect();
    let (mut found, mut others) = (Vec::new(), BTreeSet::new());
    for hook in uplinks::hooks() {
        let mut have = uplinks::read(node, uplink.index, hook, &known)?;
        others.extend(std::mem::take(&mut have.others)); // each side is read for either family
        found.push((hook, have));
    }
    let others: Vec<String> = others.into_iter().collect();
    let mut done = Put { others: others.clone(), ops: Vec::new(), later: false };
    for (hook, have) in &found {
        let want = id(*hook).filter(|_| others.is_empty());
        let program = wanted.and_then(|wanted| wanted.get(hook)).map_or(-1, |(_, fd)| *fd);
        for op in uplinks::difference(have, want) {
            if op.puts() && !allowed {
                done.later = true;
                continue;
            }
            op.apply(node, uplink.index, *hook, program)?;
            done.ops.push(op);
        }
    }
    Ok(done)
}
