//! Every type of packet through the flow owner's loaded programs, and a fuzz run from there.

mod family;
mod fuzz;
mod stage;
mod text;

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use viproute::internals::ebpf::{Attached, Known, Member};
use viproute::internals::model::Family;

use crate::harness::{SOON, scaled, until};
use family::Form;
pub use stage::Wire;
use stage::{Bench, Input, Outcome, Stage};
use text::{Case, Program, Verdict};

/// Verdicts of a tc program (`linux/pkt_cls.h`).
const PASS: u32 = 0;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

macro_rules! packets {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../testdata/packets/", $name)))),*]
    };
}

/// What counts on a connection in `TIME_WAIT` comes first.
const FILES: &[(&str, &str)] = packets![
    "tcp.txt",
    "icmp.txt",
    "options.txt",
    "malformed.txt",
    "frames.txt",
    "fragments.txt",
    "udp.txt",
    "guarded.txt",
    "guard.txt"
];

/// What IPv4 has nothing like.
const OF_IPV6: &[(&str, &str)] = packets!["ipv6.txt"];

fn cases(stage: &Stage) -> Vec<Case> {
    let more = OF_IPV6.iter().filter(|_| stage.family == Family::V6);
    FILES.iter().chain(more).flat_map(|(file, text)| text::read(file, text, stage.about())).collect()
}

/// The verdict, the packet and its mark that a case is to end with.
fn expected(stage: &Stage, case: &Case) -> Outcome {
    let (verdict, packet) = match &case.verdict {
        Verdict::Pass | Verdict::Copies => (PASS, case.packet.clone()),
        Verdict::Drop => (DROP, case.packet.clone()),
        Verdict::To(pod) => (REDIRECT, addressed(&case.packet, &stage.replicas[pod].mac)),
        Verdict::Reset(answer) => (REDIRECT, answer.clone()),
    };
    Outcome { verdict, mark: case.mark, packet }
}

/// The packet with another destination.
fn addressed(packet: &[u8], mac: &[u8]) -> Vec<u8> {
    [mac, &packet[6..]].concat()
}

/// What is too short for `BPF_PROG_TEST_RUN` is sent.
fn is_sent(case: &Case) -> bool {
    case.packet.len() < stage::shortest(&case.packet)
}

fn fault_when_sent(stage: &Stage, case: &Case) -> Option<String> {
    let replica = &stage.replicas[&case.pod];
    let by = Wire::to(&stage.node.ns, replica.ifindex);
    let is_right = match (case.program, &case.verdict) {
        (Program::Owner, Verdict::Pass) => stage.comes_through(&case.pod, &by, &case.packet),
        (Program::Owner, Verdict::Drop) => stage.is_dropped(&case.pod, &by, &case.packet),
        (Program::Guard, Verdict::Drop) => stage.is_dropped(&case.pod, &replica.wire, &case.packet),
        _ => panic!("{}: too short for that", case.title),
    };
    (!is_right).then(|| format!("{}: not {:?}", case.title, case.verdict))
}

/// What is wrong with a case, if something is.
fn fault(stage: &Stage, bench: &Bench, case: &Case) -> Option<String> {
    let before = stage.counters();
    let ifindex = stage.replicas[&case.pod].ifindex;
    let (program, mark, segment) = (case.program, case.mark, case.segment);
    let outcome = bench.put(&Input { program, ifindex, mark, segment, packet: &case.packet });
    let expected = expected(stage, case);
    if outcome != expected {
        return Some(format!("{}:\n  expected {expected:02x?}\n  but came {outcome:02x?}", case.title));
    }
    let risen: Vec<_> = stage.counters().into_iter().map(|(name, count)| (name, count - before[name])).collect();
    let rise = |name: &str| u64::from(case.counter.as_deref() == Some(name));
    // The node's kernel tells host veths by itself which groups of IPv6 it has left: that is for no VIP.
    let may_be_more = |name: &str| stage.family == Family::V6 && name == "misrouted";
    let is_wrong = |(name, by): &(&str, u64)| *by < rise(name) || (*by > rise(name) && !may_be_more(name));
    risen.iter().any(is_wrong).then(|| format!("{}: counted {risen:?}", case.title))
}

#[test]
fn every_type_of_packet_comes_to_what_it_must() {
    let mut stage = Stage::new(Family::V4);
    all_come_to_what_they_must(&mut stage);
}

/// And mutants of them: one scene is enough.
#[test]
fn every_type_of_packet_of_ipv6_does_so_too() {
    let mut stage = Stage::new(Family::V6);
    let cases = all_come_to_what_they_must(&mut stage);
    assert!(cases.len() > 200, "of {} packets is known what becomes of them", cases.len());
    stage.run(|bench| fuzz::run(&stage, bench, &cases, SEED, 20_000));
}

fn all_come_to_what_they_must(stage: &mut Stage) -> Vec<Case> {
    let cases = cases(stage);
    let _sockets = stage.serve_udp();
    let sent = cases.iter().filter(|case| is_sent(case));
    let mut faults: Vec<_> = sent.filter_map(|case| fault_when_sent(stage, case)).collect();
    for moving in [true, false] {
        stage.set_moving(moving);
        let these = cases.iter().filter(|case| case.moving == moving && !is_sent(case));
        faults.extend(stage.run(|bench| these.filter_map(|case| fault(stage, bench, case)).collect::<Vec<_>>()));
    }
    assert!(faults.is_empty(), "{} of {} packets:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert_copied(stage, &cases);
    cases
}

/// Each other replica of the VIP got each packet that was to be copied, and nothing else was delivered.
fn assert_copied(stage: &Stage, cases: &[Case]) {
    let mut copies = 0;
    for (name, replica) in &stage.replicas {
        let is_copied = |case: &&Case| case.verdict == Verdict::Copies && case.pod != *name;
        let at = stage.family.source_at() + stage.family.address();
        let vip_of = |case: &Case| family::address_at(stage.family, &case.packet, at);
        let due = cases.iter().filter(is_copied).filter(|case| replica.vips.contains(&vip_of(case)));
        let due: Vec<_> = due.map(|case| addressed(&case.packet, &replica.mac)).collect();
        let mut came = Vec::new();
        until(&format!("{} copies for {name}", due.len()), SOON, || {
            came.extend(replica.wire.receive().filter(|frame| !is_conversation(stage, frame)));
            (came.len() >= due.len()).then_some(())
        });
        thread::sleep(Duration::from_millis(50));
        came.extend(replica.wire.receive().filter(|frame| !is_conversation(stage, frame)));
        assert_eq!(came, due, "what {name} got");
        copies += due.len();
    }
    assert!(copies >= 8, "only {copies} copies");
}

/// Belongs to the real connections from the client or those that the stage has made up.
fn is_conversation(stage: &Stage, frame: &[u8]) -> bool {
    let headers = family::read(stage.family, frame);
    let from = |name: &str| headers.as_ref().is_some_and(|headers| headers.source == stage.address(name));
    headers.as_ref().is_some_and(|headers| headers.protocol == family::TCP) && (from("client") || from("far"))
}

const SEED: u64 = 118;

#[test]
fn twenty_thousand_mutants_are_survived() {
    let stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let _sockets = stage.serve_udp();
    stage.run(|bench| fuzz::run(&stage, bench, &cases, SEED, 20_000));
}

/// The fragments of a sticky flow's datagram, sent to the wrong replica, come together at the right one.
#[test]
fn fragments_meet_at_the_replica_that_has_the_flow() {
    let stage = Stage::new(Family::V4);
    let (d, e) = (&stage.replicas["d"], &stage.replicas["e"]);
    let server = e.pod.ns.run(|| std::net::UdpSocket::bind((stage.address("guarded"), 53))).expect("a UDP server");
    server.set_read_timeout(Some(scaled(SOON))).expect("a time limit");
    let text = "== first\nby e: pass\neth {e} {e.host} 0800\n\
        ip 45 00 {length} 0301 4000 40 11 {sum} {client} {guarded}\nudp 0900 0035 {length} {sum} 68656c6c6f\n\
        == a fragment\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 2000 40 11 {sum} {client} {guarded}\nudp 0900 0035 0068 0000 61*40\n\
        == another\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 2006 40 11 {sum} {client} {guarded}\ndata 62*40\n\
        == the last\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 000b 40 11 {sum} {client} {guarded}\ndata 63*16\n";
    for case in text::read("here", text, stage.about()) {
        let replica = if case.pod == "d" { d } else { e };
        Wire::to(&stage.node.ns, replica.ifindex).send(&case.packet);
    }
    let mut buffer = [0; 2048];
    let mut hear = || {
        let length = server.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(hear(), "hello");
    assert_eq!(hear(), ["a".repeat(40), "b".repeat(40), "c".repeat(16)].concat());
}

/// A VLAN's tag beside the frame can't be given to `BPF_PROG_TEST_RUN`. The kernel puts it there when the frame comes in.
#[test]
fn tagged_packets_come_from_no_pod() {
    let stage = Stage::new(Family::V4);
    let a = &stage.replicas["a"];
    let text = "== an answer\nfrom a: drop\neth {a.host} {a} 8100 0064 0800\n\
        ip 45 00 {length} 0001 4000 40 06 {sum} {open} {client}\n\
        tcp {http} 0400 00000001 00000001 50 12 ffff {sum} 0000\n";
    let case = text::read("here", text, stage.about()).remove(0);
    assert!(stage.is_dropped("a", &a.wire, &case.packet), "let out");
}

/// The list of whom to ask may be older than a replica's own entry: who has none any more gets nothing.
#[test]
fn a_replica_that_has_left_is_handed_nothing() {
    let mut stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let stray = titled(&cases, "An ACK of a connection that another replica has");
    let (b, open) = (stage.replicas["b"].ifindex, stage.key(stage.address("open")));
    stage.set_moving(false);
    assert_eq!(stage.run(|bench| put(&stage, bench, stray, 1)), REDIRECT);
    let entry = stage.maps.attached(b, open).unwrap().expect("its entry");
    stage.maps.detach(b, open).unwrap();
    assert_eq!(stage.run(|bench| put(&stage, bench, stray, 1)), PASS, "no entry");
    // Its namespace's id is another one's by now.
    stage.maps.attach(b, open, &Attached { netns: entry.netns + 1000, ..entry }).unwrap();
    assert_eq!(stage.run(|bench| put(&stage, bench, stray, 1)), PASS, "another one's entry");
}

fn titled<'a>(cases: &'a [Case], title: &str) -> &'a Case {
    cases.iter().find(|case| case.title.ends_with(title)).expect(title)
}

/// The verdict on a packet, the last of so many.
fn put(stage: &Stage, bench: &Bench, case: &Case, times: u32) -> u32 {
    let (program, mark, segment) = (case.program, case.mark, case.segment);
    let ifindex = stage.replicas[&case.pod].ifindex;
    bench.put_often(&Input { program, ifindex, mark, segment, packet: &case.packet }, times).verdict
}

/// Makes a VIP's replicas as many as are asked, none of which has a connection.
fn make_many(stage: &mut Stage, vip: IpAddr) {
    let vip = stage.key(vip);
    let real = stage.maps.known(vip).unwrap().expect("the VIP is known");
    let copies = (1_000_000..).take(stage.maps.limit()).map(|ifindex| Member { ifindex, ..real.members[0] });
    let known = Known { members: copies.collect(), ..real };
    stage.maps.set(vip, &known, 0).unwrap();
}

/// Allowances are each CPU's own.
fn stay_on_this_cpu() {
    let mut this = CpuSet::new();
    this.set(sched_getcpu().expect("a CPU")).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &this).expect("stay here");
}

/// Puts the packet through until it is dropped unasked. So many at once that it is searches that take the time, and not the
/// system calls around them.
fn exhaust(stage: &Stage, bench: &Bench, stray: &Case) {
    let end = Instant::now() + Duration::from_secs(60);
    while put(stage, bench, stray, 1000) != DROP {
        assert!(Instant::now() < end, "every stray was looked for");
    }
}

/// Misplaced packets for a VIP with as many replicas as are asked: past so many questions in a second they are dropped
/// unasked. A packet of a connection of the chosen replica's goes on.
#[test]
fn too_many_strays_are_dropped_unasked() {
    let mut stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let stray = titled(&cases, "An ACK of nobody's connection");
    let good = titled(&cases, "An ACK of a connection that the chosen replica has");
    let open = stage.address("open");
    make_many(&mut stage, open);
    let throttled = || stage.counters()["search_throttled"];
    let before = throttled();
    stage.run(|bench| {
        exhaust(&stage, bench, stray);
        assert_eq!(put(&stage, bench, good, 1), PASS);
    });
    assert!(throttled() > before, "the dropped one is counted");
}

/// SYNs for a port that none of as many replicas as are asked listens on: past so many questions in a second they are dropped
/// unasked, and one for a replica that listens goes on. Another VIP's are searched for all the same.
#[test]
fn too_many_syns_that_nobody_listens_for_are_dropped_unasked() {
    let mut stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let flood = titled(&cases, "A SYN to a port that nobody listens on: the chosen replica refuses it");
    let good = titled(&cases, "A SYN: to the chosen replica");
    let open = stage.address("open");
    stage.set_moving(false);
    make_many(&mut stage, open);
    let before = stage.counters()["search_throttled"];
    stage.run(|bench| {
        stay_on_this_cpu();
        exhaust(&stage, bench, flood);
        assert_eq!(put(&stage, bench, good, 1), PASS);
    });
    assert!(stage.counters()["search_throttled"] > before, "the dropped one is counted");
    // The other VIP's replica stops listening where it was chosen.
    let others = titled(&cases, "A SYN to a port that is served");
    let address = stage.address("guarded");
    let deaf = stage.replicas.remove("d").expect("a replica");
    drop(deaf.listener);
    let input = |ifindex| Input { program: others.program, ifindex, mark: 0, segment: 0, packet: &others.packet };
    let verdicts: Vec<u32> = stage.run(|bench| {
        stay_on_this_cpu();
        let flooded = || {
            exhaust(&stage, bench, flood);
            bench.put_often(&input(deaf.ifindex), 1).verdict
        };
        (0..20).map(|_| flooded()).collect()
    });
    assert!(verdicts.iter().all(|verdict| *verdict == REDIRECT), "{address}: {verdicts:?}");
}

/// While one VIP's misplaced packets have used up what searches may take, another VIP's connection is
/// searched for by that one's share.
#[test]
fn a_flood_of_one_vips_leaves_another_its_share() {
    let mut stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let stray = titled(&cases, "An ACK of nobody's connection");
    let others = titled(&cases, "Data of another replica's connection");
    let open = stage.address("open");
    stage.set_moving(false);
    make_many(&mut stage, open);
    let verdicts: Vec<u32> = stage.run(|bench| {
        stay_on_this_cpu();
        let flooded = || {
            exhaust(&stage, bench, stray);
            put(&stage, bench, others, 1)
        };
        (0..20).map(|_| flooded()).collect()
    });
    assert!(verdicts.iter().all(|verdict| *verdict == REDIRECT), "{verdicts:?}");
}

/// ICMP errors about UDP take nothing from connections: their copies have an allowance of their own.
#[test]
fn a_flood_of_udp_errors_leaves_connections_their_searches() {
    let mut stage = Stage::new(Family::V4);
    let cases = cases(&stage);
    let _sockets = stage.serve_udp();
    let error = titled(&cases, "About UDP, which any replica may have sent");
    let stray = titled(&cases, "An ACK of a connection that another replica has");
    stage.set_moving(false);
    let verdicts: Vec<u32> = stage.run(|bench| {
        stay_on_this_cpu();
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            put(&stage, bench, error, 10_000);
        }
        (0..20).map(|_| put(&stage, bench, stray, 1)).collect()
    });
    assert!(verdicts.iter().all(|verdict| *verdict == REDIRECT), "{verdicts:?}");
}
