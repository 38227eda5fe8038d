//! The structs that the programs share with what writes their maps: those here are compared with the objects' BTF.

use std::collections::BTreeMap;
use std::mem::offset_of;

use super::answers::{Answerer, AnswererKey};
use super::attached::{Attached, AttachedKey, Member};
use super::counts::{Counts, LinkDrops};
use super::express::{ExpressCounts, ExpressPlace, Secret6, State};
use super::flows::{FlowKey, Hint};
use super::maps::Share;
use super::policies::Policy;
use super::servers::{PortKey, Server, Servers};
use super::shared::{Shared, SharedKey};
use super::spec::Variant;
use super::translations::TranslationKey;
use super::vips::{FEW_MEMBERS, MEMBERS, Vip};

/// A struct of the object's: its size, and its fields with their offsets.
type Layout = (usize, BTreeMap<String, usize>);

/// Reads the structs out of BTF (the kernel's Documentation/bpf/btf.rst).
fn structs(btf: &[u8]) -> BTreeMap<String, Layout> {
    const STRUCT: u32 = 4;
    let word = |at: usize| u32::from_ne_bytes(btf[at..at + 4].try_into().unwrap());
    let at = |at: usize| word(at) as usize;
    let header = at(4);
    let (mut next, end, strings) = (header + at(8), header + at(8) + at(12), header + at(16));
    let name = |offset: usize| {
        let text = &btf[strings + offset..];
        String::from_utf8_lossy(&text[..text.iter().position(|byte| *byte == 0).unwrap()]).into_owned()
    };
    let mut structs = BTreeMap::new();
    while next < end {
        let (kind, count) = (word(next + 4) >> 24 & 31, word(next + 4) as usize & 0xffff);
        let members = next + 12;
        if kind == STRUCT {
            let fields = (0..count).map(|field| members + 12 * field);
            let fields = fields.map(|member| (name(at(member)), (at(member + 8) & 0x00ff_ffff) / 8));
            structs.insert(name(at(next)), (at(next + 8), fields.collect()));
        }
        next = members
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
    structs
}

macro_rules! layout {
    ($type:ty, $($field:ident),*) => {
        (size_of::<$type>(), BTreeMap::from([$((stringify!($field).to_owned(), offset_of!($type, $field))),*]))
    };
}

#[test]
fn structs_are_as_the_programs_have_them() {
    are_as_the_programs_have_them(
        Variant::Full,
        layout!(Vip<MEMBERS>, syn_search_until, count, ready, next, flags, member),
    );
    are_as_the_programs_have_them(
        Variant::WithoutBtf,
        layout!(Vip<FEW_MEMBERS>, syn_search_until, count, ready, next, flags, member),
    );
}

#[test]
fn structs_of_ipv6_are_as_its_programs_have_them() {
    let object = aya_obj::Object::parse(Variant::Full.objects()[1]).unwrap();
    let structs = structs(&object.btf.unwrap().to_bytes());
    let ours: [(&str, Layout); 3] = [
        ("secret6", layout!(Secret6, key)),
        ("answerer_key", layout!(AnswererKey, vip, mac, pad)),
        ("answerer", layout!(Answerer, own, ifindex)),
    ];
    for (name, ours) in ours {
        assert_eq!(structs.get(name), Some(&ours), "struct {name}");
    }
}

fn are_as_the_programs_have_them(variant: Variant, vip: Layout) {
    let object = aya_obj::Object::parse(variant.objects()[0]).unwrap();
    let structs = structs(&object.btf.unwrap().to_bytes());
    let ours: [(&str, Layout); 16] = [
        ("attached_key", layout!(AttachedKey, ifindex, vip)),
        ("attached", layout!(Attached, syn_search_until, netns, flags, mac, ports, port, target, own, weight)),
        ("translation_key", layout!(TranslationKey, ifindex, vip, number, way)),
        ("answerer_key", layout!(AnswererKey, vip, mac, pad)),
        ("answerer", layout!(Answerer, own, ifindex)),
        ("shared_key", layout!(SharedKey, ifindex, vip, number)),
        ("shared", layout!(Shared, alone_until, alone, pad)),
        ("member", layout!(Member, ifindex, netns, mac, flags, weight)),
        ("vip", vip),
        ("flow", layout!(FlowKey, client, vip, client_port, vip_port)),
        ("hint", layout!(Hint, ifindex, node, flags)),
        ("link_drops", layout!(LinkDrops, spoofed, misrouted)),
        ("express", layout!(State, generation, key)),
        ("express_counts", layout!(ExpressCounts, in_packets, in_bytes, out_packets, out_bytes)),
        ("express_place", layout!(ExpressPlace, counts, ifindex)),
        ("policy", layout!(Policy, affinity, flags, pad)),
    ];
    for (name, ours) in ours {
        assert_eq!(structs.get(name), Some(&ours), "struct {name}");
    }
    let of_ports: [(&str, Layout); 3] = [
        ("port_key", layout!(PortKey, vip, number)),
        ("server", layout!(Server, ifindex, node, weight, of)),
        ("servers", layout!(Servers, count, pad, server)),
    ];
    for (name, ours) in of_ports.into_iter().filter(|_| variant == Variant::Full) {
        assert_eq!(structs.get(name), Some(&ours), "struct {name}");
    }
    // An array there, eight fields here.
    assert_eq!(structs["counts"].0, size_of::<Counts>());
    assert_eq!(structs["share"].0, size_of::<Share>());
}
