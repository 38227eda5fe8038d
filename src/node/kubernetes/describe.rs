//! What people are told of Services who ask viprouted on a node.

use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::api::protocol::{ClusterFinding, ClusterFindingKind, Kubernetes, KubernetesRequest, Nodes, ServiceEntry};
use crate::api::server;
use crate::model::{Addresses, VipKey};

use super::addresses::{Lease, keeper};
use super::events::phrased;
use super::examine::Examination;
use super::objects::Service;
use super::sharing::Sharing;
use super::{Services, Shared};

/// So many Services without a class are named.
const SHOWN: usize = 3;

impl Services {
    /// Answers what is known of Services; where the API is to be asked too, that follows.
    pub fn answer(&self, asked: KubernetesRequest, nodes: Option<&Nodes>, reply: oneshot::Sender<Vec<u8>>) {
        let shared = self.shared();
        let found = describe(&shared, nodes);
        let examination = Examination { found, reply };
        let unasked = match &shared.examiner {
            Some(examiner) if asked.examine => examiner.send(examination).err().map(|unsent| unsent.0),
            _ => Some(examination),
        };
        if let Some(Examination { found, reply }) = unasked {
            // The caller may have closed its connection.
            let _ = reply.send(server::line(&Ok(found)));
        }
    }
}

fn describe(shared: &Shared, nodes: Option<&Nodes>) -> Kubernetes {
    let sharing = Sharing::of(shared.store.objects());
    let having = sharing.all().map(|(vip, sharer)| {
        let found = entry((vip, &sharer.key), sharer.service, shared.leases.get(vip), nodes);
        with_families(found, sharer.service, shared.addresses(vip).as_ref())
    });
    let refused = sharing.refused.iter().map(|(key, service)| {
        let why = sharing.notes.get(key).into_iter().flatten().map(|note| phrased(note).1).next();
        ServiceEntry { address: None, waits: why, ..entry((key, key), service, None, nodes) }
    });
    let mut entries: Vec<ServiceEntry> = having.chain(refused).collect();
    entries.sort_by(|one, other| one.service.cmp(&other.service));
    let mut findings: Vec<ClusterFinding> = Vec::new();
    for (vip, notes) in &shared.notes {
        let text = |note| format!("{vip}: {}", phrased(note).1);
        findings
            .extend(notes.iter().map(|note| ClusterFinding { kind: ClusterFindingKind::Service, text: text(note) }));
    }
    findings.extend(unclaimed(shared).map(|text| ClusterFinding { kind: ClusterFindingKind::Class, text }));
    if shared.lacks_mode {
        let text = "the Kubernetes API doesn't know ipMode in a Service's status (1.30 and later do)".to_owned();
        findings.push(ClusterFinding { kind: ClusterFindingKind::Api, text });
    }
    Kubernetes { services: entries, findings, kept_out: shared.kept_out.clone() }
}

/// `names`: its VIP's and its own.
fn entry(names: (&VipKey, &VipKey), service: &Service, lease: Option<&Lease>, nodes: Option<&Nodes>) -> ServiceEntry {
    let (vip, key) = names;
    let keeper = keeper(vip, nodes).map(|node| node.name.clone());
    let address: Option<IpAddr> = lease.and_then(|lease| lease.address).or_else(|| service.stated());
    let waits = match (address, lease.and_then(|lease| lease.error.clone()), &keeper) {
        (Some(_), ..) => None,
        (None, Some(why), _) => Some(why),
        (None, None, Some(keeper)) if lease.is_none() => Some(format!("{keeper} asks for its address")),
        (None, None, _) => Some("its address is being asked for".to_owned()),
    };
    let ranges = service.clients.ranges.as_ref();
    let of_ipv6 = service.clients.ranges6.iter().map(ToString::to_string);
    let clients = ranges.map(|ranges| ranges.iter().map(ToString::to_string).chain(of_ipv6).collect());
    ServiceEntry {
        service: key.to_string(),
        uid: service.uid.clone(),
        address,
        others: Vec::new(),
        keeper,
        waits,
        clients,
    }
}

/// With those of its VIP's addresses that it gets, or the families for which it waits.
fn with_families(entry: ServiceEntry, service: &Service, addresses: Option<&Addresses>) -> ServiceEntry {
    if addresses.is_none() {
        return entry;
    }
    let given = service.families.given(addresses);
    let mut own = given.addresses.iter().copied();
    let (address, others) = (own.next(), own.collect());
    let needs = || {
        let missing: Vec<&str> = given.missing.iter().map(|family| family.name()).collect();
        format!("its VIP has no address of {}", missing.join(" and "))
    };
    let waits = entry.waits.clone().or_else(|| address.is_none().then(needs));
    ServiceEntry { address, others, waits, ..entry }
}

/// Services of type `LoadBalancer` that have neither a class nor an address: nobody serves them.
fn unclaimed(shared: &Shared) -> Option<String> {
    let names: Vec<&str> = shared.unclaimed.iter().map(String::as_str).collect();
    let first = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        1 => Some(format!("{first} is of type LoadBalancer, and has neither a loadBalancerClass nor an address")),
        number if number <= SHOWN => {
            Some(format!("{first} are of type LoadBalancer, and have neither a loadBalancerClass nor an address"))
        }
        number => Some(format!(
            "{number} Services ({first} and {} more) are of type LoadBalancer, and have neither a loadBalancerClass nor an address",
            number - SHOWN
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::objects::Ingress;
    use super::super::store::Change;
    use super::*;
    use crate::api::protocol::NodeEntry;

    fn lone(name: &str) -> Nodes {
        let own = NodeEntry {
            name: name.into(),
            id: [192, 0, 2, 1].into(),
            tunnel: [192, 0, 2, 1].into(),
            state: "live".into(),
            silent_ms: 0,
            vips: 0,
            ready: 0,
            version: String::new(),
        };
        Nodes { own: Some(own), ..Nodes::default() }
    }

    #[test]
    fn a_service_that_waits_says_for_what() {
        let (vip, service) = ("shop/web".parse().unwrap(), Service { uid: "u1".into(), ..Service::default() });
        let waits =
            |lease: Option<Lease>, nodes: Option<&Nodes>| entry((&vip, &vip), &service, lease.as_ref(), nodes).waits;
        let refused = Lease { error: Some("the pool is empty".into()), ..Lease::default() };
        assert_eq!(waits(Some(refused), None).as_deref(), Some("the pool is empty"));
        assert_eq!(waits(Some(Lease::default()), Some(&lone("n1"))).as_deref(), Some("its address is being asked for"));
        assert_eq!(waits(None, Some(&lone("n1"))).as_deref(), Some("n1 asks for its address"));
        assert_eq!(waits(Some(Lease { address: Some([192, 0, 2, 7].into()), ..Lease::default() }), None), None);
        let stated = Service { ingress: vec![Ingress { ip: "192.0.2.7".into(), ..Ingress::default() }], ..service };
        let shown = entry((&vip, &vip), &stated, None, Some(&lone("n1")));
        assert_eq!((shown.address, shown.waits, shown.uid.as_str()), (Some([192, 0, 2, 7].into()), None, "u1"));
    }

    #[test]
    fn services_without_a_class_are_counted() {
        let mut shared = Shared::default();
        assert_eq!(unclaimed(&shared), None);
        for (number, begins) in [
            (1, "shop/0 is of type"),
            (2, "shop/0, shop/1 are of type"),
            (5, "5 Services (shop/0, shop/1, shop/2 and 2 more)"),
        ] {
            let all = (0..number).map(|number| (format!("shop/{number}"), ())).collect();
            Services::unclaimed(&mut shared, Change::All(all));
            assert!(unclaimed(&shared).is_some_and(|text| text.starts_with(begins)), "{:?}", unclaimed(&shared));
        }
    }
}
