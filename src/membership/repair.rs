//! Reconciling an attachment with the registry: its host veth, what is on it, its pod, its nexthop. By the same differences
//! as ADD and CHECK; a second run changes nothing.

use nix::errno::Errno;

use crate::dataplane::attachment::{self, ContainerVeth, Families, HostVeth, PodDevices, PodWant};
use crate::dataplane::ids::POD_DEVICE;
use crate::dataplane::joined::Joined;
use crate::dataplane::node::tunnel;
use crate::dataplane::plan::HaveNexthop;
use crate::dataplane::{Error, Result, compare, owner, reconcile_vip};
use crate::ebpf::Programs;
use crate::model::{AttachmentId, VipKey};
use crate::net::nexthop::{self, Found, Nexthop, Object};
use crate::net::{self, Netns, NodeNet, PodNet, link};
use crate::registry::{self, AttachmentRecord, Attempt, Endpoint, Registry, attachment_name};

use super::detach::{Detach, detach};
use super::join::Pair;
use super::set_vips::abandon;

/// How many times a pod is reconciled while its VIPs' addresses change.
const TRIES: u32 = 4;

/// What came of an attachment's reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A call of the plugin is at work on it, and reconciles it.
    Busy,
    /// There is nothing that must be: no record, or an ADD that didn't get to its end.
    Nothing,
    /// The pod is gone. Removing what is left of it is the runtime's to ask for.
    Gone,
    /// It matches the registry now; what was amiss, in words.
    Done(Vec<String>),
}

/// Repairs what is missing or wrong. A pod whose veth pair is missing gets a new one: its sockets live on.
pub fn attachment(node: &NodeNet, registry: &Registry, attachment: &AttachmentId) -> Result<Outcome> {
    let locked = match registry.try_attachment(attachment)? {
        Attempt::Taken(locked) => locked,
        Attempt::Busy => return Ok(Outcome::Busy),
        Attempt::Absent => return Ok(Outcome::Nothing),
    };
    let removal = Detach { net: node, registry, allocator: None, netns: None };
    let record = match &locked.record {
        Ok(record) => record.clone(),
        // Torn as it was made: there is no runtime that asks for its removal.
        Err(registry::Error::Torn { .. }) if attachment.is_by_netns() => {
            detach(&removal, attachment, locked)?;
            return Ok(Outcome::Done(vec![format!("the record of {} was torn", attachment_name(attachment))]));
        }
        Err(_) => return locked.record.map(|_| Outcome::Nothing).map_err(Error::from),
    };
    if record.changing().next().is_some() {
        let name = attachment_name(attachment);
        abandon(&removal, attachment, locked)?;
        return Ok(Outcome::Done(vec![format!("{name} was joining or leaving a VIP when the call died")]));
    }
    let pairs = Pairs { node, registry, attachment };
    let joined = Joined::read(registry, attachment, &record)?;
    // The lock is held to the end.
    let outcome = if joined.complete { pairs.repair(&record, joined)? } else { Outcome::Nothing };
    // No runtime asks for the removal of what it doesn't know.
    if attachment.is_by_netns() && (record.is_idle() || outcome == Outcome::Gone) {
        detach(&removal, attachment, locked)?;
        return Ok(Outcome::Done(vec![format!("{} is in no VIP any more", attachment_name(attachment))]));
    }
    Ok(outcome)
}

/// Reconciles a VIP's tables and maps. Returns what was amiss, in words.
pub fn vip(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<Vec<String>> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(Vec::new()) };
    // None that has its pair: the ADD of the first one is under way, and will reconcile the VIP.
    if vip.replicas()?.is_empty() && !vip.is_unused()? {
        return Ok(Vec::new());
    }
    Ok(reconcile_vip(node, vip, None)?.repairs)
}

/// A pod that lives.
struct Opened {
    pod: PodNet,
    devices: PodDevices,
}

/// Reconciles an attachment's veth pair, pod and nexthop. The caller holds its lock.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    pub node: &'a NodeNet,
    pub registry: &'a Registry,
    pub attachment: &'a AttachmentId,
}

/// What was done for an attachment.
pub(super) struct Repaired {
    /// What its VIPs were.
    pub joined: Joined,
    /// Its pair; `None`: it has none, nor a pod to make one for.
    pub pair: Option<Pair>,
    /// What was amiss, in words.
    pub found: Vec<String>,
}

impl Pairs<'_> {
    fn repair(&self, record: &AttachmentRecord, joined: Joined) -> Result<Outcome> {
        let Repaired { joined, pair, mut found } = self.reconcile(record, joined)?;
        let Some(pair) = pair else { return Ok(Outcome::Gone) };
        found.extend(self.record_pair(&joined, pair)?);
        Ok(Outcome::Done(found))
    }

    /// All of it for what `record` says now, whether its VIPs have their pair or not.
    pub fn restore(&self, record: &AttachmentRecord) -> Result<Repaired> {
        let repaired = self.reconcile(record, Joined::read(self.registry, self.attachment, record)?)?;
        if let Some(pair) = repaired.pair {
            self.record_pair(&repaired.joined, pair)?;
        }
        Ok(repaired)
    }

    /// All of it for what `record` says, whose VIPs are `joined`, at least one.
    fn reconcile(&self, record: &AttachmentRecord, joined: Joined) -> Result<Repaired> {
        let mut done = Repaired { joined, pair: None, found: Vec::new() };
        if done.joined.vips.is_empty() {
            return Ok(done);
        }
        let mut pod = open_pod(record, done.joined.ifname())?;
        let Some(host_veth) = self.host_veth(record, &mut pod, &mut done)? else { return Ok(done) };
        // The programs first: the pod leaves it to them to check sources.
        let checked = self.programs(&host_veth, &mut done)?;
        if let Some(opened) = pod {
            self.container_veth(record, opened, checked, &mut done)?;
        }
        // While the pod was changed its VIPs may have got other addresses.
        let Some(gateway) = done.joined.gateway() else { return Ok(done) };
        let fixes = host_veth.fixes(&done.joined.names, gateway);
        done.found.extend(fixes.iter().map(|fix| fix.finding.clone()));
        attachment::apply(self.node, fixes)?;
        let pair = Pair::of(&host_veth, gateway)?;
        done.found.extend(self.nexthop(pair.nexthop)?);
        done.pair = Some(pair);
        Ok(done)
    }

    /// The programs on the host veth. Says whether the pod's sources are checked there ([`HostVeth::checks_sources`]).
    fn programs(&self, host_veth: &HostVeth, Repaired { joined, found, .. }: &mut Repaired) -> Result<Option<bool>> {
        let Some(dir) = joined.flow_owner() else { return Ok(Some(false)) };
        let Some(programs) = owner::status(dir, host_veth.parts())? else { return Ok(None) };
        let fixes = host_veth.filter_fixes(&programs)?;
        found.extend(fixes.iter().map(|fix| fix.finding.clone()));
        attachment::apply(self.node, fixes)?;
        let ours = Programs::open(dir, host_veth.parts())?;
        Ok(ours.is_some_and(|ours| ours.are(&programs)).then_some(true))
    }

    /// The host veth, with a new pair where there is none. `None`: without a pod there can't be one.
    fn host_veth(
        &self,
        record: &AttachmentRecord,
        opened: &mut Option<Opened>,
        Repaired { joined, found, .. }: &mut Repaired,
    ) -> Result<Option<HostVeth>> {
        let names = &joined.names;
        let Some(gateway) = joined.gateway() else { return Ok(None) };
        let have = HostVeth::read(self.node, names, Some(gateway))?;
        let Some(Opened { pod, devices }) = opened else { return Ok(have) };
        match (have, &devices.vip0) {
            (Some(have), Some(_)) => return Ok(Some(have)),
            // The other end of it is somewhere else, or has another name: a pair goes as a whole.
            (Some(_), None) => attachment::remove(self.node, names)?,
            (None, Some(vip0)) if vip0.mac == Some(names.pod_mac) => pod.apply(&[link::del(POD_DEVICE)])?,
            (None, Some(_)) => {
                let errno = Errno::EEXIST;
                return Err(
                    net::Error::new("add link", format!("{POD_DEVICE} in the pod: another is there"), errno).into()
                );
            }
            (None, None) => {}
        }
        found.push(format!("the pair {} / {POD_DEVICE} was gone", names.host));
        attachment::create(self.node, names, record.mtu.unwrap_or(devices.interface.mtu), pod.netns())?;
        devices.vip0 = link::by_name(pod, POD_DEVICE)?;
        Ok(HostVeth::new(self.node, names, gateway)?)
    }

    fn container_veth(
        &self,
        record: &AttachmentRecord,
        Opened { pod, devices }: Opened,
        source_checked: Option<bool>,
        Repaired { joined, found, .. }: &mut Repaired,
    ) -> Result<()> {
        let pod = &pod;
        let Some(end) = ContainerVeth::around(pod, devices, Families::Both)? else { return Ok(()) };
        if let Some(finding) = attachment::wrong_mac(POD_DEVICE, end.mac(), joined.names.pod_mac) {
            return Err(net::Error::new("repair", format!("the pod: {finding}"), Errno::EEXIST).into());
        }
        found.extend(put_filters(pod, &end, joined)?);
        let underlay = tunnel::Underlay::of(self.node, self.registry)?.map(tunnel::Underlay::whole);
        let calls_leave = match source_checked {
            Some(true) => Some(attachment::allow_binding(pod)?),
            other => other,
        };
        let sources = (source_checked, calls_leave);
        if end.fixes(&pod_want(joined, sources, underlay)).is_empty() {
            return Ok(());
        }
        // Another call may just be giving a VIP another address: it holds the VIP's lock, and changes the pod before the
        // record. Wait for it, and read again. A call that takes that lock while this one changes the pod undoes it, or
        // is undone: then once more.
        for _ in 0..TRIES {
            self.wait_for_vips(record)?;
            let read = Joined::read(self.registry, self.attachment, record)?;
            if read.vips.len() != joined.vips.len() {
                return Ok(()); // a record was taken away by hand
            }
            *joined = read;
            let Some(end) = ContainerVeth::read(pod, joined.ifname(), Families::Both)? else { return Ok(()) };
            let fixes = end.fixes(&pod_want(joined, sources, underlay));
            found.extend(fixes.iter().map(|fix| format!("in the pod: {}", fix.finding)));
            attachment::apply(pod, fixes)?;
            if source_checked == Some(true) {
                attachment::relax_all(pod, record.saved_sysctls)?;
            }
            // As in ADD: when the link is requested, the kernel checks the carrier at once.
            link::by_index(pod, end.index())?;
            self.wait_for_vips(record)?;
            let now = Joined::read(self.registry, self.attachment, record)?;
            if now.pod_addresses().eq(joined.pod_addresses()) {
                break;
            }
        }
        Ok(())
    }

    fn wait_for_vips(&self, record: &AttachmentRecord) -> Result<()> {
        for key in record.keys().chain(record.changing()) {
            drop(self.registry.vip_if_present(&key)?);
        }
        Ok(())
    }

    fn nexthop(&self, wanted: Nexthop) -> Result<Option<String>> {
        let have = nexthop::find(self.node, wanted.id)?;
        let finding = match have {
            Some(Found::Ours(Object::Single(have))) if compare(&have, &wanted) == HaveNexthop::Right => {
                return Ok(None);
            }
            Some(Found::Ours(Object::Single(have))) if compare(&have, &wanted) == HaveNexthop::OtherGateway => {
                self.node.apply(&[nexthop::replace(wanted)])?;
                return Ok(Some(format!("nexthop {} has another gateway than {}", wanted.id, wanted.gateway)));
            }
            Some(Found::Ours(_)) => {
                self.node.apply(&[nexthop::del(wanted.id)])?;
                format!("nexthop {} doesn't match the registry", wanted.id)
            }
            Some(Found::Foreign) | None => format!("nexthop {} is missing", wanted.id),
        };
        link::by_index(self.node, wanted.index)?;
        let add = nexthop::add(wanted);
        // Another call may be reconciling a VIP, which adds the same nexthop. A foreign one stays.
        let add = if have == Some(Found::Foreign) { add } else { add.accept(&[Errno::EEXIST]) };
        self.node.apply(&[add])?;
        Ok(Some(finding))
    }

    /// What the endpoints record of the pair. Another pair than the recorded one is in each VIP's group and maps at once.
    fn record_pair(&self, joined: &Joined, pair: Pair) -> Result<Vec<String>> {
        let name = attachment_name(self.attachment);
        let wanted = (Some(pair.nexthop.index), pair.netns_id);
        let mut found = Vec::new();
        // One without a pair is just joining: the call that makes it a replica records the pair too.
        let knows_another =
            |endpoint: &Endpoint| endpoint.ifindex.is_some() && (endpoint.ifindex, endpoint.netns_id) != wanted;
        for member in joined.vips.iter().filter(|member| knows_another(&member.endpoint)) {
            let Some(mut vip) = self.registry.vip_if_present(&member.key)? else { continue };
            let Some(mut endpoint) = vip.endpoint(&name)? else { continue };
            pair.record_in(&mut endpoint);
            vip.write_endpoint(&name, &endpoint)?;
            found.push(format!("{} knew another pair", member.key));
            found.extend(reconcile_vip(self.node, vip, None)?.repairs);
        }
        Ok(found)
    }
}

/// All that the pod must have.
fn pod_want(
    joined: &Joined,
    (source_checked, calls_leave): (Option<bool>, Option<bool>),
    underlay: Option<u32>,
) -> PodWant<'_> {
    joined.pod_want().source_checked(source_checked).calls_leave(calls_leave).tunnel_mtu(underlay)
}

/// The programs in the pod, of whatever build. Returns what was amiss, in words.
fn put_filters(pod: &PodNet, end: &ContainerVeth, joined: &Joined) -> Result<Vec<String>> {
    let want = joined.pod_want();
    let status = |dir| owner::status(dir, want.parts());
    let Some(programs) = joined.flow_owner().map(status).transpose()?.flatten() else { return Ok(Vec::new()) };
    let fixes = end.filter_fixes(&want, &programs)?;
    let found = fixes.iter().map(|fix| format!("in the pod: {}", fix.finding)).collect();
    attachment::apply(pod, fixes)?;
    Ok(found)
}

/// `None`: the pod is gone, its namespace doesn't show where we are, or it is about to go: its own interface is gone.
fn open_pod(record: &AttachmentRecord, ifname: &str) -> Result<Option<Opened>> {
    let Some(netns) = Netns::open_if_alive(&record.netns.path)? else { return Ok(None) };
    // Paths are used again.
    if netns.identity()? != record.netns.identity() {
        return Ok(None);
    }
    let pod = PodNet::open(netns)?;
    let devices = PodDevices::read(&pod, ifname)?;
    Ok(devices.map(|devices| Opened { pod, devices }))
}
