//! Findings about the registry's files and the disks they are on.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::dataplane::ids;
use crate::model::AttachmentId;
use crate::registry::record::Unknown;
use crate::registry::{Error, attachment_name};
use crate::{dataplane, with_causes};

use super::scene::Scene;
use super::{Finding, advice, command, quoted, quoted_text};

/// A record is a few hundred bytes; so much is soon used up.
const FULL: u64 = 1 << 20;

pub fn look(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let dir = scene.places.registry.dir();
    let mut findings: Vec<Finding> = disk(dir).into_iter().collect();
    findings.extend(scene.good_config().and_then(|config| disk(&config.state_dir)));
    if !dir.exists() {
        return Ok(findings); // no pod has joined so far
    }
    findings.extend(access(dir));
    findings.extend(boot(scene)?);
    if scene.places.registry.is_of_this_boot()? {
        findings.extend(vips(scene)?);
        findings.extend(attachments(scene)?);
    }
    Ok(findings)
}

/// In a system container a service may see another boot id than a runtime's plugin does.
fn boot(scene: &Scene<'_>) -> dataplane::Result<Option<Finding>> {
    let registry = &scene.places.registry;
    let Some((recorded, here)) = registry.other_boot()?.filter(|_| registry.is_of_this_boot().unwrap_or(false)) else {
        return Ok(None);
    };
    let what = format!(
        "the registry is of boot {recorded}, and the boot seen here is {here}, but pods recorded in it are alive"
    );
    let why =
        "While none of them is alive, each program that sees another boot id discards what the others have recorded.";
    let cure = "Let viprouted and the runtime see the same /proc/sys/kernel/random/boot_id.";
    Ok(Some(Finding::warning(what, why, advice(cure))))
}

/// A user who can write there decides where packets go, and can read which hosts talk.
fn access(dir: &Path) -> Option<Finding> {
    let metadata = std::fs::metadata(dir).ok()?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    // Nothing for group and others.
    if owner == 0 && mode.trailing_zeros() >= 6 {
        return None;
    }
    let what = format!("{} belongs to user {owner} and has mode {mode:04o}, not to root with 0700", dir.display());
    let why = "Others than root can see the registry, or change where connections go.";
    let path = quoted(dir);
    Some(Finding::warning(what, why, command(format!("chown root: {path} && chmod 0700 {path}"))))
}

/// The filesystem of a directory, which may not exist yet.
fn disk(dir: &Path) -> Option<Finding> {
    let existing = dir.ancestors().find(|ancestor| ancestor.exists())?;
    let space = statvfs(existing).ok()?;
    let free = space.blocks_available() as u64 * space.fragment_size() as u64;
    // Some filesystems count no inodes.
    let no_inodes = space.files() != 0 && space.files_available() == 0;
    let lacks = match (free < FULL, no_inodes) {
        (true, _) => format!("{} KiB are free", free >> 10),
        (_, true) => "no inode is free".to_owned(),
        _ => return None,
    };
    let what = format!("the disk of {} is full: {lacks}", dir.display());
    let why = "No pod can join or leave a VIP, and leases are forgotten.";
    Some(Finding::error(
        what,
        why,
        advice(format!("Make room; `df -h {0}; df -i {0}` shows how much there is.", quoted(existing))),
    ))
}

fn vips(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for key in scene.places.registry.vips()? {
        let Some(locked) = scene.places.registry.vip_if_present(&key)? else { continue };
        findings.extend(locked.damage()?.iter().map(|error| unusable(scene, error)));
        for (name, endpoint) in scene.places.registry.endpoints(&key)? {
            // A damaged one is reported above.
            let Ok(endpoint) = endpoint else { continue };
            let of = format!("{key}, {}", endpoint.pod_name(&name));
            findings.extend(endpoint.unknown().iter().map(|unknown| later(&of, unknown)));
        }
    }
    findings.extend(shared_groups(scene));
    Ok(findings)
}

/// Two VIPs with one group: a build before this one could hand a slot out twice.
fn shared_groups(scene: &Scene<'_>) -> Vec<Finding> {
    let mut by_slot: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for vip in &scene.vips {
        by_slot.entry(vip.record.slot).or_default().push(vip.key.to_string());
    }
    let finding = |(slot, keys): (u32, Vec<String>)| {
        let what = format!("{} are recorded with the same nexthop group ({})", keys.join(" and "), ids::group(slot));
        let why = "All but one of them are not reachable on this node.";
        let cure =
            format!("Delete the pods of all but {}; what their runtime makes in their place gets another.", keys[0]);
        Finding::error(what, why, advice(cure))
    };
    by_slot.into_iter().filter(|(_, keys)| keys.len() > 1).map(finding).collect()
}

fn attachments(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for attachment in scene.places.registry.attachments()? {
        match scene.places.registry.attachment_record(&attachment) {
            Ok(Some(record)) if !record.is_idle() && !record.netns.is_still_there() => {
                let what = format!("the pod of {} is gone: its network namespace is", attachment_name(&attachment));
                let why = "The runtime has not told the plugin: it still counts as a replica until a DEL or GC.";
                findings.push(Finding::warning(what, why, removal(scene, &attachment, &record.network)));
            }
            Ok(Some(record)) => {
                let of = attachment_name(&attachment);
                findings.extend(record.unknown().iter().map(|unknown| later(&of, unknown)));
            }
            Ok(None) => {}
            Err(error) => findings.push(unusable(scene, &error)),
        }
    }
    Ok(findings)
}

/// What isn't understood is recorded and left out: a port isn't served, a check isn't made, a VIP isn't left.
fn later(of: &str, Unknown { what, text }: &Unknown) -> Finding {
    let what = format!("{of}: want a {what} that this version knows, found {text:?}");
    let why = "A later version of viproute wrote it. This one leaves it out: what else is recorded is served.";
    let cure =
        advice("Upgrade viproute on this node to the version that the pod was attached with, or delete the pod.");
    Finding::warning(what, why, cure)
}

/// The DEL call that the runtime has not made.
fn removal(scene: &Scene<'_>, attachment: &AttachmentId, network: &str) -> super::Cure {
    let plugin = scene.plugin().unwrap_or_else(|| "/opt/cni/bin/viproute".into());
    let AttachmentId { container_id, ifname } = attachment;
    let mut conf = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": network,
        "type": "viproute",
        "dataDir": scene.places.registry.dir(),
        "allocator": scene.places.allocator,
    });
    if let Some(dir) = scene.bpf_dir() {
        conf["bpfDir"] = serde_json::json!(dir);
    }
    let environment = format!(
        "CNI_COMMAND=DEL CNI_CONTAINERID={} CNI_IFNAME={} CNI_PATH={}",
        quoted_text(container_id),
        quoted_text(ifname),
        quoted(plugin.parent().unwrap_or(Path::new("/")))
    );
    command(format!("echo {} | {environment} {}", quoted_text(&conf.to_string()), quoted(&plugin)))
}

fn unusable(scene: &Scene<'_>, error: &Error) -> Finding {
    let what = with_causes(error);
    match error {
        Error::Newer { .. } => {
            let why = "The replica it is about is left out.";
            Finding::error(what, why, advice("Install the version that wrote it."))
        }
        Error::Torn { path, .. } | Error::Foreign { path } if is_endpoint(path) => {
            let why = "The replica it is about is left out.";
            let pod = path.file_stem().and_then(|stem| crate::registry::attachment_of(&stem.to_string_lossy()));
            let cure = pod.map(|attachment| {
                let record = scene.places.registry.attachment_record(&attachment).ok().flatten();
                removal(scene, &attachment, &record.map_or_else(|| "pods".to_owned(), |record| record.network))
            });
            Finding::error(what, why, cure.unwrap_or_else(|| command(format!("rm {}", quoted(path)))))
        }
        _ => {
            let why = "What it is about can't be looked after.";
            Finding::error(what, why, advice("Delete the pods it is about; the DEL of the last one removes it."))
        }
    }
}

fn is_endpoint(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == "endpoints")
}
