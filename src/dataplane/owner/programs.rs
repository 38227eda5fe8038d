//! The flow owner's programs: loaded once, put on every host veth.

use std::path::Path;

use crate::dataplane::attachment::{self, HostVeth};
use crate::dataplane::ids::VethNames;
use crate::dataplane::{Result, Tables, reconcile_vip};
use crate::ebpf::{self, PinDir, Programs};
use crate::net::NodeNet;
use crate::registry::{Registry, attachment_name};

/// Makes sure that this build's programs are loaded and attached to every host veth. The first call of a boot loads them;
/// the first one of another build replaces those that are there, under traffic: maps are filled before any program reads
/// them, each filter changes in one step, and after a crash the next call does all of it again.
pub fn ensure(node: &NodeNet, registry: &Registry, dir: &Path) -> Result<Programs> {
    ebpf::check_dir(dir)?; // before anything in it is believed
    if let Some(programs) = complete(dir)? {
        return Ok(programs);
    }
    let pins = PinDir::lock(dir)?;
    if let Some(programs) = complete(dir)? {
        return Ok(programs); // another call was faster
    }
    let programs = Programs::load(&pins)?;
    let tables = Tables::read(node, registry)?;
    for key in registry.vips()? {
        if let Some(vip) = registry.vip_if_present(&key)?
            && vip.record.as_ref().is_some_and(|record| record.flow_owner.as_deref() == Some(dir))
        {
            reconcile_vip(node, vip, Some(&tables))?;
        }
    }
    for attachment in registry.attachments()? {
        // Only one that has programs: the others do without, or their ADD is not so far yet.
        if let Some(host_veth) = HostVeth::read(node, &VethNames::of(&attachment), None)?.filter(HostVeth::has_programs)
        {
            attachment::apply(node, host_veth.filter_fixes(&programs)?)?;
            if let Err(error) = attachment::renew(registry, &attachment, &programs) {
                // Those of before go on, and viprouted replaces them.
                tracing::warn!(attachment = %attachment_name(&attachment), "{error}: its pod keeps programs of before");
            }
        }
    }
    programs.publish(&pins)?;
    pins.remove_others()?;
    Ok(programs)
}

/// This build's programs. `None`: one of their pins, or of their maps' pins, is missing.
fn complete(dir: &Path) -> Result<Option<Programs>> {
    if !ebpf::has_maps(dir) {
        return Ok(None);
    }
    Ok(Programs::open(dir)?)
}

/// The programs attached to host veths now: this build's, or another's that has replaced them. `None`: none is pinned, or
/// some of their pins are missing.
pub fn status(dir: &Path) -> Result<Option<Programs>> {
    match complete(dir)? {
        Some(programs) => Ok(Some(programs)),
        None => Ok(Programs::open_others(dir)?),
    }
}
