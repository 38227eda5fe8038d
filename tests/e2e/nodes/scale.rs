//! What many nodes cost: the figures of docs/scale.md. `VIPROUTE_NODES=64` and `VIPROUTE_LEGS=4000` make measurements of them.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Member, Scene, web};
use crate::harness::{FarReplicas, LONG, Lan, Node, PATIENCE, Pod, Sidecar, allow_many_files, until};

/// Nothing happens for so long while traffic and processor time are counted.
const IDLE: Duration = Duration::from_secs(5);

fn number(variable: &str, default: u16) -> u16 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// What a node has sent and received, and what its viprouted took of the processors.
#[derive(Clone, Copy)]
struct Usage {
    bytes: u64,
    packets: u64,
    echoes: u64,
    cpu: Duration,
}

impl Usage {
    fn of(member: &Member) -> Self {
        let link = member.node.ns.ip_json("-s link show eth0").remove(0);
        let both = |what: &str| -> u64 {
            ["rx", "tx"].iter().map(|way| link["stats64"][way][what].as_u64().expect("a counter")).sum()
        };
        let echoes = ["InEchos", "OutEchos", "InEchoReps", "OutEchoReps"];
        Self {
            bytes: both("bytes"),
            packets: both("packets"),
            echoes: echoes.iter().map(|name| member.node.ns.counter("Icmp", name)).sum(),
            cpu: member.daemon().cpu_time(),
        }
    }
}

/// Where each of `members` has its record of web's replicas on that node.
fn records_of(members: &[&Member], node: &str) -> Vec<String> {
    let record = |member: &&Member| {
        let dir = format!("{}/vips/default_web/endpoints", member.node.data());
        let is_of_node = |path: &String| {
            let text = fs::read_to_string(path).unwrap_or_default();
            serde_json::from_str::<Value>(&text).is_ok_and(|record| record["node"] == node)
        };
        let files =
            fs::read_dir(dir).expect("records").map(|file| file.expect("a record").path().display().to_string());
        files.filter(|path| path.ends_with("@peer.json")).find(is_of_node).expect("a record of that node")
    };
    members.iter().map(record).collect()
}

/// When each of these records says that its node gets nothing new, after `begun`.
fn times(records: &[String], begun: Instant) -> Vec<Duration> {
    let mut open: Vec<&String> = records.iter().collect();
    let mut times = Vec::new();
    until("all nodes know", PATIENCE, || {
        open.retain(|path| {
            let is_known = fs::read_to_string(path).is_ok_and(|text| text.contains("\"draining\""));
            times.extend(is_known.then(|| begun.elapsed()));
            !is_known
        });
        open.is_empty().then_some(())
    });
    times
}

fn spread(times: &[Duration]) -> String {
    format!("first {:.2?}, half {:.2?}, last {:.2?}", times[0], times[times.len() / 2], times[times.len() - 1])
}

/// Each has a replica of one VIP, and one of its own.
#[test]
fn many_nodes_know_of_each_other() {
    allow_many_files();
    let count = number("VIPROUTE_NODES", 5);
    let scene = Scene::new(u8::try_from(count).expect("at most 250 nodes"));
    let pods: Vec<Pod> = scene.members.iter().map(|member| member.node.joined(&web())).collect();
    let others = u64::from(count) - 1;
    for member in &scene.members {
        member.leads_to("of a VIP with replicas on all of them", usize::try_from(others).expect("few"));
    }
    let before: Vec<Usage> = scene.members.iter().map(Usage::of).collect();
    std::thread::sleep(IDLE);
    let seconds = IDLE.as_secs();
    let mut sums = [0; 4];
    for (member, before) in scene.members.iter().zip(before) {
        let now = Usage::of(member);
        let cpu = u64::try_from(now.cpu.saturating_sub(before.cpu).as_micros()).expect("short");
        let of_node = [now.bytes - before.bytes, now.packets - before.packets, now.echoes - before.echoes, cpu];
        sums.iter_mut().zip(of_node).for_each(|(sum, one)| *sum += one);
    }
    let [bytes, packets, echoes, cpu] = sums.map(|sum| sum / seconds / u64::from(count));
    let mut text =
        format!("{count} nodes, each, at rest: {bytes} B/s in {packets} packets/s, of them {echoes} echoes; ");
    let _ = writeln!(text, "viprouted {cpu} µs of a processor each second");

    let (first, rest) = scene.members.split_first().expect("nodes");
    let rest: Vec<&Member> = rest.iter().collect();
    let records = records_of(&rest, "192.0.2.1");
    let begun = Instant::now();
    first.ctl(&["drain", &pods[0].id]).ok();
    let _ = writeln!(text, "a drained replica is known: {}", spread(&times(&records, begun)));
    let (last, rest) = rest.split_last().expect("nodes");
    let records = records_of(rest, &last.node.address().to_string());
    let begun = Instant::now();
    scene.link(usize::from(count) - 1, "down");
    let _ = writeln!(text, "a dead node gets nothing new: {}", spread(&times(&records, begun)));
    eprint!("{text}");
}

/// A node that knows so many others, each with a replica of one VIP: how long until the kernel has what another one says.
#[test]
fn a_vip_with_replicas_on_many_nodes() {
    let others = u32::from(number("VIPROUTE_LEGS", 32));
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let _pod = node.joined(&web());
    let group = node.ns.ip_json("nexthop show proto 118 groups")[0]["id"].clone();
    let of = |number: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 0)) + number);
        json!({ "id": address, "name": format!("n{number}"), "tunnel": address, "number": number, "state": "live" })
    };
    let own = json!({ "id": "192.0.2.1", "name": "n0", "tunnel": "192.0.2.1" });
    let nodes = json!({ "schema": 2, "own": own, "nodes": (1..=others).map(of).collect::<Vec<_>>() });
    let path = format!("{}/nodes.json", node.data());
    fs::write(format!("{path}.tmp"), nodes.to_string()).expect("write nodes.json");
    let begun = Instant::now();
    fs::rename(format!("{path}.tmp"), path).expect("put nodes.json in its place");
    let ifindex = until("the tunnel leads to all nodes", LONG, || {
        let neighbours =
            node.ns.has_device("viptun0").then(|| node.ns.ip("-4 neigh show dev viptun0 nud permanent"))?;
        let all = neighbours.lines().count() == usize::try_from(others).expect("few");
        all.then(|| node.ns.ip_json("link show viptun0")[0]["ifindex"].as_u64().expect("an index"))
    });
    eprintln!("{others} nodes, none known before: the tunnel leads to them after {:.2?}", begun.elapsed());
    let replicas = |number: u32, ready: usize| {
        let address = of(number)["id"].as_str().expect("an address").parse().expect("an address");
        FarReplicas {
            number,
            node: address,
            via: address,
            device: "viptun0",
            ifindex,
            ready,
            sticky: false,
            served: None,
            via6: None,
        }
        .write(&node);
    };
    let is_led_to = |nodes: u32, begun: Instant| {
        until(&format!("the VIP's route leads to {nodes} nodes"), LONG, || {
            // Of all groups together `ip` shows none that is as long.
            let members = node.ns.ip_json(&format!("nexthop show id {group}")).remove(0)["group"].as_array()?.len();
            (members == nodes as usize + 1).then_some(())
        });
        begun.elapsed()
    };
    let begun = Instant::now();
    (1..=others).for_each(|number| replicas(number, 1));
    eprintln!("{others} legs at once: {:.2?}", is_led_to(others, begun));
    let begun = Instant::now();
    replicas(1, 0);
    eprintln!("one of them goes: {:.2?}", is_led_to(others - 1, begun));
}
