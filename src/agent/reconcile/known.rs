//! What stands where, as the registry had it last: which attachment or VIP an event is about. An index and nothing more;
//! what is done is done by what the registry says then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use crate::registry::{self, Registry, Replica, VipKey, VipRecord, attachment_of};
use crate::vip::ids::{self, PairNames};
use crate::vip::owner;

/// A VIP.
#[derive(Debug)]
pub struct Vip {
    /// Its record.
    pub record: VipRecord,
    /// Its replicas that have their pair, by attachment name.
    pub replicas: BTreeMap<String, Replica>,
    /// What the flow owner's maps must have of it.
    pub want: owner::Want,
}

impl Vip {
    /// As the files stand; `None`: there is no record.
    pub fn read(registry: &Registry, key: &VipKey) -> registry::Result<Option<Self>> {
        let Some(record) = registry.vip_record(key)? else { return Ok(None) };
        let replicas = registry.replicas(key)?;
        let want = owner::Want::of(&record, &replicas);
        Ok(Some(Self { record, replicas, want }))
    }
}

fn changed(former: Option<&Vip>, vip: Option<&Vip>) -> Option<Vec<String>> {
    let none = BTreeMap::new();
    let before = former.map_or(&none, |former| &former.replicas);
    let now = vip.map_or(&none, |vip| &vip.replicas);
    let others = now.iter().filter(|(name, replica)| before.get(*name) != Some(*replica)).map(|(name, _)| name);
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let changed: Vec<String> = others.chain(gone).cloned().collect();
    let is_another = former.map(|vip| &vip.record) != vip.map(|vip| &vip.record);
    (is_another || !changed.is_empty()).then_some(changed)
}

/// An attachment.
#[derive(Debug)]
struct Attached {
    vips: BTreeSet<VipKey>,
    host: String,
    ifindex: u32,
    netns_id: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Known {
    vips: BTreeMap<VipKey, Vip>,
    attached: BTreeMap<String, Attached>,
    by_host: HashMap<String, String>,
    by_index: HashMap<u32, String>,
    by_netns: HashMap<u32, BTreeSet<String>>,
    by_address: HashMap<Ipv4Addr, VipKey>,
    by_group: HashMap<u32, VipKey>,
    /// Host ends of pods that are gone, while they are recorded: no flow owner knows them.
    gone: BTreeSet<u32>,
}

impl Known {
    /// A VIP is like this now; `None`: it is gone. Returns the attachments that are other than before; `None`: nothing is.
    pub fn update(&mut self, key: &VipKey, vip: Option<Vip>) -> Option<Vec<String>> {
        let former = self.vips.remove(key);
        let changed = changed(former.as_ref(), vip.as_ref());
        if let Some(former) = &former {
            for address in former.record.addresses() {
                self.by_address.remove(&address);
            }
            self.by_group.remove(&ids::group(former.record.slot));
            let stays = |name: &String| vip.as_ref().is_some_and(|vip| vip.replicas.contains_key(name));
            for name in former.replicas.keys().filter(|name| !stays(name)) {
                self.leave(key, name);
            }
        }
        let Some(vip) = vip else { return changed };
        for name in changed.iter().flatten() {
            if let Some(replica) = vip.replicas.get(name) {
                self.join(key, name, replica);
            }
        }
        self.by_address.extend(vip.record.addresses().map(|address| (address, key.clone())));
        self.by_group.insert(ids::group(vip.record.slot), key.clone());
        let mut vip = vip;
        vip.want.attached.retain(|ifindex, _| !self.gone.contains(ifindex));
        self.vips.insert(key.clone(), vip);
        changed
    }

    fn join(&mut self, key: &VipKey, name: &str, replica: &Replica) {
        let former = self.attached.remove(name);
        if let Some(former) = &former {
            self.forget(name, former);
        }
        let Some(attachment) = attachment_of(name) else { return };
        let (host, mut vips) = match former {
            Some(former) => (former.host, former.vips),
            None => (PairNames::of(&attachment).host, BTreeSet::new()),
        };
        vips.insert(key.clone());
        self.by_host.insert(host.clone(), name.to_owned());
        self.by_index.insert(replica.ifindex, name.to_owned());
        if let Some(id) = replica.netns_id {
            self.by_netns.entry(id).or_default().insert(name.to_owned());
        }
        let attached = Attached { vips, host, ifindex: replica.ifindex, netns_id: replica.netns_id };
        self.attached.insert(name.to_owned(), attached);
    }

    fn leave(&mut self, key: &VipKey, name: &str) {
        let Some(attached) = self.attached.get_mut(name) else { return };
        attached.vips.remove(key);
        if attached.vips.is_empty()
            && let Some(attached) = self.attached.remove(name)
        {
            self.forget(name, &attached);
        }
    }

    /// An attachment's pod is gone.
    pub fn is_gone(&mut self, name: &str) {
        let Some(attached) = self.attached.get(name) else { return };
        self.gone.insert(attached.ifindex);
        for key in &attached.vips {
            if let Some(vip) = self.vips.get_mut(key) {
                vip.want.attached.remove(&attached.ifindex);
            }
        }
    }

    fn forget(&mut self, name: &str, attached: &Attached) {
        self.gone.remove(&attached.ifindex);
        self.by_host.remove(&attached.host);
        if self.by_index.get(&attached.ifindex).is_some_and(|other| other == name) {
            self.by_index.remove(&attached.ifindex);
        }
        if let Some(id) = attached.netns_id
            && let Some(names) = self.by_netns.get_mut(&id)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_netns.remove(&id);
            }
        }
    }

    /// All VIPs.
    pub fn vips(&self) -> &BTreeMap<VipKey, Vip> {
        &self.vips
    }

    /// The names of all attachments.
    pub fn attachments(&self) -> impl Iterator<Item = &String> {
        self.attached.keys()
    }

    /// Each attachment's pod: its namespace, as an id of the node's, and its own interface. From the attachment behind this
    /// one on, around to this one.
    pub fn pods_behind(&self, last: &str) -> impl Iterator<Item = (&str, u32, &str)> {
        let behind = self.attached.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        let around = behind.chain(self.attached.range::<str, _>((Bound::Unbounded, Bound::Included(last))));
        around.filter_map(|(name, attached)| {
            let (_, ifname) = name.split_once('@')?;
            Some((name.as_str(), attached.netns_id?, ifname))
        })
    }

    /// The VIPs of an attachment.
    pub fn vips_of(&self, name: &str) -> impl Iterator<Item = &VipKey> {
        self.attached.get(name).into_iter().flat_map(|attached| &attached.vips)
    }

    /// The directories of the flow owners in use.
    pub fn bpf_dirs(&self) -> BTreeSet<PathBuf> {
        self.vips.values().filter_map(|vip| vip.record.flow_owner.clone()).collect()
    }

    /// Whose flow owner is pinned there.
    pub fn vips_in<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = (&'a VipKey, &'a Vip)> {
        self.vips.iter().filter(move |(_, vip)| vip.record.flow_owner.as_deref() == Some(dir))
    }

    /// The attachment whose host end has this name.
    pub fn by_host(&self, host: &str) -> Option<&String> {
        self.by_host.get(host)
    }

    /// The attachment whose host end has this index.
    pub fn by_index(&self, index: u32) -> Option<&String> {
        self.by_index.get(&index)
    }

    /// The attachments whose pod lives in this namespace.
    pub fn by_netns(&self, id: u32) -> impl Iterator<Item = &String> {
        self.by_netns.get(&id).into_iter().flatten()
    }

    /// The VIP of this address.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<&VipKey> {
        self.by_address.get(&address)
    }

    /// The VIP of this group.
    pub fn by_group(&self, id: u32) -> Option<&VipKey> {
        self.by_group.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_come_round() {
        let key: VipKey = "shop/web".parse().unwrap();
        let mut known = Known::default();
        for (netns, name) in [(1, "a@eth0"), (2, "b@eth0"), (3, "c@net1")] {
            let replica = serde_json::json!({
                "address": "10.1.1.2", "ifindex": 10 + netns, "state": "ready", "weight": 1, "netns_id": netns,
                "mac": "06:76:00:00:00:01", "ports": []
            });
            known.join(&key, name, &serde_json::from_value(replica).unwrap());
        }
        let behind = |last| known.pods_behind(last).collect::<Vec<_>>();
        let all = [("a@eth0", 1, "eth0"), ("b@eth0", 2, "eth0"), ("c@net1", 3, "net1")];
        assert_eq!(behind(""), all);
        assert_eq!(behind("b@eth0"), [all[2], all[0], all[1]]);
        assert_eq!(behind("bb@eth0"), [all[2], all[0], all[1]], "one that is gone by now");
        assert_eq!(behind("c@net1"), all);
    }
}
