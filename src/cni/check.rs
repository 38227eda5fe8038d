//! CHECK compares every object of this attachment with the registry, and names the first that is missing or differs. It ignores
//! what other plugins made, and the VIP's other replicas: runtimes act on the answer (CRI-O fails the pod, Nomad replaces it),
//! and prevResult has interfaces under names of any kind.

use std::path::Path;

use crate::cni::protocol::{Call, Config};
use crate::dataplane::attachment::{ContainerVeth, HostVeth, wrong_mac};
use crate::dataplane::ids::POD_DEVICE;
use crate::dataplane::joined::Joined;
use crate::dataplane::plan::HaveNexthop;
use crate::dataplane::{compare, differs_for, settings};
use crate::ebpf::Programs;
use crate::membership::find;
use crate::model::AttachmentId;
use crate::net::nexthop::{self, Object};
use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::{AttachmentRecord, Endpoint, LockedAttachment, Registry, attachment_name};

use super::annotations;
use super::error::Error;
use super::report::Report;

/// Verifies the attachment: what membership has recorded of it, which people may have changed since the ADD.
pub fn run(call: &Call, config: &Config, report: &mut Report) -> Result<(), Error> {
    let (Some(attachment), Some(netns)) = (&call.attachment, &call.netns) else { return Ok(()) };
    let registry = Registry::new(&config.data_dir);
    let recorded = if registry.exists() { recorded(&registry, attachment, netns)? } else { None };
    let Some((attachment, locked)) = recorded else {
        let Some(wants) = annotations::read(call, config)? else { return Ok(()) }; // passed through at ADD
        report.is_ours(config, wants.into_iter().map(|want| want.vip));
        return failed(format!("no attachment {} is recorded", attachment_name(attachment)));
    };
    let attachment = &attachment;
    if locked.record.as_ref().is_ok_and(AttachmentRecord::is_idle) {
        return Ok(()); // it was passed through, or has left its VIPs by hand
    }
    report.is_ours(config, locked.record.iter().flat_map(AttachmentRecord::keys));
    let record = locked.record.as_ref().map_err(|e| Error::CheckFailed(e.to_string()))?;
    let net = NodeNet::open()?;
    let joined = check_registry(&registry, attachment, record)?;
    check_settings(joined.has_ipv6())?;
    let Some(first) = joined.vips.first() else { return Ok(()) };
    let source_checked = check_host_end(&net, &joined, &first.endpoint)?;
    let alive = Netns::open_if_alive(netns)?;
    let pod = alive.ok_or_else(|| Error::CheckFailed(format!("network namespace {} is gone", netns.display())))?;
    let pod = PodNet::open(pod)?;
    check_pod(&pod, &joined, source_checked)?;
    check_routes(&net, &registry, (attachment, record))
}

/// The first attachment of the pod that is recorded. Inode numbers are used again: one whose pod is gone is another pod's.
fn recorded(
    registry: &Registry,
    attachment: &AttachmentId,
    netns: &Path,
) -> Result<Option<(AttachmentId, LockedAttachment)>, Error> {
    let is_gone = |attachment: &AttachmentId, locked: &LockedAttachment| {
        attachment.is_by_netns() && locked.record.as_ref().is_ok_and(|record| !record.netns.is_still_there())
    };
    for attachment in find::attachments(registry, attachment, Some(netns))? {
        if let Some(locked) = registry.attachment(&attachment)?.filter(|locked| !is_gone(&attachment, locked)) {
            return Ok(Some((attachment, locked)));
        }
    }
    Ok(None)
}

fn failed<T>(finding: impl Into<String>) -> Result<T, Error> {
    Err(Error::CheckFailed(finding.into()))
}

fn check_settings(has_ipv6: bool) -> Result<(), Error> {
    settings::finding(has_ipv6)?.map_or(Ok(()), failed)
}

/// The records of the VIPs joined, and of this endpoint in each.
fn check_registry(registry: &Registry, attachment: &AttachmentId, record: &AttachmentRecord) -> Result<Joined, Error> {
    let name = attachment_name(attachment);
    for key in record.keys() {
        let gone = || Error::CheckFailed(format!("VIP {key} has no record of {name}"));
        let vip = registry.vip_if_present(&key)?.ok_or_else(gone)?;
        if let Some(damage) = vip.damage()?.first() {
            return failed(damage.to_string());
        }
        vip.endpoint(&name)?.ok_or_else(gone)?;
        if vip.record.is_none() {
            return failed(format!("VIP {key} has no record"));
        }
    }
    Ok(Joined::read(registry, attachment, record)?)
}

/// Says where the pod's sources are not checked. Where they are, a pod that checks them too is slower and nothing else: one of the
/// version before is so, until viprouted has been there.
fn check_host_end(net: &NodeNet, joined: &Joined, endpoint: &Endpoint) -> Result<Option<bool>, Error> {
    let names = &joined.names;
    let gateway = joined.gateway().unwrap_or_else(|| endpoint.address());
    let Some(end) = HostVeth::read(net, names, Some(gateway))? else {
        return failed(format!("link {} is missing", names.host));
    };
    if endpoint.ifindex != Some(end.link.index) {
        return failed(format!("link {} is another one than was made (index {})", names.host, end.link.index));
    }
    if let Some(finding) = wrong_mac(&names.host, end.link.mac, names.host_mac) {
        return failed(finding);
    }
    if let Some(fix) = end.fixes(names, gateway).first() {
        return failed(&fix.finding);
    }
    check_filters(&end, joined.flow_owner())?;
    let wanted = end.nexthop(gateway)?;
    match nexthop::get(net, wanted.id)? {
        Some(Object::Single(found)) if compare(&found, &wanted) == HaveNexthop::Right => {
            Ok(end.checks_sources(joined.flow_owner())?.filter(|checked| !checked))
        }
        Some(_) => failed(format!("nexthop {} differs from the registry", wanted.id)),
        None => failed(format!("nexthop {} is missing", wanted.id)),
    }
}

fn check_filters(end: &HostVeth, flow_owner: Option<&Path>) -> Result<(), Error> {
    let Some(dir) = flow_owner else { return Ok(()) };
    // Programs of an older build stay on host veths until the first ADD of this one.
    let Some(programs) = Programs::open(dir, end.parts())? else {
        return failed("the flow owner isn't loaded");
    };
    match end.filter_fixes(&programs)?.last() {
        Some(fix) => failed(&fix.finding),
        None => Ok(()),
    }
}

fn check_pod(pod: &PodNet, joined: &Joined, source_checked: Option<bool>) -> Result<(), Error> {
    let Some(end) = ContainerVeth::read(pod, joined.ifname(), joined.families())? else {
        return failed(format!("link {POD_DEVICE} or {} is missing in the pod", joined.ifname()));
    };
    if let Some(finding) = wrong_mac(POD_DEVICE, end.mac(), joined.names.pod_mac) {
        return failed(finding);
    }
    let want = joined.pod_want().source_checked(source_checked).calls_leave(source_checked);
    let mut fixes = end.fixes(&want);
    let open = |dir| Programs::open(dir, want.parts());
    if let Some(programs) = joined.flow_owner().map(open).transpose()?.flatten() {
        fixes.extend(end.filter_fixes(&want, &programs)?.pop());
    }
    match fixes.first() {
        Some(fix) => failed(format!("in the pod: {}", fix.finding)),
        None => Ok(()),
    }
}

fn check_routes(net: &NodeNet, registry: &Registry, joined: (&AttachmentId, &AttachmentRecord)) -> Result<(), Error> {
    let (attachment, record) = joined;
    for key in record.keys() {
        let Some(mut vip) = registry.vip_if_present(&key)? else { return failed(format!("VIP {key} has no record")) };
        if let Some(finding) = differs_for(net, &mut vip, &attachment_name(attachment))?.first() {
            return failed(finding);
        }
    }
    Ok(())
}
