//! Findings about the registry's files and the disks they are on.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::cni::env::Attachment;
use crate::registry::{Error, attachment_name};
use crate::{vip, with_causes};

use super::scene::Scene;
use super::{Finding, advice, command, quoted, quoted_text};

/// A record is a few hundred bytes; so much is soon used up.
const FULL: u64 = 1 << 20;

pub fn look(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let dir = scene.places.registry.dir();
    let mut findings: Vec<Finding> = disk(dir).into_iter().collect();
    findings.extend(scene.good_config().and_then(|config| disk(&config.state_dir)));
    if !dir.exists() {
        return Ok(findings); // no pod has joined so far
    }
    findings.extend(access(dir));
    if scene.places.registry.is_of_this_boot()? {
        findings.extend(vips(scene)?);
        findings.extend(attachments(scene)?);
    }
    Ok(findings)
}

/// Who can write there decides where packets go, and reads who talks to whom.
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

fn vips(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for key in scene.places.registry.vips()? {
        let Some(locked) = scene.places.registry.vip_if_present(&key)? else { continue };
        findings.extend(locked.damage()?.iter().map(|error| unusable(scene, error)));
    }
    Ok(findings)
}

fn attachments(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for attachment in scene.places.registry.attachments()? {
        match scene.places.registry.attachment_record(&attachment) {
            Ok(Some(record)) if !record.netns.is_still_there() => {
                let what = format!("the pod of {} is gone: its network namespace is", attachment_name(&attachment));
                let why = "The runtime has not told the plugin: it still counts as a replica until a DEL or GC.";
                findings.push(Finding::warning(what, why, removal(scene, &attachment, &record.network)));
            }
            Ok(_) => {}
            Err(error) => findings.push(unusable(scene, &error)),
        }
    }
    Ok(findings)
}

/// The call that the runtime has left out.
fn removal(scene: &Scene<'_>, attachment: &Attachment, network: &str) -> super::Cure {
    let plugin = scene.plugin().unwrap_or_else(|| "/opt/cni/bin/viproute".into());
    let Attachment { container_id, ifname } = attachment;
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
