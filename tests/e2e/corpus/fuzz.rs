//! Packets of the corpus, damaged, spliced and cut off at random. Whatever they say, some things never happen.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::stage::{Bench, Input, Outcome, Replica, Stage, shortest};
use super::text::{Case, Program, pseudo_header, sum};
use super::{DROP, PASS, REDIRECT, addressed};

const ETHERNET: usize = 14;
const LONGEST: usize = 3000;

/// Puts `count` mutants through both programs, on the host veths of pods with and without a list of ports.
pub fn run(stage: &Stage, bench: &Bench, cases: &[Case], seed: u64, count: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let replicas: Vec<&Replica> = stage.replicas.values().collect();
    let mut verdicts = BTreeMap::<_, usize>::new();
    for number in 0..count {
        let case = pick(&mut random, cases);
        let packet = mutant(&mut random, case, cases);
        let is_home = random.random_ratio(3, 4);
        let replica = if is_home { &stage.replicas[&case.pod] } else { pick(&mut random, &replicas) };
        let mark = *pick(&mut random, &[0, 0, 7, 0x7656_7656]);
        for program in [Program::Owner, Program::Guard] {
            let input = Input { program, ifindex: replica.ifindex, mark, segment: 0, packet: &packet };
            let outcome = bench.put(&input);
            let judged = match program {
                Program::Owner => judge_owner(stage, replica, &input, &outcome),
                Program::Guard => judge_guard(stage, replica, &input, &outcome),
            };
            *verdicts.entry((program, outcome.verdict)).or_default() += 1;
            if let Err(broken) = judged {
                panic!("seed {seed}, mutant {number} of {:?}: {broken}\n{input:02x?}\n{outcome:02x?}", case.title);
            }
        }
    }
    // Mutants that are all turned away at the door would prove little.
    let is_frequent = |verdict| verdicts.get(&verdict).is_some_and(|times| *times > count / 50);
    let all = [(Program::Owner, REDIRECT), (Program::Owner, DROP), (Program::Owner, PASS), (Program::Guard, PASS)];
    assert!(all.into_iter().all(is_frequent), "of {count}: {verdicts:?}");
}

fn pick<'a, T>(random: &mut impl Rng, from: &'a [T]) -> &'a T {
    &from[random.random_range(0..from.len())]
}

fn mutant(random: &mut impl Rng, case: &Case, cases: &[Case]) -> Vec<u8> {
    let mut packet = case.packet.clone();
    for _ in 0..random.random_range(1..=4) {
        // Most of what a program reads is here.
        let end = if random.random_ratio(3, 4) { 80 } else { LONGEST };
        let at = random.random_range(0..packet.len().min(end));
        match random.random_range(0..6) {
            0 => packet[at] ^= 1 << random.random_range(0..8),
            1 => packet[at] = random.random(),
            2 => packet[at] = *pick(random, &[0, 1, 0x3f, 0x45, 0x4f, 0x7f, 0x80, 0xff]),
            3 => packet.truncate(at),
            4 => packet.extend((0..random.random_range(1..100)).map(|_| random.random::<u8>())),
            _ => {
                let other = &pick(random, cases).packet;
                let from = random.random_range(0..other.len());
                packet.truncate(at);
                packet.extend(&other[from..]);
            }
        }
        packet.resize(packet.len().clamp(ETHERNET, LONGEST), 0);
        packet.resize(packet.len().max(shortest(&packet)), 0);
    }
    packet
}

fn is_ipv4(packet: &[u8]) -> bool {
    packet.len() >= 34 && packet[12..14] == [8, 0] && packet[14] >> 4 == 4 && packet[14] & 15 >= 5
}

fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four octets").into()
}

/// What has the pod's own address as its source and may be the pod's own all the same. What no port shows of, a later fragment, gets the
/// source that stands in for the pod, as the first one would, which is asked about; so does what a server's socket may have sent to another
/// port than its own. (A connection begins by a socket that opens it, of which there is none here.)
fn may_come_home(packet: &[u8], passed: &[u8]) -> bool {
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let header = ETHERNET + usize::from(packet[14] & 15) * 4;
    let is_later = number(20) & 0x1fff != 0;
    let is_anothers = || packet.len() >= header + 8 && number(header) != number(header + 2);
    let stands_in = address(passed, 26) == Ipv4Addr::new(169, 254, 118, 2);
    packet[23] == 17 && stands_in && passed[30..header] == packet[30..header] && (is_later || is_anothers())
}

fn judge_owner(stage: &Stage, at: &Replica, input: &Input, outcome: &Outcome) -> Result<(), &'static str> {
    let packet = input.packet;
    if outcome.mark != input.mark {
        return Err("the mark is another one");
    }
    let is_ours = is_ipv4(packet) && at.vips.contains(&address(packet, 30));
    let is_from_itself = is_ours && is_own(at, address(packet, 26));
    let has_ports = is_ours && ["open", "free"].iter().all(|vip| address(packet, 30) != stage.address(vip));
    match outcome.verdict {
        PASS if is_from_itself && may_come_home(packet, &outcome.packet) => Ok(()),
        PASS | REDIRECT if is_from_itself => Err("from the pod itself"),
        // Copied to the others, and its destination set right.
        PASS if is_ours && packet[23] == 1 && outcome.packet == addressed(packet, &at.mac) => Ok(()),
        PASS | DROP if outcome.packet != packet => Err("changed, and not redirected"),
        PASS if !is_ours => Err("passed, and not for a VIP of this pod's"),
        PASS => Ok(()),
        DROP if has_ports || !is_ours || is_from_itself => Ok(()),
        DROP => Err("dropped, though no list of ports forbids it"),
        REDIRECT if !is_ours => Err("redirected, and not for a VIP of this pod's"),
        REDIRECT if packet[23] == 6 && has_ports && is_reset_for(packet, &outcome.packet) => Ok(()),
        REDIRECT if ![1, 6, 17].contains(&packet[23]) && packet[20..22] == [0, 0] => Err("of no protocol with ports"),
        REDIRECT if outcome.packet.get(6..) != Some(&packet[6..]) => Err("changed behind its destination"),
        REDIRECT => {
            let vip = address(packet, 30);
            let others = stage.replicas.values().filter(|replica| replica.ifindex != at.ifindex);
            let mut others = others.filter(|replica| replica.vips.contains(&vip));
            let known = others.any(|replica| outcome.packet.starts_with(&replica.mac));
            known.then_some(()).ok_or("redirected to nobody, or back")
        }
        _ => Err("a verdict that isn't one"),
    }
}

/// One of the pod's own addresses.
fn is_own(pod: &Replica, address: Ipv4Addr) -> bool {
    pod.vips.contains(&address) || pod.pod.address() == address
}

/// Whether it is the whole and correct answer to this SYN.
fn is_reset_for(syn: &[u8], answer: &[u8]) -> bool {
    let number = |packet: &[u8], at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("four octets"));
    let length = |packet: &[u8]| usize::from(u16::from_be_bytes([packet[16], packet[17]]));
    if answer.len() != 54 || length(answer) != 40 {
        return false;
    }
    let (ip, tcp) = (&answer[14..34], &answer[34..54]);
    // A whole packet of more than 64 KB says 0.
    let Some(data) = length(syn).checked_sub(20 + usize::from(syn[46] >> 4) * 4) else { return false };
    let acknowledged =
        number(syn, 38).wrapping_add(1 + u32::from(syn[47] & 1)).wrapping_add(data.try_into().expect("16 bits"));
    let pseudo = pseudo_header(ip, 20);
    let is_partial = tcp[16..18] == sum(&pseudo).to_be_bytes();
    answer[..6] == syn[6..12]
        && answer[6..12] == syn[..6]
        && answer[12..14] == [8, 0]
        && ip[..2] == [0x45, 0]
        && ip[6..10] == [0x40, 0, 64, 6]
        && sum(ip) == 0xffff
        && ip[12..16] == syn[30..34]
        && ip[16..] == syn[26..30]
        && tcp[..2] == syn[36..38]
        && tcp[2..4] == syn[34..36]
        && number(tcp, 4) == 0
        && number(tcp, 8) == acknowledged
        && tcp[12..14] == [0x50, 0x14]
        && (is_partial || sum(&[pseudo.as_slice(), tcp].concat()) == 0xffff)
        && syn[47] & 0x16 == 2
}

fn judge_guard(stage: &Stage, at: &Replica, input: &Input, outcome: &Outcome) -> Result<(), &'static str> {
    let packet = input.packet;
    let is_own = is_ipv4(packet) && at.vips.contains(&address(packet, 26));
    let is_free = is_own && address(packet, 26) == stage.address("free");
    // Of a whole TCP header that is the packet's first the flags tell; of much else it depends on what came before.
    let tcp = 14 + usize::from(packet[14] & 15) * 4;
    let is_whole_tcp =
        is_own && packet[23] == 6 && packet[20].trailing_zeros() >= 5 && packet[21] == 0 && packet.len() >= tcp + 20;
    let begins = is_whole_tcp && packet[tcp + 13] & 0x12 == 2;
    // It may be withheld.
    let refuses = is_whole_tcp && packet[tcp + 13] & 0x14 == 0x14 && packet[tcp + 4..tcp + 8] == [0; 4];
    match outcome.verdict {
        _ if outcome.packet != packet || outcome.mark != input.mark => Err("changed"),
        PASS if !is_own => Err("a source that isn't the pod's passed"),
        PASS if begins && !is_free => Err("a SYN passed"),
        DROP if is_free => Err("dropped where flows may begin"),
        DROP if is_whole_tcp && !begins && !refuses => Err("an answer was dropped"),
        PASS | DROP => Ok(()),
        _ => Err("a verdict that isn't one"),
    }
}
