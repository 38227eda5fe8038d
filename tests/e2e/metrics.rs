//! What Prometheus scrapes, and the health pages.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, listen};
use serde_json::Value;

use crate::harness::{
    Answer, DhcpServer, Join, Lan, Node, Page, RANGE, Run, SOON, Sidecar, connect, get, serve_all, tool, until,
};

const WEB: [(&str, &str); 2] = [("namespace", "shop"), ("vip", "web")];

fn web() -> Join {
    Join::annotated("web").namespace("shop")
}

/// `WEB` and one more label, in the order of their names.
fn labelled(label: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut labels = [WEB.as_slice(), &[(label, value)]].concat();
    labels.sort_unstable();
    labels
}

/// Calls are reported without waiting, so they are counted a moment later.
fn counted(node: &Node, verb: &str, code: &str, count: i64) -> Page {
    until(&format!("{count} calls of {verb} are counted"), SOON, || {
        let page = Page::of(node);
        let labels = [("code", code), ("verb", verb)];
        (page.find("viproute_plugin_calls_total", &labels) == Some(count)).then_some(page)
    })
}

#[test]
fn counts_move_as_they_should() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let _servers = serve_all(&pods);
    let before = counted(&node, "ADD", "0", 2);
    assert_eq!(before.value("viproute_vip_replicas", &labelled("state", "ready")), 2);
    assert_eq!(before.value("viproute_vip_buckets", &WEB), 1024);
    assert_eq!(before.value("viproute_vip_replica_buckets_min", &WEB), 512);
    assert_eq!(before.value("viproute_vip_replica_buckets_max", &WEB), 512);
    assert_eq!(before.value("viproute_leases", &[("state", "bound")]), 1);
    assert_eq!(before.value("viproute_scrape_problems", &[]), 0);
    assert_eq!(before.value("viproute_plugin_call_duration_seconds_count", &[("verb", "ADD")]), 2);
    assert!(before.value("viproute_sync_duration_seconds_count", &[("by", "plugin")]) >= 2);
    assert_eq!(before.value("viproute_health_transitions_total", &labelled("to", "ready")), 0);
    connect(&client, pods[0].vip(), 100);
    let after = Page::of(&node);
    for way in ["in", "out"] {
        let of = |page: &Page, name| page.value(name, &labelled("direction", way));
        let packets = of(&after, "viproute_vip_packets_total") - of(&before, "viproute_vip_packets_total");
        let bytes = of(&after, "viproute_vip_bytes_total") - of(&before, "viproute_vip_bytes_total");
        assert!(packets >= 300 && bytes >= 300 * 60, "100 connections {way}: {packets} packets, {bytes} bytes");
    }
    let owned = |page: &Page| page.value("viproute_flow_owner_packets_total", &labelled("outcome", "local_hit"));
    assert!(owned(&after) > owned(&before));

    // One that has never joined; no route is deleted with it, which would be repaired.
    let stranger = node.pod();
    *stranger.result.lock().unwrap() = Some(stranger.base.lock().unwrap().clone());
    assert_eq!(node.check(&stranger, &web()).error().code, 106);
    node.check(&pods[0], &web()).ok();
    counted(&node, "CHECK", "106", 1);
    counted(&node, "CHECK", "0", 1);

    connect(&client, pods[0].vip(), 100);
    node.remove(&pods[0], &web());
    let left = counted(&node, "DEL", "0", 1);
    assert_eq!(left.value("viproute_vip_replicas", &labelled("state", "ready")), 1);
    let packets = |page: &Page| page.value("viproute_vip_packets_total", &labelled("direction", "in"));
    // As many as before, of which one pod had about half; it was not scraped between these and its end.
    let (first, second) = (packets(&after) - packets(&before), packets(&left) - packets(&after));
    assert!(second >= first * 3 / 4, "what a replica counted in the end is missing: {second} after {first}");
    for (name, value) in after.counters() {
        assert!(left.counters().get(name).is_some_and(|now| *now >= value), "{name} was {value}\n{}", left.text);
    }
    connect(&client, pods[1].vip(), 10);
    assert!(packets(&Page::of(&node)) >= packets(&left) + 30, "the one that stays goes on counting");
    node.remove(&pods[1], &web());
    let gone = counted(&node, "DEL", "0", 2);
    assert_eq!(gone.find("viproute_vip_replicas", &labelled("state", "ready")), None);
    assert_eq!(gone.find("viproute_health_transitions_total", &labelled("to", "ready")), None);
}

/// The page of a busy node, by DHCP.
#[test]
fn the_page_is_accepted_and_has_what_the_dashboard_shows() {
    let lan = Lan::new();
    let _server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    let pods = [node.joined(&web()), node.joined(&web())];
    let client = lan.client(50, &[&format!("{} via 192.0.2.1", pods[0].vip())]);
    let _servers = serve_all(&pods);
    connect(&client, pods[0].vip(), 10);
    let page = counted(&node, "ADD", "0", 2);
    let verdict = Command::new(tool("promtool")).args(["check", "metrics"]).finish(&page.text);
    assert!(verdict.status.success() && verdict.stdout.is_empty() && verdict.stderr.is_empty(), "{verdict:?}");
    assert_eq!(page.value("viproute_build_info", &[("version", viproute::RELEASE)]), 1);
    assert!(page.value("viproute_dhcp_messages_total", &[("direction", "received"), ("type", "ack")]) >= 1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let expiry = page.value("viproute_lease_expiry_timestamp_seconds", &WEB) - i64::try_from(now).unwrap();
    assert!((400..=600).contains(&expiry), "ten minutes: {expiry}");

    let dashboard = include_str!("../../conf/grafana.json");
    let dashboard: Value = serde_json::from_str(dashboard).expect("the dashboard is JSON");
    let mut used = BTreeSet::new();
    names(&dashboard, &mut used);
    // Those of pools are on the page of a node that has some (kubernetes/pools.rs).
    used.retain(|name| !name.starts_with("viproute_pool_"));
    assert!(used.len() > 10, "{used:?}");
    let families = page.families();
    for name in used {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let known = families.contains(&name.as_str()) || stem.is_some_and(|stem| families.contains(&stem));
        assert!(known, "the dashboard's {name} isn't on the page:\n{}", page.text);
    }
}

/// Every metric of ours that an expression of the dashboard names.
fn names(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.values().for_each(|value| names(value, found)),
        Value::Array(array) => array.iter().for_each(|value| names(value, found)),
        Value::String(text) => {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            found.extend(words.filter(|word| word.starts_with("viproute_")).map(str::to_owned));
        }
        _ => {}
    }
}

#[test]
fn health_pages_say_what_is_wrong() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::dhcp(&node, "");
    for path in ["/healthz", "/readyz"] {
        let answer = get(&node, path);
        assert_eq!((answer.status, &*answer.body), (200, "ok\n"), "{path}");
    }
    node.ns.ip("link set eth0 down");
    let answer = get(&node, "/readyz");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("no address can be asked for: eth0 is down"), "{answer:?}");
    assert_eq!(get(&node, "/healthz").status, 200, "that is nothing a restart cures");
    node.ns.ip("link set eth0 up");
    assert_eq!(get(&node, "/readyz").status, 200);
}

/// A TCP address beside the socket; nonsense, silence and floods on both, and a client that behaves.
#[test]
fn bad_clients_disturb_nobody() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
    let _sidecar = Sidecar::start(&node, &format!("metrics_listen = \"192.0.2.1:9118\"\n{pool}"));
    let address = SocketAddr::from(([192, 0, 2, 1], 9118));
    let tcp = || node.ns.run(|| TcpStream::connect(address)).expect("connect by TCP");
    let unix = || UnixStream::connect(node.metrics()).expect("connect to the socket");
    let page = Answer::of(tcp(), "GET", "/metrics");
    assert!(page.status == 200 && page.body.contains("viproute_build_info"), "{page:?}");
    assert!(page.head.contains("content-type: text/plain; version=0.0.4"), "{page:?}");
    let head = Answer::of(tcp(), "HEAD", "/metrics");
    assert_eq!((head.status, &*head.body), (200, ""));
    let post = Answer::of(unix(), "POST", "/metrics");
    assert!(post.status == 405 && post.head.to_lowercase().contains("allow: get, head"), "{post:?}");
    for path in ["/", "/metrics/", "/metric", "/../etc/passwd"] {
        assert_eq!(Answer::of(unix(), "GET", path).status, 404, "{path}");
    }

    // A scrape that has just begun, and a hundred newcomers behind it: again where those took longer than a scrape is given.
    let silent = until("those that were there first have their page", SOON, || {
        let (mut early_tcp, mut early_unix) = (tcp(), unix());
        early_tcp.write_all(b"GET /metr").ok()?;
        early_unix.write_all(b"GET /metr").ok()?;
        let silent: Vec<_> = (0..100).map(|_| (tcp(), unix())).collect();
        let pages = [rest_of(&mut early_tcp), rest_of(&mut early_unix)];
        pages.iter().all(|page| page.starts_with("HTTP/1.1 200")).then_some(silent)
    });
    for (tcp, unix) in &silent[..50] {
        let _ = { tcp }.write_all(b"GET /metrics HT");
        let _ = { unix }.write_all(b"GET /metrics HT");
    }
    let mut nonsense = tcp();
    let _ = nonsense.write_all(&vec![0xff; 100_000]);
    let mut rest = Vec::new();
    let _ = nonsense.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "{rest:?}");
    // Newcomers are let in again as soon as those before them have had a second.
    until("a page by TCP", SOON, || has_page(tcp()).then_some(()));
    until("a page by the socket", SOON, || has_page(unix()).then_some(()));
    assert_eq!(get(&node, "/readyz").status, 200);
    node.joined(&web());
    // Those that were there first have had their time: each is closed, by and by.
    let (tcp, unix) = &silent[0];
    assert_eq!(({ tcp }.read(&mut [0; 1]).unwrap_or(0), { unix }.read(&mut [0; 1]).unwrap_or(0)), (0, 0));
}

/// Ends a request that begins with `GET /metr`.
fn rest_of(stream: &mut (impl Read + Write)) -> String {
    let _ = stream.write_all(b"ics HTTP/1.1\r\nHost: node\r\n\r\n");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// Whether a page is given, or the connection closed.
fn has_page(mut stream: impl Read + Write) -> bool {
    let _ = stream.write_all(b"GET /metr");
    rest_of(&mut stream).starts_with("HTTP/1.1 200")
}

/// A socket whose owner hangs, its queue full: the plugin doesn't even wait to be let in.
#[test]
fn a_call_is_told_without_waiting() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&web());
    node.stop_allocator();
    std::fs::remove_file(node.socket()).unwrap();
    let listener = UnixListener::bind(node.socket()).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    until("the queue is full", SOON, || {
        let stream = knock(&node.socket());
        let full = stream.is_none();
        waiting.extend(stream);
        full.then_some(())
    });
    node.check(&pod, &web()).ok();
}

/// A connection that isn't waited for; none where the queue is full.
fn knock(path: &str) -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    match nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()) {
        Ok(()) => Some(fd),
        Err(Errno::EAGAIN) => None,
        Err(error) => panic!("connect: {error}"),
    }
}
