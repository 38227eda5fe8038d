//! Findings about the kernel's objects, on the node and in the pods: what the registry says must be there, and isn't.

use crate::bpf::Programs;
use crate::cni::env::Attachment;
use crate::net::link::Settings;
use crate::net::{Netns, PodNet};
use crate::registry::{AttachmentRecord, State, attachment_name};
use crate::vip::ids::POD_DEVICE;
use crate::vip::joined::{Joined, Member};
use crate::vip::pair::{HostEnd, PodEnd, PodWant};
use crate::vip::{self, differs};

use super::node::{forwards, of_device};
use super::scene::{Scene, Vip};
use super::{Finding, advice, command, quoted_text, restart, sysctl};

const HEALS: &str = "viprouted puts it right within a second, if it runs.";

pub fn look(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if !scene.vips.is_empty() {
        for attachment in scene.places.registry.attachments()? {
            // A damaged record, and a pod that is gone, are told of as such.
            if let Ok(Some(record)) = scene.places.registry.attachment_record(&attachment)
                && record.netns.is_still_there()
            {
                findings.extend(replica(scene, &attachment, &record)?);
            }
        }
    }
    for vip in &scene.vips {
        findings.extend(tables(scene, vip)?);
        findings.extend(nobody(vip));
    }
    Ok(findings)
}

fn tables(scene: &Scene<'_>, vip: &Vip) -> vip::Result<Option<Finding>> {
    let Some(mut locked) = scene.places.registry.vip_if_present(&vip.key)? else { return Ok(None) };
    let steps = differs(&scene.net, &mut locked)?;
    let Some(first) = steps.first() else { return Ok(None) };
    let more = if steps.len() > 1 { format!(", and {} more", steps.len() - 1) } else { String::new() };
    let what = format!("{} is not in the kernel as the registry has it: {first}{more}", vip.key);
    Ok(Some(Finding::error(what, format!("Its connections fail, or go where they shouldn't. {HEALS}"), restart())))
}

fn replica(scene: &Scene<'_>, attachment: &Attachment, record: &AttachmentRecord) -> vip::Result<Vec<Finding>> {
    let name = attachment_name(attachment);
    // A damaged record is told of as such.
    let Ok(mut joined) = Joined::read(&scene.places.registry, attachment, record) else { return Ok(Vec::new()) };
    // One without its pair is an ADD's that is under way.
    joined.vips.retain(|member| member.endpoint.ifindex.is_some());
    let Some(Member { vip, endpoint, .. }) = joined.vips.first() else { return Ok(Vec::new()) };
    let names = &joined.names;
    let Some(end) = HostEnd::read(&scene.net, names, Some(endpoint.address))? else {
        let what = format!("link {} of {} is missing", names.host, endpoint.pod_name(&name));
        let why = "This replica can't be reached, nor put right.";
        let cure = advice("Delete the pod; what its runtime makes in its place joins anew.");
        return Ok(vec![Finding::error(what, why, cure)]);
    };
    let mut findings = settings(&names.host, end.link.settings, forwards()?);
    // Settings are among the fixes: they are told of with a cure of their own.
    let fixes = end.fixes(names, endpoint.address).into_iter().map(|fix| fix.finding);
    let mut wrong: Vec<String> = fixes.filter(|finding| !finding.contains("rp_filter")).collect();
    if let Some(programs) = vip.flow_owner.as_deref().map(Programs::open).transpose()?.flatten() {
        wrong.extend(end.filter_fixes(&programs)?.pop().map(|fix| fix.finding));
    }
    wrong.extend(in_pod(record, &joined.pod_want())?);
    let of = endpoint.pod_name(&name);
    let finding = |wrong: String| {
        Finding::error(format!("{of}: {wrong}"), format!("This replica is cut off. {HEALS}"), restart())
    };
    findings.extend(wrong.into_iter().map(finding));
    Ok(findings)
}

/// What is wrong in the pod.
fn in_pod(record: &AttachmentRecord, want: &PodWant<'_>) -> vip::Result<Vec<String>> {
    let Some(netns) = Netns::open_if_alive(&record.netns.path)? else { return Ok(Vec::new()) };
    let end = PodEnd::read(&PodNet::open(netns)?, want.ifname)?;
    let Some(end) = end.filter(|end| end.mac() == Some(want.names.pod_mac)) else {
        return Ok(vec![format!("in the pod: link {POD_DEVICE} or {} is missing, or another one", want.ifname)]);
    };
    Ok(end.fixes(want).into_iter().map(|fix| format!("in the pod: {}", fix.finding)).collect())
}

/// A replica that isn't in its VIP's route, as a draining one, is answered for by loose checks only.
fn settings(device: &str, settings: Settings, node_forwards: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.rp_filter != 2 {
        let what = format!("rp_filter is {} on {device}, not 2", settings.rp_filter);
        let why = "The answers of a draining replica are dropped.";
        findings.push(Finding::error(what, why, sysctl(&of_device(device, "rp_filter"), 2)));
    }
    if settings.forwarding != 1 && node_forwards {
        let why = "The replica's answers go nowhere.";
        let what = format!("forwarding is off on {device}");
        findings.push(Finding::error(what, why, sysctl(&of_device(device, "forwarding"), 1)));
    }
    findings
}

/// A VIP none of whose replicas takes connections, because somebody has taken them out.
fn nobody(vip: &Vip) -> Option<Finding> {
    let (attachment, endpoint) = vip.endpoints.iter().find(|(_, endpoint)| endpoint.drained)?;
    if vip.endpoints.iter().any(|(_, endpoint)| endpoint.state == State::Ready) {
        return None;
    }
    let pod = endpoint.pod_name(attachment);
    let what = format!("no replica of {} gets new connections, and {pod} was taken out by hand", vip.key);
    let why = "Requests to it are refused on this node.";
    Some(Finding::warning(what, why, command(format!("viproutectl undrain {}", quoted_text(&pod)))))
}
