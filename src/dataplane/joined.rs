//! What the registry says of one attachment: the VIPs it serves, and so what its pair and its pod must have.

use std::net::IpAddr;
use std::path::Path;

use crate::model::{AttachmentId, VipKey};
use crate::registry::{self, AttachmentRecord, Endpoint, Registry, VipRecord, attachment_name};

use super::attachment::{Families, PodWant, Served};
use super::gateway;
use super::ids::VethNames;

/// An attachment and what it has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    attachment: AttachmentId,
    /// The names of its veth pair.
    pub names: VethNames,
    /// The VIPs it serves, in the order of its record.
    pub vips: Vec<Member>,
    /// Each VIP of its record has its own, and knows the pair: its ADD is done.
    pub complete: bool,
}

/// One VIP of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which of the pod's reply tables is its own.
    pub place: usize,
    /// Which VIP.
    pub key: VipKey,
    /// The VIP.
    pub vip: VipRecord,
    /// The pod as its replica.
    pub endpoint: Endpoint,
}

impl Joined {
    /// Reads the files without locks. A VIP without record, or without an endpoint of this pod, is left out.
    pub fn read(registry: &Registry, attachment: &AttachmentId, record: &AttachmentRecord) -> registry::Result<Self> {
        let name = attachment_name(attachment);
        let mut vips = Vec::new();
        let (mut count, mut missing) = (0, false);
        // One that it is just joining is served as soon as it is recorded as a replica; one that it leaves, until it isn't.
        let keys = record.keys().map(|key| (key, true)).chain(record.changing().map(|key| (key, false)));
        for (index, (key, is_joined)) in keys.enumerate() {
            count += usize::from(is_joined);
            let endpoint = registry.endpoint(&key, &name)?;
            let Some((vip, endpoint)) = registry.vip_record(&key)?.zip(endpoint) else {
                missing |= is_joined;
                continue;
            };
            missing |= is_joined && endpoint.ifindex.is_none();
            let place = endpoint.place.map_or(index, usize::from);
            vips.push(Member { place, key, vip, endpoint });
        }
        let complete = count > 0 && !missing;
        Ok(Self { attachment: attachment.clone(), names: VethNames::of(attachment), vips, complete })
    }

    /// The pod's own interface.
    pub fn ifname(&self) -> &str {
        &self.attachment.ifname
    }

    /// What the pod must have, as long as it isn't known whether its sources are checked.
    pub fn pod_want(&self) -> PodWant<'_> {
        let served = self.vips.iter();
        let served = served.map(|Member { place, vip, endpoint, .. }| Served {
            place: *place,
            addresses: &vip.addresses,
            endpoint,
        });
        let all = self.vips.iter().flat_map(|member| member.vip.all_addresses());
        PodWant::new(&self.names, &self.attachment.ifname, served).keeping(all)
    }

    /// Whether some VIP of the pod's has an address of IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.vips.iter().any(|member| member.vip.has_ipv6())
    }

    /// Which of the pod's parts there can be something of.
    pub fn families(&self) -> Families {
        if self.has_ipv6() { Families::Both } else { Families::Ipv4 }
    }

    /// What the pod's nexthop leads to. `None`: it is in no VIP.
    pub fn gateway(&self) -> Option<IpAddr> {
        self.vips.first().map(|member| gateway(member.endpoint.address(), self.has_ipv6()))
    }

    /// The addresses that the pod must have for its VIPs.
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().flat_map(|member| member.vip.all_addresses())
    }

    /// Where the programs are pinned that its host veth must have; `None`: it has none. A pod's VIPs agree.
    pub fn flow_owner(&self) -> Option<&Path> {
        self.vips.first()?.vip.flow_owner.as_deref()
    }
}
