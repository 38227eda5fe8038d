//! Packets of the corpus, damaged, spliced and cut off at random. Whatever they say, some things never happen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use viproute::internals::model::Family;

use super::family::{self, Form, Headers, TCP, UDP};
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
            // Among them the numbers of IPv6's extension headers.
            2 => packet[at] = *pick(random, &[0, 1, 0x2b, 0x2c, 0x33, 0x3c, 0x3f, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xff]),
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

/// What has the pod's own address as its source and may be the pod's own all the same. What no port shows of, a later fragment, gets the
/// source that stands in for the pod, as the first one would, which is asked about; so does what a server's socket may have sent to another
/// port than its own. (A connection begins by a socket that opens it, of which there is none here.)
fn may_come_home(headers: &Headers, packet: &[u8], passed: &[u8]) -> bool {
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let inner = headers.inner;
    let is_anothers = || packet.len() >= inner + 8 && number(inner) != number(inner + 2);
    let Some(after) = family::read(headers.family, passed) else { return false };
    let is_as_before = after.destination == headers.destination && after.inner == inner;
    let is_echo = headers.family == Family::V6 && headers.protocol == Family::V6.icmp() && passed == packet;
    is_echo
        || headers.protocol == UDP && is_stand_in(after.source) && is_as_before && (headers.is_later || is_anothers())
}

/// Stands in for a pod's own address.
fn is_stand_in(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == Ipv4Addr::new(169, 254, 118, 2),
        IpAddr::V6(address) => address.segments()[..6] == [0x100, 0, 0, 0, 0xa9fe, 0x7602],
    }
}

fn judge_owner(stage: &Stage, at: &Replica, input: &Input, outcome: &Outcome) -> Result<(), &'static str> {
    let packet = input.packet;
    if outcome.mark != input.mark {
        return Err("the mark is another one");
    }
    let Some(headers) = family::read(stage.family, packet).filter(|headers| at.vips.contains(&headers.destination))
    else {
        return judge_what_is_not_ours(packet, outcome);
    };
    let is_from_itself = is_own(at, headers.source);
    let has_ports = ["open", "free"].iter().all(|vip| headers.destination != stage.address(vip));
    let protocols = [stage.family.icmp(), TCP, UDP];
    let is_of = |protocol| headers.protocol == protocol;
    match outcome.verdict {
        PASS if is_from_itself && may_come_home(&headers, packet, &outcome.packet) => Ok(()),
        PASS | REDIRECT if is_from_itself => Err("from the pod itself"),
        // Copied to the others, and its destination set right.
        PASS if is_of(stage.family.icmp()) && outcome.packet == addressed(packet, &at.mac) => Ok(()),
        PASS | DROP if outcome.packet != packet => Err("changed, and not redirected"),
        PASS => Ok(()),
        DROP if has_ports || is_from_itself => Ok(()),
        DROP => Err("dropped, though no list of ports forbids it"),
        REDIRECT if is_of(TCP) && has_ports && is_reset_for(&headers, packet, &outcome.packet) => Ok(()),
        REDIRECT if !protocols.contains(&headers.protocol) && !headers.in_fragments => Err("of no protocol with ports"),
        REDIRECT if outcome.packet.get(6..) != Some(&packet[6..]) => Err("changed behind its destination"),
        REDIRECT => {
            let others = stage.replicas.values().filter(|replica| replica.ifindex != at.ifindex);
            let mut others = others.filter(|replica| replica.vips.contains(&headers.destination));
            let known = others.any(|replica| outcome.packet.starts_with(&replica.mac));
            known.then_some(()).ok_or("redirected to nobody, or back")
        }
        _ => Err("a verdict that isn't one"),
    }
}

fn judge_what_is_not_ours(packet: &[u8], outcome: &Outcome) -> Result<(), &'static str> {
    match outcome.verdict {
        DROP if outcome.packet != packet => Err("changed, and not redirected"),
        DROP => Ok(()),
        PASS => Err("passed, and not for a VIP of this pod's"),
        REDIRECT => Err("redirected, and not for a VIP of this pod's"),
        _ => Err("a verdict that isn't one"),
    }
}

/// One of the pod's own addresses, or none that anything comes from.
fn is_own(pod: &Replica, address: IpAddr) -> bool {
    pod.vips.contains(&address)
        || pod.own == address
        || is_stand_in(address)
        || (address.is_ipv6() && address.is_unspecified())
}

/// Whether it is the whole and correct answer to this SYN.
fn is_reset_for(headers: &Headers, syn: &[u8], answer: &[u8]) -> bool {
    let number = |packet: &[u8], at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("four octets"));
    let (family, at) = (headers.family, headers.family.headers());
    let Some(of_answer) = family::read(family, answer).filter(|_| answer.len() == at + 20 && headers.inner == at)
    else {
        return false;
    };
    let (ip, tcp) = (&answer[14..at], &answer[at..]);
    // A whole packet of more than 64 KB says 0.
    let Some(data) = headers.length.checked_sub(usize::from(syn[at + 12] >> 4) * 4) else { return false };
    let acknowledged = number(syn, at + 4)
        .wrapping_add(1 + u32::from(syn[at + 13] & 1))
        .wrapping_add(data.try_into().expect("16 bits"));
    let pseudo = pseudo_header(ip, TCP, 20);
    let is_partial = tcp[16..18] == sum(&pseudo).to_be_bytes();
    let is_plain = match family {
        Family::V4 => ip[..2] == [0x45, 0] && ip[6..10] == [0x40, 0, 64, 6] && sum(ip) == 0xffff,
        Family::V6 => ip[..4] == [0x60, 0, 0, 0] && ip[6..8] == [6, 64],
    };
    answer[..6] == syn[6..12]
        && answer[6..12] == syn[..6]
        && is_plain
        && of_answer.length == 20
        && (of_answer.source, of_answer.destination) == (headers.destination, headers.source)
        && tcp[..2] == syn[at + 2..at + 4]
        && tcp[2..4] == syn[at..at + 2]
        && number(tcp, 4) == 0
        && number(tcp, 8) == acknowledged
        && tcp[12..14] == [0x50, 0x14]
        && (is_partial || sum(&[pseudo.as_slice(), tcp].concat()) == 0xffff)
        && syn[at + 13] & 0x16 == 2
}

fn judge_guard(stage: &Stage, at: &Replica, input: &Input, outcome: &Outcome) -> Result<(), &'static str> {
    let packet = input.packet;
    let own = family::read(stage.family, packet).filter(|headers| at.vips.contains(&headers.source));
    let is_free = own.as_ref().is_some_and(|headers| headers.source == stage.address("free"));
    // Of a whole TCP header that is the packet's first the flags tell; of much else it depends on what came before.
    let whole = own
        .as_ref()
        .filter(|headers| headers.protocol == TCP && !headers.is_later && headers.end(packet) >= headers.inner + 20);
    let flags = whole.map(|headers| packet[headers.inner + 13]);
    let begins = flags.is_some_and(|flags| flags & 0x12 == 2);
    // It may be withheld.
    let refuses = |headers: &&Headers| {
        packet[headers.inner + 13] & 0x14 == 0x14 && packet[headers.inner + 4..headers.inner + 8] == [0; 4]
    };
    match outcome.verdict {
        _ if outcome.packet != packet || outcome.mark != input.mark => Err("changed"),
        PASS if own.is_none() => Err("a source that isn't the pod's passed"),
        PASS if begins && !is_free => Err("a SYN passed"),
        DROP if is_free => Err("dropped where flows may begin"),
        DROP if whole.is_some() && !begins && !whole.as_ref().is_some_and(refuses) => Err("an answer was dropped"),
        PASS | DROP => Ok(()),
        _ => Err("a verdict that isn't one"),
    }
}
