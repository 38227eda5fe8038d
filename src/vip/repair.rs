//! Bringing an attachment back to what the registry says: its host end, what stands on it, its pod, its nexthop. By the
//! same differences as ADD and CHECK; a second time it changes nothing.

use nix::errno::Errno;

use crate::cni::env::Attachment;
use crate::net::nexthop::{self, Found, Object};
use crate::net::{self, Netns, NodeNet, PodNet, link};
use crate::registry::{AttachmentRecord, Attempt, Registry, VipKey, attachment_name};

use super::ids::POD_DEVICE;
use super::joined::Joined;
use super::pair::{self, HostEnd, PodDevices, PodEnd};
use super::{Result, owner, put_right};

/// What came of a look at an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A call of the plugin is at work on it, and will leave it in order.
    Busy,
    /// There is nothing that must be: no record, or an ADD that didn't get to its end.
    Nothing,
    /// The pod is gone. Removing what is left of it is the runtime's to ask for.
    Gone,
    /// It is in order now; what was amiss, in words.
    Done(Vec<String>),
}

/// Puts right whatever is missing or wrong. A pod whose pair is gone gets a new one: its sockets live on.
pub fn attachment(node: &NodeNet, registry: &Registry, attachment: &Attachment) -> Result<Outcome> {
    let locked = match registry.try_attachment(attachment)? {
        Attempt::Taken(locked) => locked,
        Attempt::Busy => return Ok(Outcome::Busy),
        Attempt::Absent => return Ok(Outcome::Nothing),
    };
    // What else `locked` has is the lock, which is held to the end.
    let record = locked.record?;
    let joined = Joined::read(registry, attachment, &record)?;
    if !joined.complete {
        return Ok(Outcome::Nothing);
    }
    let mut repair = Repair { node, registry, attachment, record, joined, found: Vec::new() };
    let mut pod = repair.open_pod()?;
    let Some(host_end) = repair.host_end(&mut pod)? else { return Ok(Outcome::Gone) };
    if let Some(Opened { pod, devices }) = pod {
        repair.pod_end(&pod, devices)?;
    }
    repair.fix_host_end(&host_end)?;
    repair.nexthop(&host_end)?;
    repair.endpoints(&host_end)?;
    Ok(Outcome::Done(repair.found))
}

/// Brings a VIP's tables and maps in order; what was amiss, in words.
pub fn vip(node: &NodeNet, registry: &Registry, key: &VipKey) -> Result<Vec<String>> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(Vec::new()) };
    // None that has its pair: the ADD of the first one is under way, and will bring the VIP in order.
    if vip.replicas()?.is_empty() && !vip.is_unused()? {
        return Ok(Vec::new());
    }
    Ok(put_right(node, vip)?.found)
}

/// A pod that lives.
struct Opened {
    pod: PodNet,
    devices: PodDevices,
}

struct Repair<'a> {
    node: &'a NodeNet,
    registry: &'a Registry,
    attachment: &'a Attachment,
    record: AttachmentRecord,
    joined: Joined,
    found: Vec<String>,
}

impl Repair<'_> {
    /// `None`: the pod is gone, its namespace doesn't show where we are, or it is about to go: its own interface is gone.
    fn open_pod(&self) -> Result<Option<Opened>> {
        let recorded = &self.record.netns;
        let Some(netns) = Netns::open_if_alive(&recorded.path)? else { return Ok(None) };
        // Paths are used again.
        if netns.identity()? != recorded.identity() {
            return Ok(None);
        }
        let pod = PodNet::open(netns)?;
        let devices = PodDevices::read(&pod, self.joined.ifname())?;
        Ok(devices.map(|devices| Opened { pod, devices }))
    }

    /// The host end, with a new pair where there is none. `None`: without a pod there can't be one.
    fn host_end(&mut self, opened: &mut Option<Opened>) -> Result<Option<HostEnd>> {
        let names = &self.joined.names;
        let address = self.joined.vips.first().map(|member| member.endpoint.address);
        let found = HostEnd::read(self.node, names, address)?;
        let Some(Opened { pod, devices }) = opened else { return Ok(found) };
        match (found, &devices.vip0) {
            (Some(found), Some(_)) => return Ok(Some(found)),
            // The other end of it is somewhere else, or has another name: a pair goes as a whole.
            (Some(_), None) => pair::remove(self.node, names)?,
            (None, Some(vip0)) if vip0.mac == Some(names.pod_mac) => pod.apply(&[link::del(POD_DEVICE)])?,
            (None, Some(_)) => {
                let errno = Errno::EEXIST;
                return Err(
                    net::Error::new("add link", format!("{POD_DEVICE} in the pod: another is there"), errno).into()
                );
            }
            (None, None) => {}
        }
        self.found.push(format!("the pair {} / {POD_DEVICE} was gone", names.host));
        pair::create(self.node, names, self.record.mtu.unwrap_or(devices.interface.mtu), pod.netns())?;
        devices.vip0 = link::by_name(pod, POD_DEVICE)?;
        Ok(HostEnd::new(self.node, names)?)
    }

    fn pod_end(&mut self, pod: &PodNet, devices: PodDevices) -> Result<()> {
        let Some(end) = PodEnd::around(pod, devices)? else { return Ok(()) };
        if let Some(finding) = pair::wrong_mac(POD_DEVICE, end.mac(), self.joined.names.pod_mac) {
            return Err(net::Error::new("repair", format!("the pod: {finding}"), Errno::EEXIST).into());
        }
        if end.fixes(&self.joined.pod_want()).is_empty() {
            return Ok(());
        }
        // The VIP may just be getting another address, by somebody who holds its lock and has been at the pod before the
        // record: waited for, and looked at anew.
        for key in self.record.keys() {
            drop(self.registry.vip_if_present(&key)?);
        }
        self.joined = Joined::read(self.registry, self.attachment, &self.record)?;
        let Some(end) = PodEnd::read(pod, self.joined.ifname())?.filter(|_| self.joined.complete) else {
            return Ok(());
        };
        let fixes = end.fixes(&self.joined.pod_want());
        self.found.extend(fixes.iter().map(|fix| format!("in the pod: {}", fix.finding)));
        pair::apply(pod, fixes)?;
        // As ADD does it: being asked, the kernel looks at the carrier at once.
        link::by_index(pod, end.index())?;
        Ok(())
    }

    fn fix_host_end(&mut self, end: &HostEnd) -> Result<()> {
        let Some(first) = self.joined.vips.first() else { return Ok(()) };
        let mut fixes = end.fixes(&self.joined.names, first.endpoint.address);
        let programs = self.joined.flow_owner().map(owner::standing).transpose()?.flatten();
        if let Some(programs) = &programs {
            fixes.extend(end.filter_fixes(programs)?);
        }
        self.found.extend(fixes.iter().map(|fix| fix.finding.clone()));
        pair::apply(self.node, fixes)?;
        Ok(())
    }

    fn nexthop(&mut self, end: &HostEnd) -> Result<()> {
        let Some(first) = self.joined.vips.first() else { return Ok(()) };
        let wanted = end.nexthop(first.endpoint.address)?;
        let found = nexthop::find(self.node, wanted.id)?;
        match found {
            Some(Found::Ours(Object::Single(found))) if found == wanted => return Ok(()),
            Some(Found::Ours(_)) => {
                self.found.push(format!("nexthop {} is not as it should be", wanted.id));
                self.node.apply(&[nexthop::del(wanted.id)])?;
            }
            Some(Found::Foreign) | None => self.found.push(format!("nexthop {} is missing", wanted.id)),
        }
        link::by_index(self.node, wanted.index)?;
        let add = nexthop::add(wanted);
        // Somebody may be bringing a VIP in order meanwhile, which takes the same nexthop. One of somebody else's stays.
        let add = if found == Some(Found::Foreign) { add } else { add.accept(&[Errno::EEXIST]) };
        Ok(self.node.apply(&[add])?)
    }

    /// What the endpoints record of the pair. Another pair than the recorded one is in each VIP's group and maps at once.
    fn endpoints(&mut self, end: &HostEnd) -> Result<()> {
        let name = attachment_name(self.attachment);
        let is_recorded = |ifindex, netns_id| (ifindex, netns_id) == (Some(end.link.index), end.link.peer_netns);
        for member in &self.joined.vips {
            if is_recorded(member.endpoint.ifindex, member.endpoint.netns_id) {
                continue;
            }
            let Some(mut vip) = self.registry.vip_if_present(&member.key)? else { continue };
            let Some(mut endpoint) = vip.endpoint(&name)? else { continue };
            let nexthop = end.nexthop(endpoint.address)?;
            endpoint.ifindex = Some(nexthop.index);
            endpoint.nexthop = Some(nexthop.id);
            endpoint.netns_id = end.link.peer_netns;
            vip.write_endpoint(&name, &endpoint)?;
            self.found.push(format!("{} knew another pair", member.key));
            self.found.extend(put_right(self.node, vip)?.found);
        }
        Ok(())
    }
}
