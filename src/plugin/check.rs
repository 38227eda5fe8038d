//! CHECK: is the pod attached as it should be? Every object is compared with what the registry says; the first that is
//! missing is named.

use std::path::Path;

use crate::bpf::Programs;
use crate::cni::env::Attachment;
use crate::cni::{Call, Config, PrevResult};
use crate::net::nexthop::Object;
use crate::net::{Netns, NodeNet, PodNet, link, nexthop};
use crate::registry::{AttachmentRecord, Endpoint, Registry, attachment_name};
use crate::vip::ids::POD_DEVICE;
use crate::vip::joined::Joined;
use crate::vip::pair::{HostEnd, PodEnd, wrong_mac};
use crate::vip::{differs, settings};

use super::error::Error;
use super::membership;
use super::report::Report;

/// Verifies the attachment.
pub fn run(call: &Call, config: &Config, report: &mut Report) -> Result<(), Error> {
    let (Some(attachment), Some(netns)) = (&call.attachment, &call.netns) else { return Ok(()) };
    let registry = Registry::new(&config.data_dir);
    let recorded = if registry.exists() { registry.attachment(attachment)? } else { None };
    let Some(locked) = recorded else {
        let Some(membership) = membership::read(call, config)? else { return Ok(()) }; // passed through at ADD
        report.is_ours(config, membership.vips);
        return failed(format!("no attachment {} is recorded", attachment_name(attachment)));
    };
    report.is_ours(config, locked.record.iter().flat_map(AttachmentRecord::keys));
    let record = locked.record.as_ref().map_err(|e| Error::CheckFailed(e.to_string()))?;
    let net = NodeNet::open()?;
    check_settings()?;
    let joined = check_registry(&registry, attachment, record)?;
    let Some(first) = joined.vips.first() else { return Ok(()) };
    check_host_end(&net, &joined, &first.endpoint)?;
    let alive = Netns::open_if_alive(netns)?;
    let pod = alive.ok_or_else(|| Error::CheckFailed(format!("network namespace {} is gone", netns.display())))?;
    let pod = PodNet::open(pod)?;
    check_pod(&pod, &joined)?;
    check_prev_result(&net, &pod, config)?;
    check_routes(&net, &registry, record)
}

fn failed<T>(finding: impl Into<String>) -> Result<T, Error> {
    Err(Error::CheckFailed(finding.into()))
}

fn check_settings() -> Result<(), Error> {
    settings::finding()?.map_or(Ok(()), failed)
}

/// The records of the VIPs joined, and of this endpoint in each.
fn check_registry(registry: &Registry, attachment: &Attachment, record: &AttachmentRecord) -> Result<Joined, Error> {
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

fn check_host_end(net: &NodeNet, joined: &Joined, endpoint: &Endpoint) -> Result<(), Error> {
    let names = &joined.names;
    let Some(end) = HostEnd::read(net, names, Some(endpoint.address))? else {
        return failed(format!("link {} is missing", names.host));
    };
    if endpoint.ifindex != Some(end.link.index) {
        return failed(format!("link {} is another one than was made (index {})", names.host, end.link.index));
    }
    if let Some(finding) = wrong_mac(&names.host, end.link.mac, names.host_mac) {
        return failed(finding);
    }
    if let Some(fix) = end.fixes(names, endpoint.address).first() {
        return failed(&fix.finding);
    }
    check_filters(&end, joined.flow_owner())?;
    let wanted = end.nexthop(endpoint.address)?;
    match nexthop::get(net, wanted.id)? {
        Some(Object::Single(found)) if wanted == found => Ok(()),
        Some(_) => failed(format!("nexthop {} is not as it should be", wanted.id)),
        None => failed(format!("nexthop {} is missing", wanted.id)),
    }
}

fn check_filters(end: &HostEnd, flow_owner: Option<&Path>) -> Result<(), Error> {
    let Some(dir) = flow_owner else { return Ok(()) };
    // Programs of an older build stand on host ends until the first ADD of this one.
    let Some(programs) = Programs::open(dir)? else { return failed("the flow owner isn't loaded") };
    match end.filter_fixes(&programs)?.last() {
        Some(fix) => failed(&fix.finding),
        None => Ok(()),
    }
}

fn check_pod(pod: &PodNet, joined: &Joined) -> Result<(), Error> {
    let Some(end) = PodEnd::read(pod, joined.ifname())? else {
        return failed(format!("link {POD_DEVICE} or {} is missing in the pod", joined.ifname()));
    };
    if let Some(finding) = wrong_mac(POD_DEVICE, end.mac(), joined.names.pod_mac) {
        return failed(finding);
    }
    match end.fixes(&joined.pod_want()).first() {
        Some(fix) => failed(format!("in the pod: {}", fix.finding)),
        None => Ok(()),
    }
}

/// The devices the plugins before us made must still be there.
fn check_prev_result(net: &NodeNet, pod: &PodNet, config: &Config) -> Result<(), Error> {
    let Some(raw) = &config.prev_result else { return Ok(()) };
    for interface in PrevResult::parse(raw)?.interfaces() {
        let (found, place) = if interface.sandbox.is_empty() {
            (link::by_name(net, &interface.name)?, "on the node")
        } else {
            (link::by_name(pod, &interface.name)?, "in the pod")
        };
        if found.is_none() {
            return failed(format!("link {} of prevResult is missing {place}", interface.name));
        }
    }
    Ok(())
}

fn check_routes(net: &NodeNet, registry: &Registry, record: &AttachmentRecord) -> Result<(), Error> {
    for key in record.keys() {
        let Some(mut vip) = registry.vip_if_present(&key)? else { return failed(format!("VIP {key} has no record")) };
        if let Some(finding) = differs(net, &mut vip)?.first() {
            return failed(finding);
        }
    }
    Ok(())
}
