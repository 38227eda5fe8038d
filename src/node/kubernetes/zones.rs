//! Which nodes' replicas what comes to this node goes to first: by the hints of zones in slices (`trafficDistribution: PreferSameZone`,
//! `PreferClose`), as kube-proxy takes them (`topologyModeFromHints` in pkg/proxy/topology.go). Where each ready endpoint of a Service has a
//! hint, and one of them this node's zone, those that have it are taken, else all. Pure.
//!
//! A node with its replicas is one way here: it is taken if one of its endpoints is for this zone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointHints;
use serde::{Deserialize, Serialize};

use crate::model::VipKey;

use super::objects::{Key, Objects};
use super::sharing::Sharing;

/// An endpoint is for so many zones at most, as the API has it.
const MAX_ZONES: usize = 8;

/// For which zones the ready endpoints of a slice are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// By node.
    pub zones: BTreeMap<Key, BTreeSet<String>>,
    /// One is for no zone in particular.
    pub is_incomplete: bool,
}

impl Hints {
    /// Nothing is said, of no endpoint.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// One more ready endpoint, on a node that is called so.
    pub fn add(&mut self, node: Option<&str>, hints: Option<&EndpointHints>) {
        let zones: Vec<_> = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten().collect();
        match node {
            Some(node) if !zones.is_empty() && !self.is_incomplete => {
                let zones = zones.into_iter().take(MAX_ZONES).map(|zone| zone.name.clone());
                self.zones.entry(node.to_owned()).or_default().extend(zones);
            }
            _ => *self = Self { zones: BTreeMap::new(), is_incomplete: true },
        }
    }
}

/// By VIP the addresses of the nodes that are taken, as seen from the node of that name; of a VIP that isn't here all are.
pub fn near(objects: &Objects, sharing: &Sharing<'_>, node: &str) -> BTreeMap<VipKey, BTreeSet<IpAddr>> {
    let zone = objects.nodes.get(node).map_or("", |node| node.zone.as_str());
    if zone.is_empty() {
        return BTreeMap::new();
    }
    let by_service = by_service(objects, zone);
    let of = |key: &VipKey| by_service.get(key.to_string().as_str()).cloned().flatten();
    let of_vip = |(vip, sharers): (&VipKey, &Vec<super::sharing::Sharer<'_>>)| {
        let mut all = sharers.iter().map(|sharer| of(&sharer.key));
        let first = all.next()??;
        // Those that share a VIP share its way.
        let is_agreed = !first.is_empty() && all.all(|other| other.as_ref() == Some(&first));
        let addresses =
            |name: &&Key| objects.nodes.get(*name).into_iter().flat_map(|node| node.addresses.iter().copied());
        is_agreed.then(|| (vip.clone(), first.iter().flat_map(addresses).collect()))
    };
    sharing.vips.iter().filter_map(of_vip).collect()
}

/// By Service the nodes whose endpoints are for the zone; `None`: an endpoint is for no zone in particular.
fn by_service<'a>(objects: &'a Objects, zone: &str) -> BTreeMap<&'a str, Option<BTreeSet<&'a Key>>> {
    let mut found: BTreeMap<&str, Option<BTreeSet<&Key>>> = BTreeMap::new();
    for slice in objects.slices.values().filter(|slice| !slice.hints.is_none()) {
        let nodes = found.entry(&slice.service).or_insert_with(|| Some(BTreeSet::new()));
        if slice.hints.is_incomplete {
            *nodes = None;
        } else if let Some(nodes) = nodes {
            nodes.extend(slice.hints.zones.iter().filter(|(_, zones)| zones.contains(zone)).map(|(node, _)| node));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::ForZone;

    use super::super::objects::{Node, Service, Slice};
    use super::*;

    fn hints(zones: &[&str]) -> EndpointHints {
        let zones = zones.iter().map(|zone| ForZone { name: (*zone).to_owned() }).collect();
        EndpointHints { for_zones: Some(zones), ..EndpointHints::default() }
    }

    /// Endpoints as node and zones, slice by slice, of nodes n1 and n2 in zone a and n3 in zone b.
    fn objects(slices: &[&[(&str, &[&str])]]) -> Objects {
        let node = |last: u8, zone: &str| {
            (
                format!("n{last}"),
                Node { addresses: vec![[192, 0, 2, last].into()], zone: zone.into(), ..Node::default() },
            )
        };
        let slice = |endpoints: &&[(&str, &[&str])]| {
            let mut found = Hints::default();
            for (node, zones) in *endpoints {
                found.add(Some(node), Some(&hints(zones)));
            }
            Slice { hints: found, ..super::super::objects::tests::slice("shop/web") }
        };
        let slices = slices.iter().map(slice).enumerate().map(|(number, slice)| (format!("shop/web-{number}"), slice));
        Objects {
            services: [("shop/web".to_owned(), Service { uid: "u".into(), ..Service::default() })].into(),
            slices: slices.collect(),
            nodes: [node(1, "a"), node(2, "a"), node(3, "b")].into(),
            ..Objects::default()
        }
    }

    fn near(objects: &Objects, node: &str) -> Option<Vec<String>> {
        let found = super::near(objects, &Sharing::of(objects), node);
        found.into_values().next().map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn endpoints_of_the_zone_come_first_if_all_have_hints() {
        let all = objects(&[&[("n1", &["a"]), ("n2", &["a"])], &[("n3", &["b"])]]);
        assert_eq!(near(&all, "n1").unwrap(), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(near(&all, "n3").unwrap(), ["192.0.2.3"]);
        assert_eq!(near(&all, "n4"), None, "a node without a zone");
        let one_without = objects(&[&[("n1", &["a"]), ("n2", &[])], &[("n3", &["b"])]]);
        assert_eq!(near(&one_without, "n1"), None);
        let none_here = objects(&[&[("n3", &["b"])]]);
        assert_eq!(near(&none_here, "n1"), None, "all, where none is for the zone");
        let lent = objects(&[&[("n3", &["a", "b"])]]);
        assert_eq!(near(&lent, "n1").unwrap(), ["192.0.2.3"], "the controller says whom an endpoint is for");
        assert_eq!(near(&objects(&[&[]]), "n1"), None);
    }

    #[test]
    fn services_that_share_a_vip_must_agree() {
        let mut both = objects(&[&[("n2", &["a"])]]);
        both.services.insert("shop/api".into(), Service { uid: "v".into(), vip: "web".into(), ..Service::default() });
        assert_eq!(near(&both, "n1"), None);
        let other = Slice { service: "shop/api".into(), ..both.slices["shop/web-0"].clone() };
        both.slices.insert("shop/api-0".into(), other);
        assert_eq!(near(&both, "n1").unwrap(), ["192.0.2.2"]);
    }
}
