//! Taking a pod out of its VIPs: DEL's work, and GC's, and the way back of what failed. Works from the registry alone; what
//! isn't there is done already; every step is tried, whatever the others met with.

use std::path::Path;
use std::time::Duration;

use crate::api::client;
use crate::dataplane::ids::VethNames;
use crate::dataplane::{Error, Result, attachment, reconcile_without};
use crate::model::{AttachmentId, VipKey};
use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::record::SavedSysctls;
use crate::registry::{AttachmentRecord, Intent, LockedAttachment, Registry, Turn, attachment_name};

/// Short, since a release only notifies the allocator: it learns the same from the registry anyway.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a removal needs.
#[derive(Clone, Copy, Debug)]
pub struct Detach<'a> {
    /// The node.
    pub net: &'a NodeNet,
    /// Its registry.
    pub registry: &'a Registry,
    /// The socket of the allocator to notify of a VIP's last replica, if any.
    pub allocator: Option<&'a Path>,
    /// The pod's namespace as the runtime names it now.
    pub netns: Option<&'a Path>,
}

/// Ends an attachment: out of the groups first, then the devices, then the record.
pub fn detach(with: &Detach<'_>, attachment: &AttachmentId, locked: LockedAttachment) -> Result<()> {
    let name = attachment_name(attachment);
    let keys: Vec<VipKey> = match &locked.record {
        Ok(record) if record.is_idle() => return Ok(locked.remove()?),
        Ok(record) => record.keys().chain(record.changing()).collect(),
        Err(_) => with.registry.vips()?, // damaged: it may be in any
    };
    let mut errors = with.leave_vips(&keys, &name);
    errors.extend(with.take_down(attachment, locked.record.as_ref().ok()));
    if errors.is_empty() {
        locked.remove()?;
    }
    Error::several(errors)
}

impl Detach<'_> {
    /// Takes the endpoint of that name out of these VIPs; those that had no other are gone then.
    pub(super) fn leave_vips(&self, keys: &[VipKey], name: &str) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut last_left = Vec::new();
        for key in keys {
            match self.leave_vip(key, name) {
                Ok(true) => last_left.push(key),
                Ok(false) => {}
                Err(e) => errors.push(e),
            }
        }
        self.tell_allocator(&last_left);
        errors
    }

    /// True: that was the VIP's last replica here.
    fn leave_vip(&self, key: &VipKey, name: &str) -> Result<bool> {
        let mut vip = match self.registry.vip_for(key, name, &Intent::Leave)? {
            Turn::Taken(vip) => vip,
            // Another call had the lock, and has taken it out with its own.
            Turn::Needless => return Ok(false),
            Turn::Absent => {
                // Perhaps a DEL was killed while it removed the VIP: this is that DEL again.
                self.registry.sweep_removed_vips()?;
                return Ok(false);
            }
        };
        vip.carry_out_intents()?;
        vip.remove_endpoint(name)?;
        match reconcile_without(self.net, vip) {
            // It has no group of its own; from the one it names the replica goes with its device.
            Err(Error::SharedGroup { .. }) => Ok(false),
            reconciled => Ok(reconciled?.vip.is_none()),
        }
    }

    /// Ends at the first release that fails: a DEL doesn't wait for an allocator that doesn't answer.
    fn tell_allocator(&self, keys: &[&VipKey]) {
        let Some(socket) = self.allocator else { return };
        for key in keys {
            if client::release(socket, &key.to_string(), RELEASE_TIMEOUT).is_err() {
                return;
            }
        }
    }

    /// Takes the veth pair away, and out of the pod what was around it. Without a record (it is damaged) the pod is where
    /// the runtime says.
    pub(super) fn take_down(&self, attachment: &AttachmentId, record: Option<&AttachmentRecord>) -> Vec<Error> {
        let left = self.leave_pod(attachment, record);
        let removed = attachment::remove(self.net, &VethNames::of(attachment)).map_err(Error::from);
        left.err().into_iter().chain(removed.err()).collect()
    }

    /// A pod that lives on (podman disconnects it; a later plugin of the chain failed; it left by hand) gets back what it
    /// had.
    fn leave_pod(&self, attachment: &AttachmentId, record: Option<&AttachmentRecord>) -> Result<()> {
        let saved = record.map_or_else(SavedSysctls::default, |record| record.saved_sysctls);
        // The runtime may show it at another path by now.
        for path in record.map(|record| record.netns.path.as_path()).into_iter().chain(self.netns) {
            let Some(netns) = Netns::open_if_alive(path)? else { continue };
            // Paths are used again: another pod's namespace may be there by now.
            let is_the_pods = match record {
                Some(record) => netns.identity()? == record.netns.identity(),
                None => !netns.is_own()?,
            };
            if is_the_pods {
                let pod = PodNet::open(netns)?;
                return Ok(attachment::leave(&pod, &VethNames::of(attachment), &attachment.ifname, saved)?);
            }
        }
        Ok(())
    }
}
