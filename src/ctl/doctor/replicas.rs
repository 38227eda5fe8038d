//! Findings about the kernel's objects: what the registry says must be there, and isn't.

use std::collections::BTreeSet;

use crate::bpf::Programs;
use crate::ctl::pod_name;
use crate::net::link::Settings;
use crate::registry::{LockedVip, State, attachment_of};
use crate::vip::ids::PairNames;
use crate::vip::pair::HostEnd;
use crate::vip::{self, differs};

use super::node::{forwards, of_device};
use super::scene::{Scene, Vip};
use super::{Finding, advice, command, quoted_text, restart, sysctl};

pub fn look(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for vip in &scene.vips {
        for (attachment, endpoint) in &vip.endpoints {
            // One without its pair is an ADD's that is under way. Several VIPs of a pod have one pair.
            if endpoint.ifindex.is_some() && seen.insert(attachment) {
                findings.extend(host_end(scene, vip, attachment)?);
            }
        }
        if let Some(locked) = scene.places.registry.vip_if_present(&vip.key)? {
            findings.extend(tables(scene, vip, locked)?);
        }
        findings.extend(nobody(vip));
    }
    Ok(findings)
}

const HEALS: &str = "viprouted puts it right within a second, if it runs.";

fn tables(scene: &Scene<'_>, vip: &Vip, mut locked: LockedVip) -> vip::Result<Option<Finding>> {
    let steps = differs(&scene.net, &mut locked)?;
    let Some(first) = steps.first() else { return Ok(None) };
    let more = if steps.len() > 1 { format!(", and {} more", steps.len() - 1) } else { String::new() };
    let what = format!("{} is not in the kernel as the registry has it: {first}{more}", vip.key);
    Ok(Some(Finding::error(what, format!("Its connections fail, or go where they shouldn't. {HEALS}"), restart())))
}

fn host_end(scene: &Scene<'_>, vip: &Vip, attachment: &str) -> vip::Result<Vec<Finding>> {
    let Some(names) = attachment_of(attachment).map(|attachment| PairNames::of(&attachment)) else {
        return Ok(Vec::new());
    };
    let Some((_, endpoint)) = vip.endpoints.iter().find(|(name, _)| name == attachment) else { return Ok(Vec::new()) };
    let Some(end) = HostEnd::read(&scene.net, &names)? else {
        // A pod that is gone takes its pair along, and is told of as such.
        let gone = !endpoint.netns.exists();
        let what = format!("link {} of {attachment} is missing", names.host);
        let why = "This replica can't be reached, nor repaired: its pod has to be made anew.";
        let cure = advice("Delete the pod; what its runtime makes in its place joins anew.");
        return Ok(if gone { Vec::new() } else { vec![Finding::error(what, why, cure)] });
    };
    let mut findings = settings(&names.host, end.link.settings, forwards()?);
    let mut fixes = end.fixes(&names, endpoint.address);
    if let Some(programs) = vip.record.flow_owner.as_deref().map(Programs::open).transpose()?.flatten() {
        fixes.extend(end.filter_fixes(&programs)?);
    }
    // Settings are told of above, with a cure of their own.
    let others = fixes.into_iter().map(|fix| fix.finding).filter(|finding| !finding.contains("rp_filter"));
    findings.extend(others.map(|finding| Finding::error(finding, format!("A replica is cut off. {HEALS}"), restart())));
    Ok(findings)
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
    let pod = pod_name(attachment, endpoint);
    let what = format!("no replica of {} gets new connections, and {} was taken out by hand", vip.key, pod);
    let why = "Requests to it are refused on this node.";
    Some(Finding::warning(what, why, command(format!("viproutectl undrain {}", quoted_text(&pod)))))
}
