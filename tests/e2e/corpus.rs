//! Every type of packet through the flow owner's loaded programs, and a fuzz run from there.

mod fuzz;
mod stage;
mod text;

use std::thread;
use std::time::{Duration, Instant};

use viproute::bpf::{MEMBERS, Member};

use crate::harness::until;
pub use stage::pinned;
use stage::{Bench, Input, Outcome, Stage, Wire};
use text::{Case, Program, Verdict};

/// Verdicts of a tc program (`linux/pkt_cls.h`).
const PASS: u32 = 0;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// skb->mark of a copy (owner.bpf.c).
const COPY: u32 = 0x7656_7656;

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

fn cases(stage: &Stage) -> Vec<Case> {
    FILES.iter().flat_map(|(file, text)| text::read(file, text, &stage.names)).collect()
}

/// The verdict, the packet and its mark that a case is to end with.
fn expected(stage: &Stage, case: &Case) -> Outcome {
    let (verdict, packet) = match &case.verdict {
        Verdict::Pass | Verdict::Copies => (PASS, case.packet.clone()),
        Verdict::Drop => (DROP, case.packet.clone()),
        Verdict::To(pod) => (REDIRECT, addressed(&case.packet, &stage.replicas[pod].mac)),
        Verdict::Reset(answer) => (REDIRECT, answer.clone()),
    };
    // The mark of a copy is between the programs, and ends with the second.
    let is_owner = case.program == Program::Owner;
    let mark = if is_owner && case.mark == COPY { 0 } else { case.mark };
    Outcome { verdict, mark, packet }
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
    risen.iter().any(|(name, by)| *by != rise(name)).then(|| format!("{}: counted {risen:?}", case.title))
}

#[test]
fn every_type_of_packet_comes_to_what_it_must() {
    let mut stage = Stage::new();
    let cases = cases(&stage);
    let sent = cases.iter().filter(|case| is_sent(case));
    let mut faults: Vec<_> = sent.filter_map(|case| fault_when_sent(&stage, case)).collect();
    for moving in [true, false] {
        stage.set_moving(moving);
        let these = cases.iter().filter(|case| case.moving == moving && !is_sent(case));
        faults.extend(stage.run(|bench| these.filter_map(|case| fault(&stage, bench, case)).collect::<Vec<_>>()));
    }
    assert!(faults.is_empty(), "{} of {} packets:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert_copied(&stage, &cases);
}

/// Each other replica of the VIP got each packet that was to be copied, and nobody got anything else.
fn assert_copied(stage: &Stage, cases: &[Case]) {
    let mut copies = 0;
    for (name, replica) in &stage.replicas {
        let is_copied = |case: &&Case| case.verdict == Verdict::Copies && case.pod != *name;
        let vip_of = |case: &Case| <[u8; 4]>::try_from(&case.packet[30..34]).expect("four octets").into();
        let due = cases.iter().filter(is_copied).filter(|case| replica.vips.contains(&vip_of(case)));
        let due: Vec<_> = due.map(|case| addressed(&case.packet, &replica.mac)).collect();
        let mut came = Vec::new();
        until(&format!("{} copies for {name}", due.len()), Duration::from_secs(10), || {
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

/// Belongs to the real connections from the client or the node's own SYNs.
fn is_conversation(stage: &Stage, frame: &[u8]) -> bool {
    let client = stage.address("client").octets();
    frame[23] == 6 && (frame[26..30] == client || frame[46] == 0x60 && frame[47] == 2)
}

#[test]
fn twenty_thousand_mutants_are_survived() {
    const SEED: u64 = 118;
    let stage = Stage::new();
    let cases = cases(&stage);
    stage.run(|bench| fuzz::run(&stage, bench, &cases, SEED, 20_000));
}

/// The fragments of a sticky flow's datagram, sent to the wrong replica, come together at the right one.
#[test]
fn fragments_meet_at_the_replica_that_has_the_flow() {
    let stage = Stage::new();
    let (d, e) = (&stage.replicas["d"], &stage.replicas["e"]);
    let server = e.pod.ns.run(|| std::net::UdpSocket::bind((stage.address("guarded"), 53))).expect("a UDP server");
    server.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    let text = "== first\nby e: pass\neth {e} {e.host} 0800\n\
        ip 45 00 {length} 0301 4000 40 11 {sum} {client} {guarded}\nudp 0900 0035 {length} {sum} 68656c6c6f\n\
        == a fragment\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 2000 40 11 {sum} {client} {guarded}\nudp 0900 0035 0068 0000 61*40\n\
        == another\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 2006 40 11 {sum} {client} {guarded}\ndata 62*40\n\
        == the last\nby d: pass\neth {d} {d.host} 0800\n\
        ip 45 00 {length} 0302 000b 40 11 {sum} {client} {guarded}\ndata 63*16\n";
    for case in text::read("here", text, &stage.names) {
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
    let stage = Stage::new();
    let a = &stage.replicas["a"];
    let text = "== an answer\nfrom a: drop\neth {a.host} {a} 8100 0064 0800\n\
        ip 45 00 {length} 0001 4000 40 06 {sum} {open} {client}\n\
        tcp {http} 0400 00000001 00000001 50 12 ffff {sum} 0000\n";
    let case = text::read("here", text, &stage.names).remove(0);
    assert!(stage.is_dropped("a", &a.wire, &case.packet), "let out");
}

/// Nobody's packets for a VIP with as many replicas as are asked: past so many questions in a second they are dropped
/// unasked. A packet of a connection of the chosen replica's goes on.
#[test]
fn too_many_strays_are_dropped_unasked() {
    let mut stage = Stage::new();
    let cases = cases(&stage);
    let titled = |title: &str| cases.iter().find(|case| case.title.ends_with(title)).expect(title);
    let stray = titled("An ACK of nobody's connection");
    let good = titled("An ACK of a connection that the chosen replica has");
    let vip = stage.address("open");
    let real = stage.maps.members(vip).unwrap().expect("the VIP is known");
    let copies = (1_000_000..).take(MEMBERS).map(|link| Member::new(link, real[0].netns, real[0].mac));
    let copies: Vec<_> = copies.collect();
    stage.maps.set_members(vip, &copies, 0).unwrap();
    let limited = || stage.counters()["limited"];
    let before = limited();
    stage.run(|bench| {
        let put = |case: &Case, times| {
            let (program, mark, segment) = (case.program, case.mark, case.segment);
            let ifindex = stage.replicas[&case.pod].ifindex;
            bench.put_often(&Input { program, ifindex, mark, segment, packet: &case.packet }, times).verdict
        };
        let end = Instant::now() + Duration::from_secs(60);
        // So many at once that it is searches that take the time, and not the system calls around them.
        while put(stray, 1000) != DROP {
            assert!(Instant::now() < end, "every stray was looked for");
        }
        assert_eq!(put(good, 1), PASS);
    });
    assert!(limited() > before, "the dropped one is counted");
}
