//! Findings about the flow owner: whether it can be loaded, and whether what is loaded is this build's.

use std::path::Path;

use crate::ebpf::{self, Maps, Parts, Programs};
use crate::registry::Endpoint;
use crate::{dataplane, with_causes};

use super::lsm::Confined;
use super::scene::Scene;
use super::{Finding, advice, command, vips};

pub fn look(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let Some(dir) = scene.bpf_dir() else { return Ok(Vec::new()) };
    if let Err(error) = ebpf::check_available(&dir) {
        let why = "No pod can join a VIP; where pods have, their connections move when replicas come and go.";
        let cure = match &error {
            ebpf::Error::NotMounted(_) => command("mount -t bpf bpf /sys/fs/bpf"),
            ebpf::Error::UnsafeDir { .. } => {
                advice("Set \"bpfDir\" in viproute's entry of the conflist to a directory that only root can write to.")
            }
            error => match Confined::read().filter(|_| error.is_access_denied()) {
                Some(confined) => advice(confined.cure()),
                None => advice("Allow it, or do without: \"flowOwner\": \"off\" in viproute's entry of the conflist."),
            },
        };
        return Ok(vec![Finding::error(with_causes(&error), why, cure)]);
    }
    let is_used = scene.vips.iter().any(|vip| vip.record.flow_owner.as_deref() == Some(&dir));
    if !is_used || Programs::open(&dir, wanted(scene))?.is_some() {
        return Ok(too_many(scene, &dir)?.into_iter().collect());
    }
    if ebpf::other_versions(&dir)?.is_empty() {
        return Ok(vec![not_loaded(&dir)]);
    }
    let what = format!("the flow owner in {} is of another build than viproutectl", dir.display());
    let why = "viproutectl can't see what it does. The next ADD of the plugin replaces it by that plugin's.";
    Ok(vec![Finding::warning(what, why, scene.installed.again())])
}

/// The programs that replicas here have need of.
fn wanted(scene: &Scene<'_>) -> Parts {
    let has_ipv6_alone = |endpoint: &Endpoint| endpoint.backend.is_local() && endpoint.address().is_ipv6();
    let has_ipv6 = scene.vips.iter().any(|vip| vip.record.has_ipv6());
    Parts::ipv6(has_ipv6 || scene.endpoints().any(|(_, endpoint)| has_ipv6_alone(endpoint)))
}

/// VIPs with more replicas than are asked where the kernel has no BTF.
fn too_many(scene: &Scene<'_>, dir: &Path) -> dataplane::Result<Option<Finding>> {
    let Some(limit) = Maps::open(dir)?.map(|maps| maps.limit()).filter(|limit| *limit < ebpf::MEMBERS) else {
        return Ok(None);
    };
    let names: Vec<_> =
        scene.vips.iter().filter(|vip| vip.endpoints.len() > limit).map(|vip| vip.key.to_string()).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let what = format!(
        "the kernel has no BTF, so no more than {limit} replicas of a VIP are asked for a misplaced connection, and more have {}",
        vips(&names)
    );
    let why = "A connection of one that isn't asked breaks when replicas come and go.";
    let cure = advice(
        "Boot a kernel with CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux), or spread the replicas over nodes.",
    );
    Ok(Some(Finding::warning(what, why, cure)))
}

fn not_loaded(dir: &Path) -> Finding {
    let what = format!("the flow owner isn't loaded: {} has no programs", dir.display());
    let why = "Connections move when replicas come and go, and ports aren't guarded.";
    Finding::error(what, why, advice("The next ADD loads it: start any pod that names a VIP."))
}
