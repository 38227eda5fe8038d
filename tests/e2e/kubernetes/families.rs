//! The families of a Service's addresses (`ipFamilies`, `ipFamilyPolicy`).

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{RANGE, Scene, pod_object, service, slice, uid};
use crate::harness::{Connection, Crowd, DhcpServer, KEA_POOL6, LONG, Netns, PORT, Pod, SOON, until};

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
    let service = scene.api.get(&service("s1"));
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
