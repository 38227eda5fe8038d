//! An index of the registry as it was last read: which attachment or VIP an event is about. A repair reads the registry
//! anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dataplane::ids::{self, VethNames};
use crate::dataplane::node::election;
use crate::dataplane::node::tunnel::Settled;
use crate::dataplane::owner;
use crate::ebpf::Parts;
use crate::model::address::ipv4;
use crate::model::node::NodeId;
use crate::model::{Backend, Cluster, Family, VipKey};
use crate::node::kubernetes::Excluded;
use crate::registry::watch::View;
use crate::registry::{self, Replica, State, VipRecord, attachment_of};

/// A node's replicas weigh so much at most, where another one has heard of them.
const FULL: u32 = 255;

/// A VIP.
#[derive(Debug)]
pub struct Vip {
    /// Its record.
    pub record: VipRecord,
    /// Its replicas that have their pair, by attachment name.
    pub replicas: BTreeMap<String, Replica>,
    /// What the flow owner's maps must have of it.
    pub wants: owner::Wants,
}

impl Vip {
    /// As it is recorded; `None`: there is no record.
    pub fn of(view: &View, cluster: Option<&Cluster>) -> Result<Option<Self>, Arc<registry::Error>> {
        let Some(record) = view.record.as_ref().map_err(Arc::clone)?.clone() else { return Ok(None) };
        let replicas = view.replicas.as_ref().map_err(Arc::clone)?.clone();
        let wants = owner::Wants::of(&record, &replicas, cluster);
        Ok(Some(Self { record, replicas, wants }))
    }

    /// What the maps must have for each of its addresses.
    pub fn by_address(&self) -> impl Iterator<Item = (IpAddr, &owner::Want)> {
        self.record.all_addresses().filter_map(|address| Some((address, self.wants.for_address(address)?)))
    }
}

fn changed(old: Option<&Vip>, vip: Option<&Vip>) -> Option<Vec<String>> {
    let none = BTreeMap::new();
    let before = old.map_or(&none, |old| &old.replicas);
    let now = vip.map_or(&none, |vip| &vip.replicas);
    let others = now.iter().filter(|(name, replica)| before.get(*name) != Some(*replica)).map(|(name, _)| name);
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let changed: Vec<String> = others.chain(gone).cloned().collect();
    let is_another = old.map(|vip| &vip.record) != vip.map(|vip| &vip.record);
    (is_another || !changed.is_empty()).then_some(changed)
}

#[derive(Debug)]
struct Attached {
    vips: BTreeSet<VipKey>,
    host: String,
    ifindex: u32,
    netns_id: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    vips: BTreeMap<VipKey, Vip>,
    attached: BTreeMap<String, Attached>,
    by_host: HashMap<String, String>,
    by_index: HashMap<u32, String>,
    by_netns: HashMap<u32, BTreeSet<String>>,
    by_address: HashMap<IpAddr, VipKey>,
    by_group: HashMap<u32, VipKey>,
    /// The nodes that this one knows, where there are others.
    cluster: Option<Cluster>,
    /// The tunnel to them, as it was found last.
    tunnel: Option<Settled>,
    /// Host veths of removed pods that are still recorded: they are in no flow owner's maps.
    gone: BTreeSet<u32>,
    /// Where the flow owners of all VIPs so far are pinned.
    all_bpf_dirs: BTreeSet<PathBuf>,
    /// Some VIP so far had an address of IPv6.
    has_ipv6: bool,
    /// Some replica here so far had no other.
    had_ipv6_alone: bool,
}

impl Cache {
    /// Some VIP so far had an address of IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    /// The programs that the node has need of, but for those of the tunnel.
    pub fn parts(&self) -> Parts {
        Parts::ipv6(self.has_ipv6 || self.had_ipv6_alone)
    }

    /// Replaces a VIP; `None`: it was removed. Returns the attachments that changed; `None`: nothing has.
    pub fn update(&mut self, key: &VipKey, vip: Option<Vip>) -> Option<Vec<String>> {
        let has_ipv6_alone = |replica: &Replica| replica.backend.is_local() && replica.addresses.first().is_ipv6();
        self.has_ipv6 |= vip.as_ref().is_some_and(|vip| vip.record.has_ipv6());
        self.had_ipv6_alone |= vip.as_ref().is_some_and(|vip| vip.replicas.values().any(has_ipv6_alone));
        let old = self.vips.remove(key);
        let changed = changed(old.as_ref(), vip.as_ref());
        if let Some(old) = &old {
            for address in old.record.all_addresses() {
                self.by_address.remove(&address);
            }
            self.by_group.remove(&ids::group(old.record.slot));
            let stays = |name: &String| vip.as_ref().is_some_and(|vip| vip.replicas.contains_key(name));
            for name in old.replicas.keys().filter(|name| !stays(name)) {
                self.leave(key, name);
            }
        }
        let Some(vip) = vip else { return changed };
        for name in changed.iter().flatten() {
            // A replica on another node has no attachment here: only the VIP can need a repair.
            if let Some(replica) = vip.replicas.get(name).filter(|replica| replica.backend.is_local()) {
                self.join(key, name, replica);
            }
        }
        self.by_address.extend(vip.record.all_addresses().map(|address| (address, key.clone())));
        self.by_group.insert(ids::group(vip.record.slot), key.clone());
        self.all_bpf_dirs.extend(vip.record.flow_owner.clone());
        let mut vip = vip;
        vip.wants.detach(|ifindex| self.gone.contains(&ifindex));
        self.vips.insert(key.clone(), vip);
        changed
    }

    /// The nodes that this one knows; none: it stands alone.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The tunnel to other nodes was found so; none: it isn't there.
    pub fn set_tunnel(&mut self, tunnel: Option<&Settled>) {
        self.tunnel = tunnel.cloned();
    }

    /// Whether this is the tunnel's device.
    pub fn is_tunnel(&self, index: u32) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.device == index)
    }

    /// Whether this is the device under the tunnel.
    pub fn is_under_tunnel(&self, index: u32) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.underlay == index)
    }

    /// Whether this is the address of the tunnel's end here.
    pub fn is_tunnel_address(&self, address: IpAddr) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| address == cluster.own.tunnel)
    }

    /// Whether another node that has replicas of the VIP has none in what the VIP is to be replaced by.
    pub fn loses_nodes(&self, key: &VipKey, by: Option<&Vip>) -> bool {
        let before = self.vips.get(key).into_iter().flat_map(|vip| &vip.replicas);
        let mut nodes = before.filter(|(_, replica)| !replica.backend.is_local());
        nodes.any(|(name, _)| by.is_none_or(|vip| !vip.replicas.contains_key(name)))
    }

    /// Whether this node is the one that answers ARP or neighbour discovery for a VIP's address that it serves: the others that have ready
    /// replicas of it might, as far as those serve an address of that family. One that leaves, or that load balancers are to pass by, does so
    /// where there is no other. Of a VIP that is for the replicas of the node that a client reaches those answer alone that have the most.
    pub fn answers_for(&self, address: IpAddr, excluded: &Excluded) -> bool {
        let vip = self.by_address.get(&address).and_then(|key| self.vips.get(key));
        // Of a family that none of its Services or replicas wants.
        if vip.is_some_and(|vip| !vip.record.permits(Family::of(address))) {
            return false;
        }
        let Some(own) = self.cluster.as_ref().map(|cluster| &cluster.own) else { return true };
        let family = Family::of(address);
        let replicas = vip.into_iter().flat_map(|vip| vip.replicas.values());
        let ready = replicas.filter(|one| one.state == State::Ready && one.serves(family));
        let mut nodes = BTreeMap::from([(own.id, 0)]);
        for replica in ready {
            let id = match replica.backend {
                Backend::Remote(peer) => ipv4(peer.address).map(NodeId),
                Backend::Local => Some(own.id),
            };
            *nodes.entry(id.unwrap_or(own.id)).or_default() += u32::from(replica.weight);
        }
        nodes.retain(|id, _| *id == own.id || !excluded.nodes.contains(&IpAddr::V4(id.0)));
        if own.left || excluded.is_own {
            return nodes.len() == 1;
        }
        let most = nodes.values().max().copied().unwrap_or_default().min(FULL);
        let is_local = vip.is_some_and(|vip| vip.record.policy.local);
        let may = nodes.into_iter().filter(|(_, weight)| !is_local || (*weight).min(FULL) == most);
        // One node for all of the VIP's addresses.
        let address = vip.map_or(address, |vip| vip.record.address());
        election::answers(address, may.map(|(id, _)| id)) == Some(own.id)
    }

    /// These are the nodes from now on. Returns whether they are others than before.
    pub fn set_cluster(&mut self, cluster: Option<Cluster>) -> bool {
        let Self { vips, gone, .. } = self;
        if self.cluster == cluster {
            return false;
        }
        for vip in vips.values_mut() {
            vip.wants = owner::Wants::of(&vip.record, &vip.replicas, cluster.as_ref());
            vip.wants.detach(|ifindex| gone.contains(&ifindex));
        }
        self.cluster = cluster;
        true
    }

    fn join(&mut self, key: &VipKey, name: &str, replica: &Replica) {
        let old = self.attached.remove(name);
        if let Some(old) = &old {
            self.forget(name, old);
        }
        let Some(attachment) = attachment_of(name) else { return };
        let (host, mut vips) = match old {
            Some(old) => (old.host, old.vips),
            None => (VethNames::of(&attachment).host, BTreeSet::new()),
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

    /// An attachment's pod was removed.
    pub fn is_gone(&mut self, name: &str) {
        let Some(attached) = self.attached.get(name) else { return };
        self.gone.insert(attached.ifindex);
        for key in &attached.vips {
            if let Some(vip) = self.vips.get_mut(key) {
                vip.wants.detach(|ifindex| ifindex == attached.ifindex);
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

    /// The same with those of VIPs that are gone: their maps may have something left.
    pub fn all_bpf_dirs(&self) -> &BTreeSet<PathBuf> {
        &self.all_bpf_dirs
    }

    /// The VIPs whose flow owner is pinned there.
    pub fn vips_in<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = (&'a VipKey, &'a Vip)> {
        self.vips.iter().filter(move |(_, vip)| vip.record.flow_owner.as_deref() == Some(dir))
    }

    /// The attachment whose host veth has this name.
    pub fn by_host(&self, host: &str) -> Option<&String> {
        self.by_host.get(host)
    }

    /// The attachment whose host veth has this index.
    pub fn by_index(&self, index: u32) -> Option<&String> {
        self.by_index.get(&index)
    }

    /// The attachments whose pod lives in this namespace.
    pub fn by_netns(&self, id: u32) -> impl Iterator<Item = &String> {
        self.by_netns.get(&id).into_iter().flatten()
    }

    /// The VIP of this address.
    pub fn by_address(&self, address: IpAddr) -> Option<&VipKey> {
        self.by_address.get(&address)
    }

    /// The VIP of this group.
    pub fn by_group(&self, id: u32) -> Option<&VipKey> {
        self.by_group.get(&ids::main_group(id))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::VipPolicy;
    use crate::model::node::OwnNode;

    /// A VIP with replicas of these weights on this node, 192.0.2.1, and on two others.
    fn vip(weights: [u8; 3], policy: &VipPolicy) -> Vip {
        let group = serde_json::json!({ "buckets": 1024, "idleTimer": 1, "unbalancedTimer": 10 });
        let record = serde_json::json!({
            "key": "shop/web", "addresses": ["10.118.0.7"], "slot": 1, "node": "192.0.2.1", "group": group, "policy": policy,
        });
        let replica = |last: u8, weight: u8| {
            let far = serde_json::json!({ "remote": { "number": last, "address": format!("192.0.2.{last}") } });
            let backend = if last == 1 { serde_json::json!("local") } else { far };
            serde_json::json!({
                "addresses": ["10.1.1.2"], "ifindex": last, "state": "ready", "weight": weight, "netns_id": null, "backend": backend,
            })
        };
        let replicas = (1..).zip(weights).filter(|(_, weight)| *weight > 0);
        let replicas = replicas
            .map(|(last, weight)| (format!("{last}@eth0"), serde_json::from_value(replica(last, weight)).unwrap()));
        let record = serde_json::from_value(record).unwrap();
        Vip { record, replicas: replicas.collect(), wants: owner::Wants::default() }
    }

    fn cluster(own: u8) -> Cluster {
        let id = |last: u8| NodeId(Ipv4Addr::new(192, 0, 2, last));
        let own = OwnNode { id: id(own), name: "own".into(), tunnel: id(own).0.into(), heard6: None, left: false };
        Cluster { own, nodes: Vec::new() }
    }

    #[test]
    fn of_a_vip_that_is_kept_on_nodes_one_with_the_most_replicas_answers() {
        let local = VipPolicy { local: true, ..VipPolicy::default() };
        let answers = |weights, policy: &VipPolicy| {
            let mut cache = Cache::default();
            cache.set_cluster(Some(cluster(1)));
            cache.update(&"shop/web".parse().unwrap(), Some(vip(weights, policy)));
            cache.answers_for([10, 118, 0, 7].into(), &Excluded::default())
        };
        assert!(answers([2, 1, 1], &local) && !answers([1, 2, 1], &local) && !answers([1, 1, 2], &local));
        // Without that the hash alone decides, and likewise among those that have as many.
        let by_hash = answers([1, 1, 1], &VipPolicy::default());
        assert_eq!(answers([2, 1, 1], &VipPolicy::default()), by_hash);
        assert_eq!((answers([1, 1, 1], &local), answers([3, 3, 3], &local)), (by_hash, by_hash));
        assert!(answers([255, 254, 3], &local));
    }

    #[test]
    fn of_a_familys_address_the_nodes_that_serve_it_alone_may_answer() {
        let [four, six]: [IpAddr; 2] = ["10.118.0.7", "fd00:118::7"].map(|text| text.parse().unwrap());
        let answers = |own: u8, reached_by: &[&str], address| {
            let mut vip = vip([1, 1, 1], &VipPolicy::default());
            vip.record.addresses.replace(six);
            for replica in vip.replicas.values_mut().filter(|replica| !replica.backend.is_local()) {
                replica.addresses = serde_json::from_value(serde_json::json!(reached_by)).unwrap();
            }
            let mut cache = Cache::default();
            cache.set_cluster(Some(cluster(own)));
            cache.update(&"shop/web".parse().unwrap(), Some(vip));
            cache.answers_for(address, &Excluded::default())
        };
        let (of_both, of_one) = (["192.0.2.9", "fe80::9"], ["192.0.2.9"]);
        let by_hash: Vec<_> = (1..=3).map(|own| answers(own, &of_both, four)).collect();
        assert!(by_hash.contains(&false));
        for (own, first) in (1..=3).zip(by_hash) {
            assert_eq!(answers(own, &of_both, six), first, "one node for both");
            assert_eq!(answers(own, &of_one, four), first);
            assert!(answers(own, &of_one, six), "the others serve IPv4 alone");
        }
    }

    #[test]
    fn pods_come_round() {
        let key: VipKey = "shop/web".parse().unwrap();
        let mut cache = Cache::default();
        for (netns, name) in [(1, "a@eth0"), (2, "b@eth0"), (3, "c@net1")] {
            let replica = serde_json::json!({
                "addresses": ["10.1.1.2"], "ifindex": 10 + netns, "state": "ready", "weight": 1, "netns_id": netns,
                "mac": "06:76:00:00:00:01", "ports": []
            });
            cache.join(&key, name, &serde_json::from_value(replica).unwrap());
        }
        let behind = |last| cache.pods_behind(last).collect::<Vec<_>>();
        let all = [("a@eth0", 1, "eth0"), ("b@eth0", 2, "eth0"), ("c@net1", 3, "net1")];
        assert_eq!(behind(""), all);
        assert_eq!(behind("b@eth0"), [all[2], all[0], all[1]]);
        assert_eq!(behind("bb@eth0"), [all[2], all[0], all[1]], "one that is gone by now");
        assert_eq!(behind("c@net1"), all);
    }
}
