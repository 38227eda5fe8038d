//! What the BPF programs ask of a kernel: nothing that is newer than Linux 5.14, and a fraction of the verifier's patience.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use aya::EbpfLoader;
use aya::programs::SchedClassifier;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use crate::harness::{Families, Join, Lan, Node, Service};

static OBJECTS: [&[u8]; 5] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/owner.bpf.o")),
    include_bytes!(concat!(env!("OUT_DIR"), "/owner.without-btf.bpf.o")),
    include_bytes!(concat!(env!("OUT_DIR"), "/listen.bpf.o")),
    include_bytes!(concat!(env!("OUT_DIR"), "/listen.without-btf.bpf.o")),
    include_bytes!(concat!(env!("OUT_DIR"), "/owner6.bpf.o")),
];

/// Resilient nexthop groups have been there since then, so no older kernel will do anyway.
const OLDEST: (u32, u32) = (5, 14);

/// The helper functions in use, by their numbers in linux/bpf.h, and the kernel each came with.
const HELPERS: &[(i32, &str, (u32, u32))] = &[
    (1, "map_lookup_elem", (3, 19)),
    (2, "map_update_elem", (3, 19)),
    (3, "map_delete_elem", (3, 19)),
    (5, "ktime_get_ns", (4, 1)),
    (9, "skb_store_bytes", (4, 1)),
    (10, "l3_csum_replace", (4, 1)),
    (11, "l4_csum_replace", (4, 1)),
    (13, "clone_redirect", (4, 2)),
    (20, "skb_get_tunnel_key", (4, 3)),
    (21, "skb_set_tunnel_key", (4, 3)),
    (23, "redirect", (4, 4)),
    (26, "skb_load_bytes", (4, 5)),
    (28, "csum_diff", (4, 6)),
    (38, "skb_change_tail", (4, 9)),
    (40, "csum_update", (4, 9)),
    (84, "sk_lookup_tcp", (4, 20)),
    (85, "sk_lookup_udp", (4, 20)),
    (86, "sk_release", (4, 20)),
    (99, "skc_lookup_tcp", (5, 2)),
    (100, "tcp_check_syncookie", (5, 2)),
    (152, "redirect_neigh", (5, 10)),
    (155, "redirect_peer", (5, 10)),
    (160, "ktime_get_coarse_ns", (5, 11)),
    (163, "check_mtu", (5, 12)),
];

/// The same of the types of maps.
const MAPS: &[(u32, &str, (u32, u32))] = &[
    (1, "hash", (3, 19)),
    (2, "array", (3, 19)),
    (5, "percpu_hash", (4, 6)),
    (6, "percpu_array", (4, 6)),
    (9, "lru_hash", (4, 10)),
    (10, "lru_percpu_hash", (4, 10)),
    (11, "lpm_trie", (4, 11)),
];

/// Instructions that a verifier checks before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`, since Linux 5.2).
const PATIENCE: u32 = 1_000_000;

fn objects() -> [Object; 5] {
    OBJECTS.map(|object| Object::parse(object).expect("an object of programs"))
}

fn instructions() -> Vec<bpf_insn> {
    let mut all = Vec::new();
    for function in objects().iter().flat_map(|object| object.functions.values()) {
        let mut rest = function.instructions.as_slice();
        while let Some((first, others)) = rest.split_first() {
            all.push(*first);
            // A constant of 64 bits is two instructions long; the second one is none by itself.
            rest = if first.code == 0x18 { &others[1..] } else { others };
        }
    }
    all
}

/// What is in use must be listed, and what is listed in use: a list that claims more than is true proves nothing.
fn assert_listed<N: Copy + Ord + std::fmt::Debug>(used: &BTreeSet<N>, listed: &[(N, &str, (u32, u32))]) {
    let known: BTreeSet<N> = listed.iter().map(|(number, ..)| *number).collect();
    assert_eq!(*used, known, "in use, and listed here with the kernel they came with");
    let newer: Vec<_> = listed.iter().filter(|(_, _, since)| *since > OLDEST).collect();
    assert!(newer.is_empty(), "newer than {OLDEST:?}: {newer:?}");
}

#[test]
fn helpers_are_as_old_as_the_oldest_kernel() {
    const CALL: u8 = 0x85;
    let calls: Vec<_> = instructions().into_iter().filter(|instruction| instruction.code == CALL).collect();
    // 0: a helper; 1: a function of the program's own; 2: one of the kernel's, which may change.
    assert!(calls.iter().all(|call| call.src_reg() <= 1), "a call to a kernel function");
    assert_listed(&calls.iter().filter(|call| call.src_reg() == 0).map(|call| call.imm).collect(), HELPERS);
}

#[test]
fn maps_are_as_old_as_the_oldest_kernel() {
    let maps = objects().into_iter().flat_map(|object| object.maps);
    assert_listed(&maps.map(|(_, map)| map.map_type()).collect(), MAPS);
}

/// The instructions of -mcpu=v4 (Linux 6.6) and what atomic ones do beyond adding (5.12) are left out.
#[test]
fn instructions_are_as_old_as_the_oldest_kernel() {
    let all = instructions();
    assert!(all.len() > 500, "only {} instructions", all.len());
    let newer = all.into_iter().filter(|instruction| match instruction.code {
        // A far jump, a swap of bytes on any machine, loads that extend the sign.
        0x06 | 0xd7 | 0x81 | 0x89 | 0x91 => true,
        // Moves that do so, and signed division.
        0xb4 | 0xb7 | 0xbc | 0xbf | 0x34 | 0x37 | 0x3c | 0x3f | 0x94 | 0x97 | 0x9c | 0x9f => instruction.off != 0, // moves that do; signed division
        0xc3 | 0xdb => instruction.imm != 0,
        _ => false,
    });
    let newer: Vec<_> = newer.map(|instruction| format!("{:#04x}", instruction.code)).collect();
    assert!(newer.is_empty(), "{newer:?}");
}

/// Without BTF the kernel takes another object, of fewer programs, in which all is one function.
fn taken() -> Vec<&'static [u8]> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() { vec![OBJECTS[0], OBJECTS[4]] } else { vec![OBJECTS[1]] }
}

#[test]
fn the_verifier_is_done_long_before_its_limit() {
    for bytes in taken() {
        let mut object = EbpfLoader::new().load(bytes).expect("its maps");
        for (name, program) in object.programs_mut() {
            let program: &mut SchedClassifier = program.try_into().expect("a program of tc's");
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
            // Linux 5.16 and later tell.
            let info = program.info().expect("what the kernel knows of a program");
            if let Some(count) = info.verified_instruction_count() {
                assert!(count > 20, "{name}: {count} instructions can't be all");
                assert!(count < PATIENCE / 2, "{name}: the verifier looked at {count} instructions");
            }
        }
    }
}

/// The programs that are pinned on a node.
pub fn loaded(node: &Node) -> BTreeSet<String> {
    let pins =
        std::fs::read_dir(node.bpf_dir()).expect("the pins' directory").map(|pin| pin.expect("a pin").file_name());
    let name = |pin: OsString| Some(pin.to_str()?.rsplit_once('_')?.0.to_owned());
    let objects = objects();
    let is_program = |name: &String| objects.iter().any(|object| object.programs.contains_key(name));
    pins.filter_map(name).filter(is_program).collect()
}

/// The verifier takes its time for each.
#[test]
fn programs_are_loaded_once_they_are_wanted() {
    let of_ipv4 =
        ["express_in", "express_seen", "guard", "owner", "udp_answer", "udp_asked", "udp_asked_own"].map(str::to_owned);
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.joined(&Join::annotated("web"));
    assert_eq!(loaded(&node), BTreeSet::from(of_ipv4.clone()));
    drop(pod);
    if taken().len() == 1 {
        return;
    }
    let with_ipv6: BTreeSet<_> = of_ipv4.iter().flat_map(|name| [name.clone(), format!("{name}6")]).collect();
    for pods_have in [Families::Both, Families::Ipv6] {
        let service = Service::dual(&Join::annotated("web"), 1, 0, pods_have);
        assert_eq!(loaded(&service.node), with_ipv6, "{pods_have:?}");
    }
}

/// This kernel may have BTF: what the verifier takes without knowing it, it takes here too.
#[test]
fn the_objects_for_kernels_without_btf_are_verified_too() {
    for bytes in [OBJECTS[1], OBJECTS[3]] {
        let mut object = EbpfLoader::new().load(bytes).expect("its maps");
        for (name, program) in object.programs_mut() {
            let program: &mut SchedClassifier = program.try_into().expect("a program of tc's");
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Some(count) = program.info().expect("what the kernel knows of it").verified_instruction_count() {
                assert!(count > 20 && count < PATIENCE / 2, "{name}: the verifier looked at {count} instructions");
            }
        }
    }
}
