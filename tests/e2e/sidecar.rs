//! `viprouted` with a pool: what is said over its socket, and what it remembers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Join, LONG, Lan, Node, PATIENCE, SOON, Sidecar, ask, connect, scaled, serve_all, until};

const POOL: &str = "10.118.0.0/24";

fn web() -> Join {
    Join::annotated("web")
}

fn leases(sidecar: &Sidecar) -> Vec<Value> {
    sidecar.ask(&json!({ "leases": {} }))["leases"].as_array().expect("a list of leases").clone()
}

#[test]
fn pods_get_addresses_of_the_pool_and_requests_reach_them() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, POOL);
    let client = lan.client(50, &["10.118.0.0/24 via 192.0.2.1"]);
    let pods = [node.joined(&web()), node.joined(&web())];
    let api = node.joined(&Join::annotated("api"));
    assert_eq!(pods[0].vip(), pods[1].vip());
    assert_ne!(pods[0].vip(), api.vip());
    let _servers = serve_all(&pods);
    assert_eq!(connect(&client, pods[0].vip(), 100).names.len(), 2);
    node.status(&web().strict()).ok();
}

#[test]
fn the_same_vip_gets_the_same_address_and_others_get_others() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let first = sidecar.acquire("shop/web").unwrap();
    assert_eq!(sidecar.acquire("shop/web").unwrap(), first);
    assert_ne!(sidecar.acquire("blog/web").unwrap(), first);
    let entries = leases(&sidecar);
    let names: Vec<_> = entries.iter().map(|lease| lease["vip"].as_str().unwrap()).collect();
    assert_eq!(names, ["blog/web", "shop/web"]);
    assert_eq!(entries[1]["address"], json!(first.to_string()));
    assert_eq!(sidecar.status("shop/web").unwrap()["state"], "bound");
}

#[test]
fn two_hundred_vips_at_once() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let limits = "[limits]\nvips_per_namespace = 200";
    let sidecar = Sidecar::start(&node, &format!("backend = \"pool\"\n[pool]\ncidr = \"{POOL}\"\n{limits}"));
    let addresses: BTreeSet<_> = thread::scope(|scope| {
        let ask = |number| sidecar.acquire(&format!("default/vip-{number}"));
        let asking: Vec<_> = (0..200).map(|number| scope.spawn(move || ask(number))).collect();
        asking.into_iter().map(|one| one.join().expect("a caller").expect("an address")).collect()
    });
    assert_eq!(addresses.len(), 200, "an address of its own for each");
    assert_eq!(leases(&sidecar).len(), 200);
}

#[test]
fn a_pool_that_is_used_up_says_so() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/29\"\nexclude = [\"10.118.0.1\", \"10.118.0.2\"]";
    let sidecar = Sidecar::start(&node, settings);
    let mut given: Vec<_> =
        (0..4).map(|number| sidecar.acquire(&format!("default/v{number}")).unwrap().octets()[3]).collect();
    given.sort_unstable();
    assert_eq!(given, [3, 4, 5, 6], "neither the excluded ones nor network and broadcast");
    let error = sidecar.acquire("default/v4").unwrap_err();
    assert_eq!(error.code, 11, "{error:?}");
    assert!(error.msg.contains("10.118.0.0/29"), "the pool is named: {error:?}");
    let pod = node.pod();
    assert_eq!(node.add(&pod, &web()).error().code, 11);
    assert_eq!(node.records(), Vec::<String>::new());
}

#[test]
fn a_pin_is_kept_and_nobody_else_gets_it() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let settings = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/30\"\n\
                    [[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.1\"\n\
                    [[pin]]\nvip = \"default/far\"\naddress = \"10.99.0.1\"";
    let sidecar = Sidecar::start(&node, settings);
    assert_eq!(sidecar.acquire("default/api").unwrap().to_string(), "10.118.0.2");
    assert_eq!(sidecar.acquire("default/late").unwrap_err().code, 11, "the other one is pinned");
    assert_eq!(sidecar.acquire("default/web").unwrap().to_string(), "10.118.0.1");
    assert_eq!(sidecar.acquire("default/far").unwrap().to_string(), "10.99.0.1");
}

/// Addresses outlive it, whether it is asked to stop or killed, and what it served goes on meanwhile.
#[test]
fn a_restart_changes_nothing() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let mut sidecar = Sidecar::pool(&node, POOL);
    let client = lan.client(50, &["10.118.0.0/24 via 192.0.2.1"]);
    let pods = [node.joined(&web())];
    let _servers = serve_all(&pods);
    let vip = pods[0].vip();
    let held = sidecar.acquire("default/held").unwrap();
    let before = (node.snapshot(&[&pods[0]]), leases(&sidecar).len());
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if signal == Signal::SIGTERM {
            sidecar.stop();
        } else {
            drop(sidecar);
        }
        connect(&client, vip, 10);
        before.0.assert_same(&node.snapshot(&[&pods[0]]), "the end of viprouted");
        sidecar = Sidecar::pool(&node, POOL);
        assert_eq!(sidecar.acquire("default/web").unwrap(), vip, "after {signal}");
        assert_eq!(sidecar.acquire("default/held").unwrap(), held, "after {signal}");
        assert_eq!(leases(&sidecar).len(), before.1, "after {signal}");
        before.0.assert_same(&node.snapshot(&[&pods[0]]), "a restart of viprouted");
    }
    node.remove(&pods[0], &web());
    assert_eq!(node.joined(&web()).vip(), vip, "held for a while after the last replica");
}

/// The last DEL is noticed even by a sidecar that was away; the lease goes when its time is over.
#[test]
fn a_lease_ends_after_its_last_replica() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let settings = "hold = \"1s\"\nbackend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"";
    let sidecar = Sidecar::start(&node, settings);
    let (told, untold, kept) =
        (node.joined(&web()), node.joined(&Join::annotated("untold")), node.joined(&Join::annotated("kept")));
    let start = Instant::now();
    node.remove(&told, &web());
    until("the end of the last replica is noticed", SOON, || {
        let entry = leases(&sidecar).into_iter().find(|lease| lease["vip"] == "default/web")?;
        (!entry["left"].is_null()).then_some(())
    });
    sidecar.stop();
    node.remove(&untold, &Join::annotated("untold"));
    let sidecar = Sidecar::start(&node, settings);
    // However short `hold` is: a lease stays for a minute after a call for it, as its replica registers only then.
    until("leases nobody uses are gone", LONG, || {
        let names: Vec<_> = leases(&sidecar).iter().map(|lease| lease["vip"].clone()).collect();
        (names == ["default/kept"]).then_some(())
    });
    assert!(start.elapsed() > Duration::from_secs(1));
    node.check(&kept, &Join::annotated("kept")).ok();
}

#[test]
fn status_is_50_while_it_is_stopped() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    assert_eq!(node.status(&web().strict()).error().code, 50);
    let sidecar = Sidecar::pool(&node, POOL);
    node.status(&web().strict()).ok();
    sidecar.stop();
    assert_eq!(node.status(&web().strict()).error().code, 50);
}

#[test]
fn the_socket_is_roots_alone() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let mode = std::fs::metadata(node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(sidecar);
}

#[test]
fn a_second_one_on_the_same_socket_gives_up() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let mut second = crate::harness::Daemon::start(
        "second",
        node.ns.cmd(env!("CARGO_BIN_EXE_viprouted")).arg("--config").arg(node.dir.file("viprouted.toml")),
        &node.dir,
    );
    until("the second one has ended", SOON, || second.ended().then_some(()));
    assert!(!second.log().is_empty(), "it says why");
    sidecar.acquire("default/web").unwrap();
}

/// Each on a connection of its own, and one that behaves beside them.
#[test]
fn clients_that_talk_nonsense_disturb_nobody() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let socket = node.socket();
    let code =
        |line: &str| ask(&socket, line).unwrap_or_else(|error| panic!("{line}: {error}"))["error"]["code"].clone();
    for line in
        ["", "no JSON", "{}", "[]", "null", r#"{"acquire": {}}"#, r#"{"unheard-of": {}}"#, "{\"acquire\": {\"vip\""]
    {
        assert_eq!(code(line), 6, "{line}");
    }
    for vip in ["web", "shop/", "Shop/Web", "../../etc", "a/b/c", "shop/we b"] {
        let request = json!({ "acquire": { "vip": vip, "pod": "10.1.1.2", "node": "192.0.2.1" } });
        assert_eq!(code(&request.to_string()), 7, "{vip}");
    }
    let mut idle = Vec::new();
    for bytes in [b"{\"acq".to_vec(), vec![0xff, 0xfe, 0, 1], vec![b'x'; 1 << 20]] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        // It may close the connection of a client that sends a megabyte without a line's end.
        let _ = stream.write_all(&bytes);
        idle.push(stream);
    }
    idle.extend((0..100).map(|_| UnixStream::connect(&socket).unwrap()));
    let start = Instant::now();
    sidecar.acquire("default/web").unwrap();
    let _pod = node.joined(&web());
    assert!(start.elapsed() < Duration::from_secs(5), "nobody waits for the others: {:?}", start.elapsed());
    let mut huge = UnixStream::connect(&socket).unwrap();
    huge.set_read_timeout(Some(scaled(SOON))).unwrap();
    let _ = huge.write_all(format!("{{\"status\": \"{}\"}}\n", "y".repeat(1 << 20)).as_bytes());
    let mut reply = String::new();
    let _ = huge.read_to_string(&mut reply);
    assert!(reply.is_empty() || reply.contains("\"error\""), "refused, or hung up on: {reply}");
    drop(idle);
    assert_eq!(leases(&sidecar).len(), 1, "none of it was taken for a request");
}

/// 100 MB on one connection, with and without a line's end, and connections that say nothing or half a line: others are
/// served, and it keeps none of it in memory.
#[test]
fn clients_that_send_too_much_or_nothing_disturb_nobody() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let sidecar = Sidecar::pool(&node, POOL);
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(node.socket()).unwrap()).collect();
    for (at, mut stream) in silent.iter().enumerate() {
        if at % 2 == 0 {
            stream.write_all(b"{\"acquire\": {\"vip\": \"default/half\", ").unwrap();
        }
    }
    thread::scope(|scope| {
        let flood = |byte: u8| {
            let (socket, chunk) = (node.socket(), vec![byte; 1 << 16]);
            scope.spawn(move || {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.set_write_timeout(Some(scaled(PATIENCE))).unwrap();
                let taken = (0..1600).take_while(|_| stream.write_all(&chunk).is_ok()).count();
                assert!(taken < 1600, "100 MB were taken");
            })
        };
        let floods = [flood(b'x'), flood(0), flood(b'\n')];
        for number in 0..20 {
            let start = Instant::now();
            sidecar.acquire(&format!("default/v{number}")).unwrap();
            assert!(start.elapsed() < Duration::from_secs(8), "the plugin would have given up");
        }
        for flood in floods {
            flood.join().unwrap();
        }
    });
    let memory = sidecar.daemon.memory();
    assert!(memory < 64 << 20, "{memory} bytes");
    assert_eq!(leases(&sidecar).len(), 20, "half a line is no request");
}

/// Several requests on one connection, each answered in its turn; after a line that is none it hangs up.
#[test]
fn a_connection_serves_for_more_than_one_request() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, POOL);
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(scaled(SOON))).unwrap();
    stream.write_all(b"{\"leases\":{}}\n{\"status\":{}}\nrubbish\n{\"leases\":{}}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    let replies: Vec<Value> = replies.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(replies.len(), 3, "{replies:?}");
    assert!(replies[0]["leases"].is_array() && replies[1]["backend"] == "pool" && replies[2]["error"]["code"] == 6);
}

#[test]
fn a_bad_configuration_is_refused_by_key() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    for (settings, named) in [
        ("backend = \"magic\"", "backend"),
        ("holdd = \"10m\"", "holdd"),
        ("backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/33\"", "cidr"),
        ("not toml", "TOML"),
    ] {
        let config = node.dir.file("bad.toml");
        std::fs::write(&config, settings).unwrap();
        let mut command = node.ns.cmd(env!("CARGO_BIN_EXE_viprouted"));
        let finished = crate::harness::Run::finish(command.arg("--config").arg(&config), "");
        assert!(!finished.status.success(), "{settings}: {finished:?}");
        assert!(finished.stderr.contains(named) && !finished.stderr.contains("panicked"), "{settings}: {finished:?}");
    }
}
