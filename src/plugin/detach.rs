//! Taking an attachment out: DEL's work, and GC's, and the way back of an ADD that failed. Works from the registry
//! alone; what isn't there is done already; every step is tried, whatever the others met with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::allocator::client;
use crate::cni::env::Attachment;
use crate::net::{Netns, NodeNet, PodNet};
use crate::registry::record::Former;
use crate::registry::{LockedAttachment, Registry, VipKey, attachment_name};
use crate::vip::ids::PairNames;
use crate::vip::{pair, sync};

use super::error::Error;

/// The allocator is told, not asked: it finds out from the registry anyway.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// One removal.
pub struct Detach<'a> {
    /// The node.
    pub net: &'a NodeNet,
    /// Its registry.
    pub registry: &'a Registry,
    /// The allocator's socket, where it is to be told of a VIP's last replica.
    pub allocator: Option<&'a Path>,
    /// The pod's namespace as the runtime names it now.
    pub netns: Option<&'a Path>,
}

impl Detach<'_> {
    /// Out of the groups first, then the devices, then the record.
    pub fn run(&self, attachment: &Attachment, locked: LockedAttachment) -> Result<(), Error> {
        let name = attachment_name(attachment);
        let keys: Vec<VipKey> = match &locked.record {
            Ok(record) => record.keys().collect(),
            Err(_) => self.registry.vips()?, // damaged: it may be in any
        };
        let mut errors = Vec::new();
        let mut last_left = Vec::new();
        for key in &keys {
            match self.leave_vip(key, &name) {
                Ok(true) => last_left.push(key),
                Ok(false) => {}
                Err(e) => errors.push(e),
            }
        }
        self.tell_allocator(&last_left);
        errors.extend(self.leave_pod(attachment, &locked).err());
        errors.extend(pair::remove(self.net, &PairNames::of(attachment)).err().map(Error::from));
        if errors.is_empty() {
            locked.remove()?;
        }
        Error::several(errors)
    }

    /// True: that was the VIP's last replica here.
    fn leave_vip(&self, key: &VipKey, name: &str) -> Result<bool, Error> {
        let Some(mut vip) = self.registry.vip_if_present(key)? else {
            // Perhaps a DEL was killed while it removed the VIP: this is that DEL again.
            self.registry.sweep_removed_vips()?;
            return Ok(false);
        };
        vip.remove_endpoint(name)?;
        Ok(sync(self.net, vip)?.is_none())
    }

    /// One that doesn't answer isn't told of the others: a DEL has better things to wait for.
    fn tell_allocator(&self, keys: &[&VipKey]) {
        let Some(socket) = self.allocator else { return };
        for key in keys {
            if client::release(socket, &key.to_string(), RELEASE_TIMEOUT).is_err() {
                return;
            }
        }
    }

    /// A pod that lives on (podman disconnects it; a later plugin of the chain failed) gets back what it had.
    fn leave_pod(&self, attachment: &Attachment, locked: &LockedAttachment) -> Result<(), Error> {
        let (path, former) = match &locked.record {
            Ok(record) => (Some(record.netns.path.clone()), record.former),
            Err(_) => (self.netns.map(PathBuf::from), Former::default()),
        };
        let Some(netns) = path.map(|path| Netns::open_if_alive(&path)).transpose()?.flatten() else {
            return Ok(());
        };
        // Paths are used again: another pod's namespace may be there by now.
        let is_the_pods = match &locked.record {
            Ok(record) => netns.identity()? == (record.netns.device, record.netns.inode),
            Err(_) => !netns.is_own()?,
        };
        if !is_the_pods {
            return Ok(());
        }
        Ok(pair::leave(&PodNet::open(netns)?, &PairNames::of(attachment), &attachment.ifname, former)?)
    }
}
