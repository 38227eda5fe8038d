//! What Services ask of their VIPs' ports: who their clients may be (`loadBalancerSourceRanges`), whether a client's connections go to one
//! replica (`sessionAffinity: ClientIP`), and whether clients outside are for a node's own replicas (`externalTrafficPolicy: Local`). Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::ebpf::RANGES as MAX_RANGES;
use crate::model::{Addresses, Family, Port, PortPolicy, Recorded, VipKey, VipPolicy};

use super::desired::Note;
use super::objects::{Objects, ServicePort};
use super::sharing::{Sharer, Sharing};
use super::zones;

/// By it a Service says the same as by the field, which goes before it.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// As many ranges of a Service count.
const MAX_OF_SERVICE: usize = 128;
/// A client's flows go to one replica for so long, where the Service doesn't say it: three hours, as the API has it.
const AFFINITY: u32 = 10_800;
/// The API takes no more: a day.
const MAX_AFFINITY: u32 = 86_400;

/// Who the clients of a Service may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// From there, and from nowhere else; `None`: from anywhere.
    pub ranges: Option<Vec<Ipv4Network>>,
    /// Those of IPv6 among them.
    #[serde(default)]
    pub ranges6: Vec<Ipv6Network>,
    /// What is no range.
    pub unread: Vec<String>,
    /// So many are left out, because there are too many.
    pub left_out: usize,
}

/// As the Service's field says it, else its annotation.
pub fn clients(spec: &core::ServiceSpec, annotations: Option<&BTreeMap<String, String>>) -> Clients {
    let listed = spec.load_balancer_source_ranges.iter().flatten().map(String::as_str);
    let mut texts: Vec<&str> = listed.map(str::trim).filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        let said = annotations.and_then(|all| all.get(SOURCE_RANGES)).map_or("", String::as_str);
        texts = said.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    }
    if texts.is_empty() {
        return Clients::default();
    }
    let (mut ranges, mut ranges6, mut unread) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for text in texts {
        match text.parse::<IpNetwork>() {
            // Without a length it is one address to the parser, and nothing to the API.
            Ok(IpNetwork::V4(range)) if text.contains('/') => {
                ranges.extend(Ipv4Network::new(range.network(), range.prefix()));
            }
            Ok(IpNetwork::V6(range)) if text.contains('/') => {
                ranges6.extend(Ipv6Network::new(range.network(), range.prefix()));
            }
            _ => unread.push(text.chars().take(64).collect()),
        }
    }
    unread.truncate(MAX_OF_SERVICE);
    // All of a family says nothing of the other one.
    let (is_all4, is_all6) = (ranges.iter().any(|one| one.prefix() == 0), ranges6.iter().any(|one| one.prefix() == 0));
    if is_all4 && is_all6 {
        return Clients { ranges: None, ranges6: Vec::new(), unread, left_out: 0 };
    }
    ranges.retain(|range| !is_all4 || range.prefix() == 0);
    ranges6.retain(|range| !is_all6 || range.prefix() == 0);
    let room6 = MAX_OF_SERVICE.saturating_sub(ranges.len());
    let left_out = (ranges.len() + ranges6.len()).saturating_sub(MAX_OF_SERVICE);
    let ranges = ranges.into_iter().take(MAX_OF_SERVICE).collect();
    Clients { ranges: Some(ranges), ranges6: ranges6.into_iter().take(room6).collect(), unread, left_out }
}

/// Seconds for which a client's connections go to one replica; `None`: to any.
pub fn affinity(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let said = config.and_then(|config| u32::try_from(config.timeout_seconds?).ok()).filter(|seconds| *seconds > 0);
    Some(said.unwrap_or(AFFINITY).min(MAX_AFFINITY))
}

/// What is asked of each VIP, and what there is to say of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Of VIPs of which nothing is asked there is nothing here.
    pub vips: BTreeMap<VipKey, VipPolicy>,
    /// By Services' own names.
    pub notes: BTreeMap<VipKey, BTreeSet<Note>>,
}

/// From where it is worked out.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// What the cluster calls this node.
    pub node: &'a str,
    /// VIPs have addresses of IPv6.
    pub has_ipv6: bool,
    /// The addresses that VIPs have, as far as that is known.
    pub addresses: &'a BTreeMap<VipKey, Addresses>,
}

/// Of all Services, as seen from here. The oldest come first where there are more ranges than the programs take.
pub fn policies(objects: &Objects, sharing: &Sharing<'_>, here: Here<'_>) -> Policies {
    let mut found = Policies::default();
    let mut room = MAX_RANGES;
    for (vip, sharer) in sharing.in_order() {
        let (ports, notes) = of(sharer, &mut room);
        if !ports.is_empty() {
            found.vips.entry(vip.clone()).or_default().ports.extend(ports);
        }
        if !notes.is_empty() {
            found.notes.entry(sharer.key.clone()).or_default().extend(notes);
        }
    }
    for (vip, sharers) in &sharing.vips {
        let families: BTreeSet<Family> = sharers.iter().flat_map(|sharer| sharer.service.families.iter()).collect();
        // Where VIPs have no IPv6 one of IPv4 alone is served as it is anyway; one of IPv6 alone isn't served at all.
        let only = families.first().filter(|only| families.len() == 1 && (here.has_ipv6 || **only == Family::V6));
        if let Some(only) = only {
            found.vips.entry(vip.clone()).or_default().family = Some(Recorded::Known(*only));
        }
        if !sharers.is_empty() && sharers.iter().all(|sharer| sharer.service.prefers_node) {
            found.vips.entry(vip.clone()).or_default().prefers_node = true;
        }
        let locals = sharers.iter().filter(|sharer| sharer.service.is_local).count();
        if locals == sharers.len() {
            found.vips.entry(vip.clone()).or_default().local = true;
        } else {
            for sharer in sharers.iter().filter(|sharer| sharer.service.is_local) {
                found.notes.entry(sharer.key.clone()).or_default().insert(Note::PolicyNotShared { vip: vip.clone() });
            }
        }
    }
    for (vip, nodes) in zones::near(objects, sharing, here.node) {
        found.vips.entry(vip).or_default().near = Some(nodes);
    }
    for policy in found.vips.values_mut() {
        policy.ports.sort_by(|one, other| one.port.cmp(&other.port));
    }
    found
}

fn of(sharer: &Sharer<'_>, room: &mut usize) -> (Vec<PortPolicy>, BTreeSet<Note>) {
    let service = sharer.service;
    let Clients { ranges, ranges6, unread, left_out } = &service.clients;
    let mut notes = BTreeSet::new();
    if !unread.is_empty() {
        let why = format!("no range of addresses, and nobody's: {}", unread.join(", "));
        notes.insert(Note::SourceRangesRefused { why });
    }
    if *left_out > 0 {
        let why = format!("{left_out} more than the {MAX_OF_SERVICE} that count: clients of those don't get in");
        notes.insert(Note::SourceRangesRefused { why });
    }
    let own: BTreeSet<_> =
        service.ports.iter().filter_map(ServicePort::port).filter(|port| sharer.has(*port)).collect();
    let needed = own.len() * (ranges.as_ref().map_or(0, Vec::len) + ranges6.len());
    let (mut ranges, mut ranges6) = (ranges.clone(), ranges6.clone());
    if needed > *room {
        let why = format!("the node takes {MAX_RANGES} in all, times ports, and they are taken: nobody gets in");
        notes.insert(Note::SourceRangesRefused { why });
        (ranges, ranges6) = (Some(Vec::new()), Vec::new());
    } else {
        *room -= needed;
    }
    if ranges.is_none() && service.affinity.is_none() {
        return (Vec::new(), notes);
    }
    let policy = |port: Port| PortPolicy {
        port: port.into(),
        sources: ranges.clone(),
        sources6: ranges6.clone(),
        affinity: service.affinity,
    };
    (own.into_iter().map(policy).collect(), notes)
}

#[cfg(test)]
mod tests {
    use super::super::families::Families;
    use super::super::objects::{Objects, Service};
    use super::*;

    fn spec(ranges: &[&str]) -> core::ServiceSpec {
        let ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
        core::ServiceSpec { load_balancer_source_ranges: Some(ranges), ..core::ServiceSpec::default() }
    }

    fn shown(clients: &Clients) -> Option<Vec<String>> {
        clients.ranges.as_ref().map(|ranges| ranges.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn blanks_and_host_bits_are_none_of_a_range() {
        let of = |ranges: &[&str]| clients(&spec(ranges), None);
        assert_eq!(shown(&of(&[])), None);
        assert_eq!(
            shown(&of(&[" 10.1.2.3/8 ", "192.0.2.7/32", "10.0.0.0/8"])).unwrap(),
            ["10.0.0.0/8", "192.0.2.7/32"]
        );
        assert_eq!(shown(&of(&["10.0.0.0/8", "0.0.0.0/0", "::/0"])), None, "anybody");
        assert_eq!(shown(&of(&["10.0.0.0/8", "0.0.0.0/0"])).unwrap(), ["0.0.0.0/0"], "of that family");
        let six = of(&["fd00::1/64", "fd00::2/64"]);
        assert_eq!((shown(&six), six.ranges6.len()), (Some(vec![]), 1), "of the other family alone: nobody");
        let odd = of(&["10.0.0.1", "web", "10.0.0.0/8"]);
        assert_eq!(
            (shown(&odd).unwrap(), odd.unread),
            (vec!["10.0.0.0/8".to_owned()], vec!["10.0.0.1".into(), "web".into()])
        );
        assert_eq!(shown(&of(&["web"])), Some(vec![]), "who can't be read lets nobody in");
    }

    #[test]
    fn the_annotation_says_it_where_the_field_doesnt() {
        let said = [(SOURCE_RANGES.to_owned(), "10.0.0.0/8, 192.0.2.0/24".to_owned())].into();
        assert_eq!(shown(&clients(&spec(&[]), Some(&said))).unwrap().len(), 2);
        assert_eq!(shown(&clients(&spec(&["10.1.0.0/16"]), Some(&said))).unwrap(), ["10.1.0.0/16"]);
    }

    #[test]
    fn of_too_many_ranges_the_first_count() {
        let many: Vec<String> = (0..200).map(|number| format!("10.0.{number}.0/24")).collect();
        let found = clients(&spec(&many.iter().map(String::as_str).collect::<Vec<_>>()), None);
        assert_eq!((found.ranges.unwrap().len(), found.left_out), (128, 72));
    }

    #[test]
    fn an_affinity_has_a_time() {
        let of = |said: &str, seconds| {
            let client_ip = Some(core::ClientIPConfig { timeout_seconds: seconds });
            affinity(&core::ServiceSpec {
                session_affinity: Some(said.to_owned()),
                session_affinity_config: Some(core::SessionAffinityConfig { client_ip }),
                ..core::ServiceSpec::default()
            })
        };
        assert_eq!(of("None", Some(5)), None);
        assert_eq!(of("ClientIP", Some(5)), Some(5));
        assert_eq!(of("ClientIP", None), Some(10_800));
        assert_eq!(of("ClientIP", Some(1_000_000)), Some(86_400));
    }

    fn service(created: i64, vip: &str, port: u16) -> Service {
        let port = ServicePort { name: port.to_string(), number: port, protocol: "TCP".into() };
        Service { uid: format!("u{created}"), created, vip: vip.into(), ports: vec![port], ..Service::default() }
    }

    /// `shop/web: 80/tcp from 10.0.0.0/8 60s, 443/tcp from anywhere; local`
    fn all(services: &[(&str, Service)]) -> (Vec<String>, Vec<String>) {
        let services = services.iter().map(|(key, service)| ((*key).to_owned(), service.clone())).collect();
        let objects = Objects { services, ..Objects::default() };
        let found = policies(
            &objects,
            &Sharing::of(&objects),
            Here { node: "n1", has_ipv6: false, addresses: &BTreeMap::new() },
        );
        let port = |port: &PortPolicy| {
            let from = port.sources.as_ref().map_or("anywhere".to_owned(), |all| format!("{all:?}"));
            format!("{} from {from} {:?}", port.port, port.affinity)
        };
        let line = |(vip, policy): (&VipKey, &VipPolicy)| {
            let ports: Vec<_> = policy.ports.iter().map(port).collect();
            format!("{vip}: {}{}", ports.join(", "), if policy.local { "; local" } else { "" })
        };
        (found.vips.iter().map(line).collect(), found.notes.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn each_port_has_what_its_own_service_asks() {
        let listed = Clients { ranges: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..Clients::default() };
        let web = Service { clients: listed, ..service(1, "", 80) };
        let api = Service { affinity: Some(60), ..service(2, "web", 443) };
        let (found, notes) = all(&[("shop/web", web), ("shop/api", api)]);
        let range = "[Ipv4Network { addr: 10.0.0.0, prefix: 8 }]";
        assert_eq!(found, [format!("shop/web: 80/tcp from {range} None, 443/tcp from anywhere Some(60)")]);
        assert!(notes.is_empty());
        assert!(all(&[("shop/web", service(1, "", 80))]).0.is_empty(), "nothing is asked");
    }

    /// The family that its VIP is limited to.
    fn limit(names: &[&str], has_ipv6: bool) -> Option<Family> {
        let spec = core::ServiceSpec {
            ip_families: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..core::ServiceSpec::default()
        };
        let web = Service { families: Families::of(&spec), ..service(1, "", 80) };
        let objects = Objects { services: [("shop/web".to_owned(), web)].into(), ..Objects::default() };
        let found =
            policies(&objects, &Sharing::of(&objects), Here { node: "n1", has_ipv6, addresses: &BTreeMap::new() });
        let [family] = found.vips.values().map(|policy| policy.family.as_ref()).collect::<Vec<_>>()[..] else {
            return None;
        };
        family.and_then(Recorded::known).copied()
    }

    #[test]
    fn a_service_of_one_family_is_not_served_by_the_other() {
        assert_eq!(limit(&["IPv4"], true), Some(Family::V4));
        assert_eq!(limit(&["IPv6"], true), Some(Family::V6));
        assert_eq!(limit(&["IPv6"], false), Some(Family::V6), "not by IPv4 either, where there is no IPv6");
        assert_eq!(limit(&["IPv4"], false), None, "which says nothing");
        assert_eq!(limit(&["IPv4", "IPv6"], true), None);
    }

    #[test]
    fn local_is_what_all_say_who_share() {
        let local = |created, vip, port| Service { is_local: true, ..service(created, vip, port) };
        let both = [("shop/web", local(1, "", 80)), ("shop/api", local(2, "web", 443))];
        assert_eq!(all(&both), (vec!["shop/web: ; local".to_owned()], vec![]));
        let one = [("shop/web", local(1, "", 80)), ("shop/api", service(2, "web", 443))];
        assert_eq!(all(&one), (vec![], vec!["shop/web".to_owned()]));
    }
}
