//! Findings about the flow owner: whether it can be loaded, and whether what is loaded is this build's.

use std::path::Path;

use crate::bpf::{self, Programs};
use crate::{vip, with_causes};

use super::scene::Scene;
use super::{Finding, advice, command};

pub fn look(scene: &Scene<'_>) -> vip::Result<Vec<Finding>> {
    let Some(dir) = scene.bpf_dir() else { return Ok(Vec::new()) };
    if let Err(error) = bpf::check_available(&dir) {
        let why = "No pod can join a VIP; where pods have, their connections move when replicas come and go.";
        let cure = match &error {
            bpf::Error::NotMounted(_) => command("mount -t bpf bpf /sys/fs/bpf"),
            _ => advice("Allow it, or do without: \"flowOwner\": \"off\" in viproute's entry of the conflist."),
        };
        return Ok(vec![Finding::error(with_causes(&error), why, cure)]);
    }
    let is_used = scene.vips.iter().any(|vip| vip.record.flow_owner.as_deref() == Some(&dir));
    if !is_used || Programs::open(&dir)?.is_some() {
        return Ok(Vec::new());
    }
    if !dir.exists() || !bpf::has_anothers(&dir)? {
        return Ok(vec![not_loaded(&dir)]);
    }
    let what = format!("the flow owner in {} is of another build than viproutectl", dir.display());
    let why = "viproutectl can't see what it does. The next ADD of the plugin replaces it by that plugin's.";
    Ok(vec![Finding::warning(what, why, command("./install.sh install"))])
}

fn not_loaded(dir: &Path) -> Finding {
    let what = format!("the flow owner isn't loaded: {} has no programs", dir.display());
    let why = "Connections move when replicas come and go, and ports aren't guarded.";
    Finding::error(what, why, advice("The next ADD loads it: start any pod that names a VIP."))
}
