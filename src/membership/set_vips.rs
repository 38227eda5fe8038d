//! A running pod joins VIPs and leaves others, under traffic: nothing is asked of its runtime, and nothing happens to the
//! VIPs it stays in. A call that dies on the way leaves a record of what it was about; see [`abandon`].

use std::net::IpAddr;

use crate::dataplane::attachment::PodDevices;
use crate::dataplane::ids::MAX_VIPS;
use crate::dataplane::{self, reconcile_vip, settings};
use crate::model::{AttachmentId, VipKey};
use crate::net::{Netns, PodNet};
use crate::registry::record::SavedSysctls;
use crate::registry::{self, AttachmentRecord, Endpoint, LockedAttachment, Registry, State, attachment_name};

use super::detach::{Detach, detach};
use super::join::{Joining, Known, fill, node_source_address};
use super::repair::{Pairs, Repaired};
use super::{Error, Host, Pod, Want, families, want};

/// What is to become of a pod's VIPs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// It joins these. One it is in already is changed to what is wanted now.
    pub join: &'a [Want],
    /// It leaves these, whatever made it join them. Its connections to them end.
    pub leave: &'a [VipKey],
}

/// What has become of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// It is in these now, which have these addresses.
    pub joined: Vec<(VipKey, IpAddr, State)>,
    /// It was in these, and no longer is.
    pub left: Vec<VipKey>,
}

/// Changes the VIPs of a running pod, recorded or not. Where that fails it is in those that it was in before, less what it
/// has left. Once more changes nothing.
pub fn set_vips(host: &Host, pod: &Pod, change: &Change<'_>) -> Result<Changed, Error> {
    let joining = if change.join.is_empty() {
        host.begin()?;
        None
    } else {
        let joining = Joining::new(host, pod)?;
        settings::configure()?;
        Some(joining)
    };
    let Some(locked) = lock(host, pod, joining.is_some())? else { return Ok(Changed::default()) };
    let record = match &locked.record {
        Ok(record) => record.clone(),
        Err(_) => return locked.record.map(|_| Changed::default()).map_err(Error::from),
    };
    let name = attachment_name(&pod.attachment);
    Running { host, pod, name, joining, locked, record }.change(change)
}

/// The pod's record, in which nothing is changing. `None`: there is none.
fn lock(host: &Host, pod: &Pod, create: bool) -> Result<Option<LockedAttachment>, Error> {
    let Pod { attachment, netns, .. } = pod;
    loop {
        if let Some(locked) = host.registry.attachment(attachment)? {
            let record = match &locked.record {
                Ok(record) => record,
                // Torn as it was made: there is no runtime that asks for its removal.
                Err(registry::Error::Torn { .. }) if attachment.is_by_netns() => {
                    detach(&host.removal(), attachment, locked)?;
                    continue;
                }
                Err(_) => return Ok(Some(locked)),
            };
            // Inode numbers are used again: that was another pod's namespace.
            if attachment.is_by_netns() && record.netns.path != netns.path && !record.netns.is_still_there() {
                detach(&host.removal(), attachment, locked)?;
                continue;
            }
            if record.changing.is_empty() {
                return Ok(Some(locked));
            }
            match abandon(&host.removal(), attachment, locked)? {
                Some(locked) => return Ok(Some(locked)),
                None => continue,
            }
        }
        if !create {
            return Ok(None);
        }
        match host.registry.attach(attachment, pod.record(&host.network)) {
            Err(registry::Error::AlreadyAttached { .. }) => {}
            other => return Ok(Some(other?)),
        }
    }
}

/// Finishes what a call has left that died while it changed a pod's VIPs: the pod is taken out of those it was joining or
/// leaving, and is in the others as before. `None`: there is no need for a record any more.
pub(super) fn abandon(
    removal: &Detach<'_>,
    attachment: &AttachmentId,
    locked: LockedAttachment,
) -> dataplane::Result<Option<LockedAttachment>> {
    let Ok(mut record) = locked.record.as_ref().cloned() else { return Ok(Some(locked)) };
    let changing: Vec<VipKey> = record.changing().collect();
    let mut errors = removal.leave_vips(&changing, &attachment_name(attachment));
    if record.vips.is_empty() {
        errors.extend(removal.take_down(attachment, Some(&record)));
    } else {
        let pairs = Pairs { node: removal.net, registry: removal.registry, attachment };
        errors.extend(pairs.restore(&record).err());
    }
    dataplane::Error::several(errors)?;
    record.changing.clear();
    close(removal.registry, attachment, locked, record)
}

/// Writes what a pod is in now. What no runtime knows, and is in nothing, needs no record.
fn close(
    registry: &Registry,
    attachment: &AttachmentId,
    mut locked: LockedAttachment,
    record: AttachmentRecord,
) -> dataplane::Result<Option<LockedAttachment>> {
    if attachment.is_by_netns() && record.is_idle() {
        return locked.remove().map(|()| None).map_err(Into::into);
    }
    locked.replace(registry, record)?;
    Ok(Some(locked))
}

/// A pod whose VIPs change.
struct Running<'a> {
    host: &'a Host,
    pod: &'a Pod,
    /// Its attachment's.
    name: String,
    joining: Option<Joining<'a>>,
    locked: LockedAttachment,
    record: AttachmentRecord,
}

/// What is to be done.
struct Plan {
    new: Vec<Want>,
    known: Vec<Want>,
    leave: Vec<VipKey>,
    /// Reply tables that are free.
    places: Vec<u8>,
}

impl Running<'_> {
    fn change(mut self, change: &Change<'_>) -> Result<Changed, Error> {
        let plan = match self.plan(change).and_then(|plan| self.begin(&plan).map(|()| plan)) {
            Ok(plan) => plan,
            Err(error) => return Err(error.and(self.close())),
        };
        match self.carry_out(&plan) {
            Ok(joined) => {
                self.record.vips.extend(plan.new.iter().map(|want| want.vip.clone().into()));
                self.record.changing.clear();
                self.close()?;
                Ok(Changed { joined, left: plan.leave })
            }
            Err(error) if self.record.changing.is_empty() => Err(error),
            Err(error) => Err(error.and(abandon(&self.host.way_back(), &self.pod.attachment, self.locked).map(drop))),
        }
    }

    fn close(self) -> dataplane::Result<()> {
        let is_written = self.locked.record.as_ref().is_ok_and(|written| *written == self.record);
        if is_written && !(self.record.is_idle() && self.pod.attachment.is_by_netns()) {
            return Ok(());
        }
        close(&self.host.registry, &self.pod.attachment, self.locked, self.record).map(drop)
    }

    fn endpoint(&self, key: &VipKey) -> Result<Option<Endpoint>, Error> {
        Ok(self.host.registry.endpoint(key, &self.name)?)
    }

    fn plan(&self, change: &Change<'_>) -> Result<Plan, Error> {
        let now: Vec<VipKey> = self.record.keys().collect();
        let leave: Vec<VipKey> = change.leave.iter().filter(|key| now.contains(key)).cloned().collect();
        let (known, new): (Vec<Want>, Vec<Want>) =
            change.join.iter().cloned().partition(|want| now.contains(&want.vip));
        let mut wants: Vec<Want> = change.join.to_vec();
        let mut taken = Vec::new();
        for (index, key) in now.iter().enumerate().filter(|(_, key)| !leave.contains(key)) {
            let Some(endpoint) = self.endpoint(key)? else { continue };
            if endpoint.udp_reply {
                taken.push(endpoint.place.map_or(index, usize::from));
            }
            if !known.iter().any(|want| want.vip == *key) {
                wants.push(Want::of(key.clone(), &endpoint));
            }
        }
        want::check(&wants)?;
        for want in &known {
            if let Some(record) = self.host.registry.vip_record(&want.vip)? {
                families::check(want, &record.addresses, None)?;
            }
        }
        let places = (0..MAX_VIPS).filter(|place| !taken.contains(place));
        let places = places.filter_map(|place| u8::try_from(place).ok()).collect();
        Ok(Plan { new, known, leave, places })
    }

    /// Records what is about to change.
    fn begin(&mut self, plan: &Plan) -> Result<(), Error> {
        self.keep_places()?;
        if plan.new.is_empty() && plan.leave.is_empty() {
            return Ok(());
        }
        if self.record.is_idle() {
            self.record.saved_sysctls = self.untouched()?;
        }
        let record = &mut self.record;
        if record.address.is_none() {
            let Pod { name, address, .. } = self.pod;
            (record.pod, record.address) = (name.clone(), Some(*address));
        }
        record.vips.retain(|vip| vip.known().is_none_or(|key| !plan.leave.contains(key)));
        let new = plan.new.iter().map(|want| &want.vip);
        record.changing = plan.leave.iter().chain(new).cloned().map(Into::into).collect();
        Ok(self.locked.replace(&self.host.registry, record.clone())?)
    }

    /// The settings of a pod that is in no VIP so far.
    fn untouched(&self) -> Result<SavedSysctls, Error> {
        let Pod { netns, attachment, .. } = self.pod;
        let missing = || Error::NoNetns(netns.path.display().to_string());
        let opened = Netns::open_if_alive(&netns.path)?.ok_or_else(missing)?;
        if opened.identity()? != netns.identity() {
            return Err(missing());
        }
        if opened.is_own()? {
            return Err(Error::NodesOwnNetns(netns.path.display().to_string()));
        }
        let pod = PodNet::open(opened)?;
        let devices = PodDevices::read(&pod, &attachment.ifname)?;
        let devices = devices.ok_or_else(|| Error::NoInterface(attachment.ifname.clone()))?;
        match &devices.vip0 {
            Some(vip0) if vip0.mac != Some(self.pod.veth_names().pod_mac) => Err(Error::DeviceInTheWay),
            _ => Ok(devices.saved_sysctls(&pod)?),
        }
    }

    /// A VIP's reply table is that of its place in the attachment's list, unless it is recorded: before the list changes, it
    /// is.
    fn keep_places(&self) -> Result<(), Error> {
        for (index, key) in self.record.keys().enumerate() {
            let Some(mut vip) = self.host.registry.vip_if_present(&key)? else { continue };
            let Some(mut endpoint) = vip.endpoint(&self.name)? else { continue };
            if endpoint.udp_reply && endpoint.place.is_none() {
                endpoint.place = u8::try_from(index).ok();
                vip.write_endpoint(&self.name, &endpoint)?;
            }
        }
        Ok(())
    }

    /// Out of those it leaves first, then into those it joins. Returns the VIPs that were asked for.
    fn carry_out(&self, plan: &Plan) -> Result<Vec<(VipKey, IpAddr, State)>, Error> {
        let Self { host, pod, record, .. } = self;
        dataplane::Error::several(host.removal().leave_vips(&plan.leave, &self.name))?;
        let mut endpoints = match &self.joining {
            Some(joining) => self.insert_pending(joining, &plan.new, &plan.places)?,
            None => Vec::new(),
        };
        self.update(plan)?;
        if record.vips.is_empty() && plan.new.is_empty() {
            let down = if plan.leave.is_empty() {
                Vec::new()
            } else {
                host.removal().take_down(&pod.attachment, Some(record))
            };
            dataplane::Error::several(down)?;
            return Ok(Vec::new());
        }
        let pairs = Pairs { node: &host.net, registry: &host.registry, attachment: &pod.attachment };
        let Repaired { joined, pair, .. } = pairs.restore(record)?;
        let Some(joining) = &self.joining else { return Ok(Vec::new()) };
        let pair = pair.ok_or_else(|| Error::NoNetns(pod.netns.path.display().to_string()))?;
        for (want, endpoint) in plan.new.iter().zip(&mut endpoints) {
            let member = joined.vips.iter().find(|member| member.key == want.vip);
            let known = member.map(|member| Known::of(&member.vip));
            let known = known.ok_or_else(|| Error::Renumbered(want.vip.to_string()))?;
            joining.finish(&want.vip, &known, endpoint, pair)?;
        }
        self.joined(plan)
    }

    fn insert_pending(&self, joining: &Joining<'_>, new: &[Want], places: &[u8]) -> Result<Vec<Endpoint>, Error> {
        let endpoints = joining.endpoints(new, places.iter().copied())?;
        joining.insert_pending(new, &endpoints)?;
        self.prepare_ipv6(new)?;
        let all: Vec<VipKey> = self.record.keys().chain(new.iter().map(|want| want.vip.clone())).collect();
        joining.programs(&all)?;
        Ok(endpoints)
    }

    fn prepare_ipv6(&self, new: &[Want]) -> Result<(), Error> {
        for want in new {
            let record = self.host.registry.vip_record(&want.vip)?;
            if record.is_some_and(|record| record.has_ipv6()) {
                return Ok(settings::configure_ipv6(&self.host.net)?);
            }
        }
        Ok(())
    }

    /// Updates the endpoints in VIPs that the pod is in already.
    fn update(&self, plan: &Plan) -> Result<(), Error> {
        let source = node_source_address(&self.host.net, self.pod.address, &plan.known)?;
        // The new ones have the first of the free places.
        let mut places = plan.places.iter().copied().skip(plan.new.len());
        for want in &plan.known {
            let Some(mut vip) = self.host.registry.vip_if_present(&want.vip)? else { continue };
            let Some(before) = vip.endpoint(&self.name)? else { continue };
            let mut endpoint = before.clone();
            let place = before.place.or_else(|| if want.udp_reply { places.next() } else { None });
            fill(&mut endpoint, want, source, place.unwrap_or_default());
            if endpoint != before {
                vip.write_endpoint(&self.name, &endpoint)?;
            }
            reconcile_vip(&self.host.net, vip, None)?;
        }
        Ok(())
    }

    fn joined(&self, plan: &Plan) -> Result<Vec<(VipKey, IpAddr, State)>, Error> {
        let mut joined = Vec::new();
        for Want { vip, .. } in plan.new.iter().chain(&plan.known) {
            let Some(record) = self.host.registry.vip_record(vip)? else { continue };
            let state = self.endpoint(vip)?.map(|endpoint| endpoint.state);
            joined.extend(state.map(|state| (vip.clone(), record.served_address(), state)));
        }
        Ok(joined)
    }
}
