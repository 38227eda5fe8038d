//! The families of a Service's addresses (`ipFamilies`, `ipFamilyPolicy`).

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{RANGE, Scene, pod_object, registered, service, slice, uid};
use crate::harness::{
    Connection, Crowd, DhcpServer, KEA_POOL6, KubeApi, LONG, Lan, Netns, Node, PORT, Pod, Run, SOON, Sidecar, TempDir,
    quiet, until,
};
use crate::nodes::new_key;

const BOTH: &str = "cidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";
/// A connection that isn't taken is refused, or isn't answered at all.
const UNANSWERED: Duration = Duration::from_millis(700);

/// default/web of these families, whose pods have the number of its port.
fn of(families: &[&str], policy: &str) -> Value {
    let mut service = service("s1");
    service["spec"]["ports"][0]["port"] = json!(PORT);
    service["spec"]["ipFamilies"] = json!(families);
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service
}

/// The same Service as it is now, with other families.
fn becomes(scene: &Scene, families: &[&str], policy: &str) {
    let mut object = scene.api.get(&service("s1"));
    object["spec"]["ipFamilies"] = json!(families);
    object["spec"]["ipFamilyPolicy"] = json!(policy);
    scene.api.set(&object);
}

fn addresses(scene: &Scene) -> Vec<String> {
    addresses_of(&scene.api)
}

fn addresses_of(api: &KubeApi) -> Vec<String> {
    let service = api.get(&service("s1"));
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress.iter().filter_map(|entry| entry["ip"].as_str().map(str::to_owned)).collect()
}

fn says(scene: &Scene, expected: &[&str]) {
    until(&format!("the status says {expected:?}"), SOON, || (addresses(scene) == expected).then_some(()));
}

/// With servers of both families in its pods, and a client that has both.
fn dual(pods: usize, pool: &str) -> (Scene, Netns, Vec<Crowd>) {
    let mut scene = Scene::with(pods, pool, |_| {});
    scene.lan.add_ipv6(&scene.node.ns, 1);
    let client = scene.lan.client(50, &[&format!("{RANGE} via {}", scene.node.address())]);
    scene.lan.add_ipv6(&client, 50);
    client.ip("route add fd00:118::/96 via 2001:db8::1");
    scene.pods.iter_mut().for_each(|(_, server)| drop(server.take()));
    let servers = scene.pods.iter().map(|(pod, _)| Crowd::of_both(pod, PORT)).collect();
    (scene, client, servers)
}

fn name(from: &Netns, address: &str) -> Option<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), PORT);
    let stream = from.run(|| TcpStream::connect_timeout(&to, UNANSWERED)).ok()?;
    Some(Connection::over(stream).ok()?.ask().ok()?.name)
}

fn is_answered(from: &Netns, address: &str) {
    until(&format!("{address} is answered"), SOON, || name(from, address));
}

fn is_silent(from: &Netns, address: &str) {
    until(&format!("{address} is not answered"), SOON, || name(from, address).is_none().then_some(()));
    assert_eq!(name(from, address), None, "{address}");
}

const FOUR: &str = "10.118.0.1";
const SIX: &str = "fd00:118::a76:1";

#[test]
fn a_service_is_answered_at_the_addresses_of_its_families() {
    let (scene, client, _servers) = dual(2, BOTH);
    scene.api.set(&of(&["IPv6", "IPv4"], "RequireDualStack"));
    scene.serve(&[(0, true), (1, true)]);
    says(&scene, &[SIX, FOUR]);
    scene.waits_for(&[(0, "ready"), (1, "ready")]);
    is_answered(&client, FOUR);
    is_answered(&client, SIX);
    // Of one family: the other address is nobody's, also for who knows it.
    becomes(&scene, &["IPv4"], "SingleStack");
    says(&scene, &[FOUR]);
    is_silent(&client, SIX);
    is_answered(&client, FOUR);
    assert!(!scene.node.ns.ip("-6 route show proto 118").contains(SIX), "no route");
    becomes(&scene, &["IPv4", "IPv6"], "PreferDualStack");
    says(&scene, &[FOUR, SIX]);
    is_answered(&client, SIX);
    scene.ends();
}

/// Its pods are known by slices of that family alone.
#[test]
fn a_service_of_ipv6_alone_has_that_address_and_slices() {
    let (scene, client, _servers) = dual(1, BOTH);
    let own = |pod: &Pod| format!("fd00:1:1::{}", pod.address().octets()[3]);
    let mut object = pod_object(scene.pod(0), &json!({}));
    object["status"]["podIPs"] = json!([{ "ip": scene.pod(0).address() }, { "ip": own(scene.pod(0)) }]);
    scene.api.set(&object);
    let mut slice = slice(&[(scene.pod(0), true)]);
    slice["addressType"] = json!("IPv6");
    slice["endpoints"][0]["addresses"] = json!([own(scene.pod(0))]);
    assert_eq!(slice["endpoints"][0]["targetRef"]["uid"], json!(uid(scene.pod(0))));
    scene.api.set(&of(&["IPv6"], "SingleStack"));
    scene.api.set(&slice);
    says(&scene, &[SIX]);
    scene.waits_for(&[(0, "ready")]);
    is_answered(&client, SIX);
    is_silent(&client, FOUR);
    scene.ends();
}

#[test]
fn without_ipv6_who_prefers_both_gets_one_and_who_needs_both_waits() {
    let (scene, client, _servers) = dual(1, "cidr = \"10.118.0.0/24\"");
    scene.api.set(&of(&["IPv4", "IPv6"], "PreferDualStack"));
    scene.serve(&[(0, true)]);
    says(&scene, &[FOUR]);
    scene.is_told("NoAddressOfFamily", "no address of ipv6");
    is_answered(&client, FOUR);
    becomes(&scene, &["IPv4", "IPv6"], "RequireDualStack");
    scene.is_told("NoAddress", "no address so far, and no pod serves it: its VIP has none of ipv6");
    says(&scene, &[]);
    is_silent(&client, FOUR);
    becomes(&scene, &["IPv4"], "SingleStack");
    says(&scene, &[FOUR]);
    is_answered(&client, FOUR);
    scene.ends();
}

/// By a lease of its own: it may come later than the other address, and who needs both waits for it.
#[test]
fn an_address_of_ipv6_may_be_leased() {
    let (scene, client, _servers) = dual(1, "cidr = \"10.118.0.0/24\"\n[dhcp6]");
    scene.api.set(&of(&["IPv6", "IPv4"], "RequireDualStack"));
    scene.serve(&[(0, true)]);
    scene.is_told("NoAddress", "its VIP has none of ipv6");
    says(&scene, &[]);
    let _server = DhcpServer::kea6(&scene.lan, 600, KEA_POOL6);
    let leased = until("an address is leased", LONG, || addresses(&scene).first().cloned());
    assert!(leased.starts_with("2001:db8::1"), "{leased}");
    says(&scene, &[&leased, FOUR]);
    client.ip(&format!("route add {leased}/128 via 2001:db8::1"));
    is_answered(&client, &leased);
    becomes(&scene, &["IPv4"], "SingleStack");
    says(&scene, &[FOUR]);
    is_silent(&client, &leased);
    becomes(&scene, &["IPv4", "IPv6"], "PreferDualStack");
    says(&scene, &[FOUR, &leased]);
    is_answered(&client, &leased);
    scene.ends();
}

/// It isn't answered by the other family in the place of its own.
#[test]
fn without_ipv6_a_service_of_ipv6_alone_is_not_answered() {
    let (scene, client, _servers) = dual(1, "cidr = \"10.118.0.0/24\"");
    scene.api.set(&of(&["IPv4"], "SingleStack"));
    scene.serve(&[(0, true)]);
    says(&scene, &[FOUR]);
    is_answered(&client, FOUR);
    becomes(&scene, &["IPv6"], "SingleStack");
    scene.is_told("NoAddress", "no address so far, and no pod serves it: its VIP has none of ipv6");
    says(&scene, &[]);
    is_silent(&client, FOUR);
    let routes = scene.node.ns.ip("route show proto 118");
    assert!(!routes.contains(FOUR), "{routes}");
    becomes(&scene, &["IPv4"], "SingleStack");
    is_answered(&client, FOUR);
    scene.ends();
}

/// A list of one family's ranges says nothing good of the other's clients.
#[test]
fn ranges_of_clients_are_of_their_family() {
    let (scene, client, _servers) = dual(1, BOTH);
    let mut listing = of(&["IPv4", "IPv6"], "RequireDualStack");
    listing["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.0/24"]);
    scene.api.set(&listing);
    scene.serve(&[(0, true)]);
    says(&scene, &[FOUR, SIX]);
    is_answered(&client, FOUR);
    is_silent(&client, SIX);
    let set = |ranges: Value| {
        let mut object = scene.api.get(&service("s1"));
        object["spec"]["loadBalancerSourceRanges"] = ranges;
        scene.api.set(&object);
    };
    set(json!(["2001:db8::30/124"])); // the client is ::32
    is_answered(&client, SIX);
    is_silent(&client, FOUR);
    set(json!(["2001:db8::40/124", "0.0.0.0/0"]));
    is_silent(&client, SIX);
    is_answered(&client, FOUR);
    set(Value::Null);
    is_answered(&client, SIX);
    scene.ends();
}

/// Where a server takes one family only, it is a replica all the same, and the other family's clients are refused.
#[test]
fn a_server_of_one_family_serves_that() {
    let (scene, client, mut servers) = dual(1, BOTH);
    servers.clear();
    let _server = Crowd::on(scene.pod(0), PORT);
    scene.api.set(&of(&["IPv4", "IPv6"], "RequireDualStack"));
    scene.serve(&[(0, true)]);
    says(&scene, &[FOUR, SIX]);
    scene.waits_for(&[(0, "ready")]);
    is_answered(&client, FOUR);
    is_silent(&client, SIX);
    scene.waits_for(&[(0, "ready")]);
    assert!(!scene.api.reasons().contains(&"NotListening".to_owned()), "{:?}", scene.api.reasons());
    scene.ends();
}

/// A node of several that know each other, with a pod that the runtime has named, and a server of both families in it.
struct Member {
    _server: Crowd,
    sidecar: Sidecar,
    pod: Pod,
    node: Node,
}

impl Member {
    fn new(node: Node, api: &KubeApi, key: &str) -> Self {
        let name = format!("n{}", node.address().octets()[3]);
        let settings = format!(
            "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]\n\
             [membership]\nseeds = [\"192.0.2.1\", \"192.0.2.2\"]\nkey_file = {key:?}\nname = {name:?}\n{}",
            KubeApi::settings_of(&node, &name, &api.at.to_string())
        );
        let sidecar = Sidecar::start(&node, &settings);
        let mut pod = node.pod();
        pod.name = format!("on-{name}");
        node.add(&pod, &registered()).ok();
        let mut object = pod_object(&pod, &json!({}));
        object["spec"]["nodeName"] = json!(name);
        api.set(&object);
        Self { _server: Crowd::of_both(&pod, PORT), sidecar, pod, node }
    }

    /// What it does about the VIP, as far as it is told: its log without what is said of DHCP's tries.
    fn works(&self) -> Vec<String> {
        let log = self.sidecar.daemon.log();
        log.lines().filter(|line| line.contains("default/web")).map(str::to_owned).collect()
    }

    /// For what the Service waits, as this node sees it, and the VIP's leases that it keeps for that.
    fn waits(&self) -> (Value, usize) {
        let [services, leases] = ["kubernetes", "leases"].map(|asked| self.sidecar.ask(&json!({ asked: {} })));
        let leases = leases["leases"].as_array().cloned().unwrap_or_default();
        let kept = leases.iter().filter(|lease| lease["left"].is_null()).count();
        (services["services"][0]["waits"].clone(), kept)
    }

    fn events(&self) -> String {
        self.node.ctl().args(["events", "--vip", "default/web"]).finish("").stdout
    }
}

/// One of them asks for the addresses, and the other waits for what it says; none does anything again and again meanwhile.
#[test]
fn nodes_that_know_each_other_wait_for_ipv6_and_serve_it_together() {
    let (lan, dir) = (Lan::new(), TempDir::new());
    let nodes = [1, 2].map(|number| Node::without_allocator(&lan, number));
    for (node, number) in nodes.iter().zip([1, 2]) {
        lan.add_ipv6(&node.ns, number);
    }
    let (api, key) = (KubeApi::start_at(&nodes[0], nodes[0].address().into()), new_key(&dir, "membership.key"));
    let members = nodes.map(|node| Member::new(node, &api, &key));
    api.set(&of(&["IPv6", "IPv4"], "RequireDualStack"));
    let mut endpoints = slice(&[(&members[0].pod, true), (&members[1].pod, true)]);
    endpoints["endpoints"][1]["nodeName"] = json!("n2");
    api.set(&endpoints);
    until("an Event says what is missing", SOON, || {
        api.events().iter().any(|(reason, note)| reason == "NoAddress" && note.contains("none of ipv6")).then_some(())
    });
    let waiting = || {
        for member in &members {
            let both = (json!("its VIP has no address of IPv6"), 1);
            until("each node knows what is missing", SOON, || (member.waits() == both).then_some(()));
        }
    };
    waiting();
    let said = || members.each_ref().map(|member| (member.works(), member.events()));
    quiet("what both do about the VIP", || (said(), api.writes()));
    // Whatever happens meanwhile.
    for port in 9001..9004 {
        let more = json!({ "name": "more", "port": port, "protocol": "TCP" });
        endpoints["ports"].as_array_mut().expect("ports").push(more);
        api.set(&endpoints);
        waiting();
    }
    for member in &members {
        assert!(member.pod.vips().is_empty(), "{:?}", member.works());
    }
    let _server = DhcpServer::kea6(&lan, 600, KEA_POOL6);
    let leased = until("an address is leased", LONG, || addresses_of(&api).first().cloned());
    assert_eq!(addresses_of(&api)[1..], [FOUR.to_owned()], "with that of IPv4");
    let client = lan.client(50, &[&format!("{RANGE} via 192.0.2.1")]);
    lan.add_ipv6(&client, 50);
    client.ip(&format!("route add {leased}/128 via 2001:db8::2"));
    for address in [leased.as_str(), FOUR] {
        for member in &members {
            let mut is_its = || name(&client, address).filter(|name| *name == member.pod.name);
            until(&format!("{} answers at {address}", member.pod.name), SOON, &mut is_its);
        }
    }
    quiet("what both do about the VIP that they serve", || (said(), api.writes()));
}
