//! The flow owner's programs: loaded once, put on every host veth.

use std::path::Path;

use crate::dataplane::attachment::{self, HostVeth};
use crate::dataplane::ids::VethNames;
use crate::dataplane::{Result, Tables, reconcile_vip};
use crate::ebpf::{self, Parts, PinDir, Programs};
use crate::net::NodeNet;
use crate::registry::{Registry, attachment_name};

/// Makes sure that these parts of this build's programs are loaded, and attached to every host veth where another build's were. The first
/// call of a boot that wants a part loads it; the first one of another build replaces those that are there, under traffic: maps are filled
/// before any program reads them, each filter changes in one step, and after a crash the next call does all of it again.
pub fn ensure(node: &NodeNet, registry: &Registry, dir: &Path, parts: Parts) -> Result<Programs> {
    ebpf::check_dir(dir)?; // before anything in it is believed
    if let Some(programs) = standing(dir, parts)? {
        return Ok(programs);
    }
    let pins = PinDir::lock(dir)?;
    if let Some(programs) = standing(dir, parts)? {
        return Ok(programs); // another call was faster
    }
    if let Some(programs) = completed(&pins, parts)? {
        return Ok(programs);
    }
    let before = ebpf::pinned_parts(dir)?;
    let parts = Parts { ipv6: parts.ipv6 || before.ipv6, tunnel: parts.tunnel || before.tunnel };
    let programs = Programs::load(&pins, parts)?;
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

/// This build's programs. `None`: one of the parts' pins, or of their maps' pins, is missing.
fn standing(dir: &Path, parts: Parts) -> Result<Option<Programs>> {
    if !ebpf::has_maps(dir) {
        return Ok(None);
    }
    Ok(Programs::open(dir, parts)?)
}

/// This build's programs with these parts, of which what is missing is loaded. `None`: not even those that are always wanted are there.
fn completed(pins: &PinDir, parts: Parts) -> Result<Option<Programs>> {
    let programs = standing(pins.path(), Parts::default())?;
    Ok(programs.map(|programs| programs.complete(pins, parts)).transpose()?)
}

/// The programs attached to devices now: this build's, or another's that has replaced them. `None`: none is pinned, or some of the
/// parts' pins are missing.
pub fn status(dir: &Path, parts: Parts) -> Result<Option<Programs>> {
    match standing(dir, parts)? {
        Some(programs) => Ok(Some(programs)),
        None => Ok(Programs::open_others(dir)?),
    }
}

/// The same with those of the tunnel, which are loaded where this build's aren't yet.
pub fn of_tunnel(dir: &Path) -> Result<Option<Programs>> {
    let parts = Parts { tunnel: true, ..Parts::default() };
    if standing(dir, parts)?.is_none()
        && standing(dir, Parts::default())?.is_some()
        && let Some(programs) = completed(&PinDir::lock(dir)?, parts)?
    {
        return Ok(Some(programs));
    }
    status(dir, parts)
}
