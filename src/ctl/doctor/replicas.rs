//! Findings about the kernel's objects, on the node and in the pods: what the registry says must be there, and isn't.

use std::path::Path;

use crate::dataplane::attachment::{ContainerVeth, Families, HostVeth, PodWant};
use crate::dataplane::ids::POD_DEVICE;
use crate::dataplane::joined::{Joined, Member};
use crate::dataplane::{self, differs};
use crate::ebpf::Programs;
use crate::model::AttachmentId;
use crate::net::link::Settings;
use crate::net::{Netns, PodNet};
use crate::registry::{AttachmentRecord, State, attachment_name};

use super::node::{forwards, of_device};
use super::scene::{Scene, Vip};
use super::{Finding, advice, command, quoted_text, restart, sysctl, vips};

const HEALS: &str = "viprouted puts it right within a second, if it runs.";

pub fn look(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if !scene.vips.is_empty() {
        for attachment in scene.places.registry.attachments()? {
            // A damaged record and a missing pod have findings of their own.
            if let Ok(Some(record)) = scene.places.registry.attachment_record(&attachment)
                && record.netns.is_still_there()
            {
                findings.extend(replica(scene, &attachment, &record)?);
            }
        }
    }
    findings.extend(tables(scene)?);
    findings.extend(scene.vips.iter().filter_map(all_drained));
    Ok(findings)
}

/// One finding, however many VIPs there are: what one lacks the others lack for the same reason as a rule.
fn tables(scene: &Scene<'_>) -> dataplane::Result<Option<Finding>> {
    // Two with one group are the registry's finding.
    let shares_group =
        |vip: &Vip| scene.vips.iter().any(|other| other.key != vip.key && other.record.slot == vip.record.slot);
    let (mut names, mut steps) = (Vec::new(), Vec::new());
    for vip in scene.vips.iter().filter(|vip| !shares_group(vip)) {
        let Some(mut locked) = scene.places.registry.vip_if_present(&vip.key)? else { continue };
        let differing = differs(&scene.net, &mut locked)?;
        if !differing.is_empty() {
            names.push(vip.key.to_string());
            steps.extend(differing);
        }
    }
    let Some(first) = steps.first() else { return Ok(None) };
    let more = if steps.len() > 1 { format!(", and {} more", steps.len() - 1) } else { String::new() };
    let verb = if names.len() == 1 {
        "is not in the kernel as the registry has it"
    } else {
        "are not in the kernel as the registry has them"
    };
    let what = format!("{} {verb}: {first}{more}", vips(&names));
    Ok(Some(Finding::error(what, format!("Their connections fail, or go where they shouldn't. {HEALS}"), restart())))
}

fn replica(scene: &Scene<'_>, attachment: &AttachmentId, record: &AttachmentRecord) -> dataplane::Result<Vec<Finding>> {
    let name = attachment_name(attachment);
    // A damaged record has a finding of its own.
    let Ok(mut joined) = Joined::read(&scene.places.registry, attachment, record) else { return Ok(Vec::new()) };
    // One without its pair is an ADD's that is under way.
    joined.vips.retain(|member| member.endpoint.ifindex.is_some());
    let Some(Member { vip, endpoint, .. }) = joined.vips.first() else { return Ok(Vec::new()) };
    let names = &joined.names;
    let gateway = joined.gateway().unwrap_or_else(|| endpoint.address());
    let Some(end) = HostVeth::read(&scene.net, names, Some(gateway))? else {
        let what = format!("link {} of {} is missing", names.host, endpoint.pod_name(&name));
        let why = "This replica can't be reached, nor repaired.";
        let cure = advice("Delete the pod; what its runtime makes in its place joins anew.");
        return Ok(vec![Finding::error(what, why, cure)]);
    };
    let mut findings = settings(&names.host, end.link.settings, forwards()?);
    // Settings are among the fixes: their findings have cures of their own.
    let fixes = end.fixes(names, gateway).into_iter().map(|fix| fix.finding);
    let mut wrong: Vec<String> = fixes.filter(|finding| !finding.contains("rp_filter")).collect();
    let open = |dir: &Path| Programs::open(dir, end.parts());
    if let Some(programs) = vip.flow_owner.as_deref().map(open).transpose()?.flatten() {
        wrong.extend(end.filter_fixes(&programs)?.pop().map(|fix| fix.finding));
    }
    let checked = end.checks_sources(vip.flow_owner.as_deref())?;
    wrong.extend(in_pod(
        record,
        &joined.pod_want().source_checked(checked).calls_leave(checked.filter(|is| !is)),
        joined.flow_owner(),
    )?);
    let of = endpoint.pod_name(&name);
    let finding = |wrong: String| {
        Finding::error(format!("{of}: {wrong}"), format!("This replica is cut off. {HEALS}"), restart())
    };
    findings.extend(wrong.into_iter().map(finding));
    Ok(findings)
}

/// What is wrong in the pod.
fn in_pod(record: &AttachmentRecord, want: &PodWant<'_>, flow_owner: Option<&Path>) -> dataplane::Result<Vec<String>> {
    let Some(netns) = Netns::open_if_alive(&record.netns.path)? else { return Ok(Vec::new()) };
    let end = ContainerVeth::read(&PodNet::open(netns)?, want.ifname, Families::Both)?;
    let Some(end) = end.filter(|end| end.mac() == Some(want.names.pod_mac)) else {
        return Ok(vec![format!("in the pod: link {POD_DEVICE} or {} is missing, or another one", want.ifname)]);
    };
    let mut fixes = end.fixes(want);
    let open = |dir| Programs::open(dir, want.parts());
    if let Some(programs) = flow_owner.map(open).transpose()?.flatten() {
        fixes.extend(end.filter_fixes(want, &programs)?.pop());
    }
    Ok(fixes.into_iter().map(|fix| format!("in the pod: {}", fix.finding)).collect())
}

/// Only a loose reverse-path check passes the answers of a replica that isn't in its VIP's route, as a draining one.
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

/// A VIP without a ready replica, of whose replicas one at least was drained by hand.
fn all_drained(vip: &Vip) -> Option<Finding> {
    let (attachment, endpoint) = vip.endpoints.iter().find(|(_, endpoint)| endpoint.drained)?;
    if vip.endpoints.iter().any(|(_, endpoint)| endpoint.state == State::Ready) {
        return None;
    }
    let pod = endpoint.pod_name(attachment);
    let what = format!("no replica of {} gets new connections, and {pod} was taken out by hand", vip.key);
    let why = "Requests to it are refused on this node.";
    Some(Finding::warning(what, why, command(format!("viproutectl undrain {}", quoted_text(&pod)))))
}
