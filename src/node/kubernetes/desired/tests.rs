//! Endpoints one by one, then properties over many.

use proptest::prelude::*;

use super::super::objects::{Node, ServicePort};
use super::super::policies::{Labels, Policy};
use super::*;

fn desired(objects: &Objects, attachments: &[Attachment]) -> Desired {
    super::desired(
        objects,
        &Sharing::of(objects),
        attachments,
        Here { node: "n1", has_ipv6: false, addresses: &BTreeMap::new() },
    )
}

const NODE_POD: &str = "10.1.0.";

fn address(last: u8) -> IpAddr {
    format!("{NODE_POD}{last}").parse().unwrap()
}

fn vip() -> VipKey {
    "shop/web".parse().unwrap()
}

fn port(number: u16) -> Port {
    format!("{number}/tcp").parse().unwrap()
}

fn service() -> Service {
    let http = ServicePort { name: "http".into(), number: 80, protocol: "TCP".into() };
    Service { uid: "s1".into(), created: 1, ports: vec![http], ..Service::default() }
}

fn endpoint(number: u8, is_ready: bool) -> Endpoint {
    Endpoint {
        address: address(number),
        pod: format!("shop/p{number}"),
        uid: format!("u{number}"),
        is_ready,
        is_serving: is_ready,
        is_terminating: false,
    }
}

fn slice(here: Vec<Endpoint>) -> Slice {
    Slice {
        is_ipv6: false,
        service: "shop/web".into(),
        ports: vec![super::super::objects::SlicePort { name: "http".into(), target: Some((80, Protocol::Tcp)) }],
        here,
        ready_elsewhere: false,
        serving_elsewhere: false,
        hints: super::super::zones::Hints::default(),
        has_foreign: false,
        api_servers: Vec::new(),
    }
}

fn pod(number: u8) -> (Key, Pod) {
    let pod = Pod { uid: format!("u{number}"), addresses: vec![address(number)], ..Pod::default() };
    (format!("shop/p{number}"), pod)
}

fn objects(slices: Vec<Slice>, pods: impl IntoIterator<Item = (Key, Pod)>) -> Objects {
    let named = slices.into_iter().enumerate().map(|(number, slice)| (format!("shop/web-{number}"), slice));
    Objects {
        services: BTreeMap::from([("shop/web".to_owned(), service())]),
        slices: named.collect(),
        pods: pods.into_iter().collect(),
        ..Objects::default()
    }
}

fn attachment(number: u8, vips: &[(&str, Source)]) -> Attachment {
    let pod = record::Pod { namespace: "shop".into(), name: format!("p{number}"), uid: format!("u{number}") };
    let member = |source: &Source| Member { source: source.clone(), ports: vec![port(80).into()], is_admitted: true };
    let vips = vips.iter().map(|(key, source)| (key.parse().unwrap(), member(source))).collect();
    let netns = record::Netns { path: format!("/run/netns/c{number}").into(), device: 4, inode: number.into() };
    Attachment { name: format!("c{number}@eth0"), pod, address: Some(address(number)), netns, vips }
}

/// Which attachments get connections, and which are replicas that don't.
fn admitted(desired: &Desired) -> (Vec<&str>, Vec<&str>) {
    let in_vip = desired.recorded.iter().filter_map(|(name, roles)| Some((name.as_str(), roles.vips.get(&vip())?)));
    let (yes, no): (Vec<_>, Vec<_>) = in_vip.partition(|(_, role)| role.is_admitted);
    (yes.into_iter().map(|(name, _)| name).collect(), no.into_iter().map(|(name, _)| name).collect())
}

#[test]
fn ready_endpoints_of_recorded_pods_get_connections() {
    let objects = objects(
        vec![slice(vec![endpoint(1, true), endpoint(2, false)]), slice(vec![endpoint(3, true)])],
        [pod(1), pod(2), pod(3)],
    );
    let attachments = [attachment(1, &[]), attachment(2, &[])];
    let desired = desired(&objects, &attachments);
    assert_eq!(admitted(&desired), (vec!["c1@eth0"], vec!["c2@eth0"]));
    let unknown: Vec<_> = desired.unknown.keys().map(|pod| pod.key.as_str()).collect();
    assert_eq!(unknown, ["shop/p3"], "one that the runtime hasn't named is to be searched for");
    assert_eq!(desired.recorded["c1@eth0"].vips[&vip()].ports, BTreeMap::from([(port(80), 80)]));
    assert!(desired.notes.is_empty(), "{:?}", desired.notes);
}

/// Selects pods with `app=web`.
fn with_policy(mut objects: Objects) -> Objects {
    let equal = Labels::from([("app".into(), "web".into())]);
    objects.policies.insert("shop/deny".into(), Policy { equal, ..Policy::default() });
    objects
}

fn labelled((key, pod): (Key, Pod), app: &str) -> (Key, Pod) {
    (key, Pod { labels: Some(Labels::from([("app".into(), app.into())])), ..pod })
}

/// It is fail closed: whose labels can't be kept, is selected.
#[test]
fn a_pod_that_a_policy_selects_joins_no_vip_and_one_that_is_in_it_drains() {
    let slices = || vec![slice((1..=4).map(|number| endpoint(number, true)).collect())];
    let pods = || [labelled(pod(1), "web"), labelled(pod(2), "web"), labelled(pod(3), "api"), pod(4)];
    let attachments = [
        attachment(1, &[]),
        attachment(2, &[("shop/web", Source::Service), ("shop/own", Source::Annotation)]),
        attachment(3, &[("shop/own", Source::Annotation)]),
        attachment(4, &[]),
    ];
    let found = desired(&with_policy(objects(slices(), pods())), &attachments);
    assert_eq!(admitted(&found), (vec!["c3@eth0"], vec!["c2@eth0"]));
    let blocked: Vec<_> = found.notes[&vip()]
        .iter()
        .filter_map(|note| match note {
            Note::NetworkPolicyBlocks { pod, policy } => Some((pod.as_str(), policy.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(blocked, ["shop/p1", "shop/p2", "shop/p4"].map(|pod| (pod, "shop/deny")));
    let own = "shop/own".parse().unwrap();
    assert_eq!(found.others, BTreeMap::from([(own, BTreeMap::from([("c2@eth0".to_owned(), false)]))]));
    // The policy is gone.
    let mut attachments = attachments;
    attachments[1].vips.values_mut().for_each(|member| member.is_admitted = false);
    let found = desired(&objects(slices(), pods()), &attachments);
    assert_eq!(admitted(&found), (vec!["c1@eth0", "c2@eth0", "c3@eth0", "c4@eth0"], vec![]));
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    assert_eq!(found.others.values().flat_map(BTreeMap::values).collect::<Vec<_>>(), [&true]);
}

/// Where all are blocked nobody gets connections, not even those that end.
#[test]
fn a_policy_leaves_nothing_to_pods_that_end() {
    let ending = Endpoint { is_ready: false, is_serving: true, is_terminating: true, ..endpoint(1, true) };
    let objects = with_policy(objects(vec![slice(vec![ending])], [labelled(pod(1), "web")]));
    let found = desired(&objects, &[attachment(1, &[("shop/web", Source::Service)])]);
    assert_eq!(admitted(&found), (vec![], vec!["c1@eth0"]));
    assert!(found.notes[&vip()].contains(&Note::NoReadyEndpoints));
}

#[test]
fn a_stranger_with_a_used_address_never_joins() {
    let slices = || vec![slice(vec![endpoint(1, true)])];
    let mut other_uid = attachment(1, &[]);
    other_uid.pod.uid = "another".into();
    let mut other_address = attachment(1, &[]);
    other_address.address = Some(address(9));
    for stranger in [other_uid, other_address] {
        let desired = desired(&objects(slices(), [pod(1)]), &[stranger]);
        assert!(desired.recorded.is_empty(), "{desired:?}");
    }
    // The slice is of before: the pod of that name is another one by now, or has another address.
    let (key, mut later) = pod(1);
    later.uid = "u1-again".into();
    let moved = Pod { addresses: vec![address(7)], ..pod(1).1 };
    for pod in [later, moved] {
        let desired = desired(&objects(slices(), [(key.clone(), pod)]), &[attachment(1, &[])]);
        assert!(desired.recorded.is_empty() && desired.unknown.is_empty(), "{desired:?}");
    }
}

#[test]
fn a_static_pod_is_known_by_name_and_address() {
    let (key, mirror) = pod(1);
    let mirror = Pod { is_mirror: true, ..mirror };
    let mut recorded = attachment(1, &[]);
    recorded.pod.uid = "hash-of-its-file".into();
    let found = desired(&objects(vec![slice(vec![endpoint(1, true)])], [(key, mirror)]), &[recorded.clone()]);
    assert_eq!(admitted(&found).0, ["c1@eth0"]);
    let found = desired(&objects(vec![slice(vec![endpoint(1, true)])], [pod(1)]), &[recorded]);
    assert!(admitted(&found).0.is_empty(), "no other pod is");
}

#[test]
fn a_pod_that_ends_drains_before_its_slice_says_so() {
    let ending = |number| {
        let (key, pod) = pod(number);
        (key, Pod { is_ending: true, ..pod })
    };
    let attachments = [attachment(1, &[("shop/web", Source::Service)]), attachment(2, &[])];
    let both = || vec![slice(vec![endpoint(1, true), endpoint(2, true)])];
    let found = desired(&objects(both(), [ending(1), pod(2)]), &attachments);
    assert_eq!(admitted(&found), (vec!["c2@eth0"], vec!["c1@eth0"]));
    // The last ones go on while they answer.
    let found = desired(&objects(both(), [ending(1), ending(2)]), &attachments);
    assert_eq!(admitted(&found).0, ["c1@eth0", "c2@eth0"]);
    // Not where another node has one that is ready.
    let elsewhere = || vec![Slice { ready_elsewhere: true, ..slice(vec![endpoint(1, true)]) }];
    let found = desired(&objects(elsewhere(), [ending(1)]), &attachments);
    assert!(admitted(&found).0.is_empty());
    // Which doesn't count with externalTrafficPolicy: Local.
    let mut local = objects(elsewhere(), [ending(1)]);
    local.services.get_mut("shop/web").unwrap().is_local = true;
    assert_eq!(admitted(&desired(&local, &attachments)).0, ["c1@eth0"]);
    let mut published = objects(both(), [ending(1), pod(2)]);
    published.services.get_mut("shop/web").unwrap().publish_not_ready = true;
    assert_eq!(admitted(&desired(&published, &attachments)).0, ["c1@eth0", "c2@eth0"]);
}

#[test]
fn pods_that_are_over_leave() {
    let (key, over) = pod(1);
    let over = Pod { is_over: true, ..over };
    let attachments = [attachment(1, &[("shop/web", Source::Service)])];
    let found = desired(&objects(vec![slice(vec![endpoint(1, true)])], [(key, over)]), &attachments);
    assert!(found.recorded.is_empty(), "{found:?}");
    assert_eq!(found.notes[&vip()], BTreeSet::from([Note::NoReadyEndpoints]));
}

#[test]
fn a_pod_that_no_slice_names_keeps_its_connections() {
    let attachments = [attachment(1, &[("shop/web", Source::Service)])];
    let relabelled = desired(&objects(vec![slice(vec![])], [pod(1)]), &attachments);
    assert_eq!(admitted(&relabelled), (vec![], vec!["c1@eth0"]));
    let gone = desired(&objects(vec![slice(vec![])], []), &attachments);
    assert!(gone.recorded.is_empty());
    let mut deleted = objects(vec![slice(vec![endpoint(1, true)])], [pod(1)]);
    deleted.services.clear();
    assert!(desired(&deleted, &attachments).recorded.is_empty(), "its Service is gone");
}

#[test]
fn what_others_made_a_replica_stays_theirs() {
    for source in [Source::Annotation, Source::Person] {
        let attachments = [attachment(1, &[("shop/web", source)])];
        let found = desired(&objects(vec![slice(vec![endpoint(1, true)])], [pod(1)]), &attachments);
        assert!(found.recorded.is_empty() && found.notes.is_empty(), "{found:?}");
    }
}

#[test]
fn ports_are_named_by_the_service_and_numbered_by_the_slice() {
    let mut objects = objects(vec![slice(vec![endpoint(1, true)])], [pod(1)]);
    let ports = &mut objects.services.get_mut("shop/web").unwrap().ports;
    ports.push(ServicePort { name: "admin".into(), number: 81, protocol: "TCP".into() });
    ports.push(ServicePort { name: "sctp".into(), number: 82, protocol: "SCTP".into() });
    let found = desired(&objects, &[attachment(1, &[])]);
    let role = &found.recorded["c1@eth0"].vips[&vip()];
    assert_eq!(role.ports, BTreeMap::from([(port(80), 80)]), "a port that no slice names is served by nothing");
    let [Note::PortRefused { port, .. }] = found.notes[&vip()].iter().collect::<Vec<_>>()[..] else {
        panic!("{:?}", found.notes)
    };
    assert_eq!(port, "82/SCTP");
}

#[test]
fn a_port_is_served_by_the_pods_own_number() {
    let numbered =
        |target| super::super::objects::SlicePort { name: "http".into(), target: Some((target, Protocol::Tcp)) };
    let slices = vec![
        Slice { ports: vec![numbered(8080)], ..slice(vec![endpoint(1, true)]) },
        Slice { ports: vec![numbered(9090)], ..slice(vec![endpoint(2, true)]) },
    ];
    let mut objects = objects(slices, [pod(1), pod(2)]);
    let attachments = [attachment(1, &[]), attachment(2, &[])];
    let found = desired(&objects, &attachments);
    let ports = |name: &str| found.recorded[name].vips[&vip()].ports.clone();
    assert_eq!(
        (ports("c1@eth0"), ports("c2@eth0")),
        (BTreeMap::from([(port(80), 8080)]), BTreeMap::from([(port(80), 9090)]))
    );
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    // Two ports may lead to one number of a pod.
    objects.services.get_mut("shop/web").unwrap().ports.push(ServicePort {
        name: "tls".into(),
        number: 443,
        protocol: "TCP".into(),
    });
    for slice in objects.slices.values_mut() {
        let also = super::super::objects::SlicePort { name: "tls".into(), ..slice.ports[0].clone() };
        slice.ports.push(also);
    }
    let found = desired(&objects, &attachments);
    let both = BTreeMap::from([(port(80), 8080), (port(443), 8080)]);
    assert_eq!(found.recorded["c1@eth0"].vips[&vip()].ports, both);
    assert!(found.notes.is_empty(), "{:?}", found.notes);
}

/// Beside shop/web, on its VIP: pods 2 and 3 by their 8443.
fn with_api(mut objects: Objects) -> Objects {
    let tls = ServicePort { name: "tls".into(), number: 443, protocol: "TCP".into() };
    let api = Service { uid: "s2".into(), created: 2, vip: "web".into(), ports: vec![tls], ..Service::default() };
    let ports = vec![super::super::objects::SlicePort { name: "tls".into(), target: Some((8443, Protocol::Tcp)) }];
    let here = vec![endpoint(2, true), endpoint(3, true)];
    objects.slices.insert("shop/api-0".into(), Slice { service: "shop/api".into(), ports, ..slice(here) });
    objects.services.insert("shop/api".into(), api);
    objects
}

fn ports_of(desired: &Desired) -> BTreeMap<&str, Vec<String>> {
    let shown = |role: &Role| role.ports.iter().map(|(port, target)| format!("{port} {target}")).collect();
    desired.recorded.iter().map(|(name, roles)| (name.as_str(), shown(&roles.vips[&vip()]))).collect()
}

#[test]
fn services_that_share_a_vip_have_each_its_own_pods() {
    let both = with_api(objects(vec![slice(vec![endpoint(1, true), endpoint(2, true)])], [pod(1), pod(2), pod(3)]));
    let mut attachments = [1, 2, 3].map(|number| attachment(number, &[]));
    let found = desired(&both, &attachments);
    let expected = [
        ("c1@eth0", vec!["80/tcp 80".to_owned()]),
        ("c2@eth0", vec!["80/tcp 80".to_owned(), "443/tcp 8443".to_owned()]),
        ("c3@eth0", vec!["443/tcp 8443".to_owned()]),
    ];
    assert_eq!(ports_of(&found), expected.into());
    assert_eq!(admitted(&found).0, ["c1@eth0", "c2@eth0", "c3@eth0"]);
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    // The VIP's own Service is gone: its pods leave, the other's go on.
    for attachment in &mut attachments {
        let role = &found.recorded[&attachment.name].vips[&vip()];
        let ports = role.ports.iter().map(|(port, target)| PortMap { port: *port, target: *target }).collect();
        attachment.vips.insert(vip(), Member { source: Source::Service, ports, is_admitted: true });
    }
    let mut alone = both.clone();
    alone.services.remove("shop/web");
    let found = desired(&alone, &attachments);
    assert_eq!(ports_of(&found).keys().copied().collect::<Vec<_>>(), ["c2@eth0", "c3@eth0"]);
    assert_eq!(ports_of(&found)["c2@eth0"], ["443/tcp 8443"]);
}

#[test]
fn a_port_that_an_older_service_has_is_served_by_its_pods_alone() {
    let mut both = with_api(objects(vec![slice(vec![endpoint(1, true)])], [pod(1), pod(2), pod(3)]));
    both.services.get_mut("shop/api").unwrap().ports[0].number = 80;
    let found = desired(&both, &[1, 2, 3].map(|number| attachment(number, &[])));
    assert_eq!(ports_of(&found).keys().copied().collect::<Vec<_>>(), ["c1@eth0"]);
    let notes = &found.notes[&"shop/api".parse().unwrap()];
    assert!(notes.iter().any(|note| matches!(note, Note::PortRefused { port, .. } if port == "80/TCP")), "{notes:?}");
}

#[test]
fn a_named_port_is_served_by_the_pods_that_have_it() {
    let admin = super::super::objects::SlicePort { name: "admin".into(), target: Some((9000, Protocol::Tcp)) };
    let with_admin = slice(vec![endpoint(2, true)]);
    let with_admin = Slice { ports: [with_admin.ports.clone(), vec![admin]].concat(), ..with_admin };
    let mut objects = objects(vec![slice(vec![endpoint(1, true)]), with_admin], [pod(1), pod(2)]);
    let ports = &mut objects.services.get_mut("shop/web").unwrap().ports;
    ports.push(ServicePort { name: "admin".into(), number: 81, protocol: "TCP".into() });
    let found = desired(&objects, &[attachment(1, &[]), attachment(2, &[])]);
    let expected = [
        ("c1@eth0", vec!["80/tcp 80".to_owned()]),
        ("c2@eth0", vec!["80/tcp 80".to_owned(), "81/tcp 9000".to_owned()]),
    ];
    assert_eq!(ports_of(&found), expected.into());
}

#[test]
fn pods_of_the_host_network_are_named_and_join_nothing() {
    let (key, host) = pod(1);
    let host = Pod { is_in_host_network: true, ..host };
    let found = desired(&objects(vec![slice(vec![endpoint(1, true)])], [(key, host)]), &[]);
    assert!(found.unknown.is_empty());
    let notes = &found.notes[&vip()];
    assert!(
        notes.iter().any(|note| matches!(note, Note::PodNotAttachable { pod, .. } if pod == "shop/p1")),
        "{notes:?}"
    );
}

#[test]
fn nodes_are_named_where_load_balancers_are_to_pass_by_all_of_them() {
    let node = |is_excluded| Node { addresses: Vec::new(), is_excluded, ..Node::default() };
    let mut objects = objects(vec![slice(vec![endpoint(1, true)])], [pod(1)]);
    for (nodes, is_said) in [(vec![], false), (vec![true, false], false), (vec![true, true], true)] {
        objects.nodes = nodes.into_iter().enumerate().map(|(n, excluded)| (format!("n{n}"), node(excluded))).collect();
        let found = desired(&objects, &[attachment(1, &[])]);
        assert_eq!(found.notes.contains_key(&vip()), is_said, "{:?}", objects.nodes);
        assert_eq!(admitted(&found).0, ["c1@eth0"], "its pods go on");
    }
}

#[derive(Clone, Debug)]
struct Case {
    endpoints: Vec<(u8, bool, bool, bool)>,
    pods: Vec<(u8, bool, bool, bool)>,
    members: Vec<(u8, bool)>,
    elsewhere: bool,
    publish: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let flags = || (1u8..6, any::<bool>(), any::<bool>(), any::<bool>());
    (
        proptest::collection::vec(flags(), 0..8),
        proptest::collection::vec(flags(), 0..8),
        proptest::collection::vec((1u8..6, any::<bool>()), 0..6),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(endpoints, pods, members, elsewhere, publish)| Case {
            endpoints,
            pods,
            members,
            elsewhere,
            publish,
        })
}

impl Case {
    fn objects(&self) -> Objects {
        let mut slices: Vec<Slice> = Vec::new();
        for (place, (number, ready, serving, terminating)) in self.endpoints.iter().enumerate() {
            let endpoint = Endpoint { is_serving: *serving, is_terminating: *terminating, ..endpoint(*number, *ready) };
            if place % 3 == 0 {
                slices.push(slice(Vec::new()));
            }
            slices.last_mut().unwrap().here.push(endpoint);
        }
        if self.elsewhere {
            slices.push(Slice { ready_elsewhere: true, ..slice(Vec::new()) });
        }
        let pods = self.pods.iter().map(|(number, ending, over, stranger)| {
            let (key, mut pod) = pod(*number);
            (pod.is_ending, pod.is_over) = (*ending, *over);
            if *stranger {
                pod.uid = format!("stranger{number}");
            }
            (key, pod)
        });
        let mut objects = objects(slices, pods.collect::<Vec<_>>());
        objects.services.get_mut("shop/web").unwrap().publish_not_ready = self.publish;
        objects
    }

    fn attachments(&self) -> Vec<Attachment> {
        let members: BTreeMap<u8, bool> = self.members.iter().copied().collect();
        let of = |(number, joined): (&u8, &bool)| {
            let vips = [("shop/web", Source::Service)];
            attachment(*number, if *joined { &vips } else { &[] })
        };
        members.iter().map(of).collect()
    }
}

proptest! {
    #[test]
    fn only_what_agrees_gets_connections(case in case()) {
        let (objects, attachments) = (case.objects(), case.attachments());
        let found = desired(&objects, &attachments);
        let any_ready = case.elsewhere || objects.slices.values().flat_map(|slice| &slice.here).any(|endpoint| {
            let pod = objects.pods.get(&endpoint.pod);
            endpoint.is_ready && pod.is_some_and(|pod| {
                pod.uid == endpoint.uid && !pod.is_over && (!pod.is_ending || case.publish)
            })
        });
        for (name, roles) in &found.recorded {
            let role = &roles.vips[&vip()];
            prop_assert!(!role.ports.is_empty());
            let attachment = attachments.iter().find(|attachment| attachment.name == *name).unwrap();
            let pod = objects.pods.values().find(|pod| pod.uid == attachment.pod.uid);
            prop_assert!(pod.is_some_and(|pod| !pod.is_over), "{name} has no pod that runs");
            if role.is_admitted {
                let of_pod = objects.slices.values().flat_map(|slice| &slice.here);
                let mut of_pod = of_pod.filter(|endpoint| endpoint.uid == attachment.pod.uid);
                prop_assert!(of_pod.any(|endpoint| endpoint.is_ready || endpoint.is_serving));
                prop_assert!(!any_ready || case.publish || pod.is_some_and(|pod| !pod.is_ending));
            }
        }
        for pod in found.unknown.keys() {
            prop_assert!(attachments.iter().all(|attachment| attachment.pod.uid != pod.uid));
        }
    }

    /// The controller moves endpoints from slice to slice, and shows them in both for a while.
    #[test]
    fn a_slice_twice_changes_nothing(case in case()) {
        let (mut objects, attachments) = (case.objects(), case.attachments());
        let once = desired(&objects, &attachments);
        let again: Vec<_> = objects.slices.iter().map(|(key, slice)| (format!("{key}-copy"), slice.clone())).collect();
        objects.slices.extend(again);
        prop_assert_eq!(desired(&objects, &attachments), once);
    }

    /// What is desired, once it is there, is still desired: nothing goes back and forth.
    #[test]
    fn it_comes_to_rest(case in case()) {
        let (objects, mut attachments) = (case.objects(), case.attachments());
        let first = desired(&objects, &attachments);
        for attachment in &mut attachments {
            attachment.vips.clear();
            for (key, role) in first.recorded.get(&attachment.name).into_iter().flat_map(|roles| &roles.vips) {
                let ports = role.ports.iter().map(|(port, target)| PortMap { port: *port, target: *target }).collect();
                let member = Member { source: Source::Service, ports, is_admitted: role.is_admitted };
                attachment.vips.insert(key.clone(), member);
            }
        }
        let second = desired(&objects, &attachments);
        for (name, roles) in &first.recorded {
            prop_assert_eq!(&roles.vips, &second.recorded[name].vips);
        }
    }
}
