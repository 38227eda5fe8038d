//! What the registry says of one attachment: the VIPs it serves, and so what its pair and its pod must have.

use std::path::Path;

use crate::cni::env::Attachment;
use crate::registry::{self, AttachmentRecord, Endpoint, Registry, VipKey, VipRecord, attachment_name};

use super::ids::PairNames;
use super::pair::{PodWant, Served};

/// An attachment and what it has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    attachment: Attachment,
    /// What its pair is called.
    pub names: PairNames,
    /// The VIPs it serves, in the order of its record.
    pub vips: Vec<Member>,
    /// Each VIP of its record has its own, and knows the pair: its ADD is done.
    pub complete: bool,
}

/// One VIP of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its place in the attachment's list.
    pub place: usize,
    /// Which VIP.
    pub key: VipKey,
    /// The VIP.
    pub vip: VipRecord,
    /// The pod as its replica.
    pub endpoint: Endpoint,
}

impl Joined {
    /// As the files stand. A VIP without record, or that has none of this pod, is left out.
    pub fn read(registry: &Registry, attachment: &Attachment, record: &AttachmentRecord) -> registry::Result<Self> {
        let name = attachment_name(attachment);
        let mut vips = Vec::new();
        let mut count = 0;
        for (place, key) in record.keys().enumerate() {
            count += 1;
            let Some(vip) = registry.vip_record(&key)? else { continue };
            let Some(endpoint) = registry.endpoint(&key, &name)? else { continue };
            vips.push(Member { place, key, vip, endpoint });
        }
        let complete = count > 0 && vips.len() == count && vips.iter().all(|member| member.endpoint.ifindex.is_some());
        Ok(Self { attachment: attachment.clone(), names: PairNames::of(attachment), vips, complete })
    }

    /// The pod's own interface.
    pub fn ifname(&self) -> &str {
        &self.attachment.ifname
    }

    /// What the pod must have.
    pub fn pod_want(&self) -> PodWant<'_> {
        let served = self.vips.iter();
        let served =
            served.map(|Member { place, vip, endpoint, .. }| Served { place: *place, address: vip.address, endpoint });
        let former = self.vips.iter().flat_map(|member| member.vip.former_addresses());
        PodWant::new(&self.names, &self.attachment.ifname, served).keeping(former)
    }

    /// Where the programs are pinned that must stand on its host end; `None`: it does without. A pod's VIPs agree.
    pub fn flow_owner(&self) -> Option<&Path> {
        self.vips.first()?.vip.flow_owner.as_deref()
    }
}
