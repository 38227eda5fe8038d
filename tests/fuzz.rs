//! The fuzz targets on a stable compiler: the seed corpus as it is, and thousands of its mutations. `fuzz/` runs the same
//! targets under libFuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Cases for each target unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 3000;

/// One change of a seed.
#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    /// A part of the whole once more, somewhere else.
    Copy(Index, Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let telling = select(b"\0\x01\x7f\x80\xff\"\\{}[],:/.@_-0 \n".to_vec());
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), telling).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1..16_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), any::<Index>(), 1..64_usize).prop_map(|(from, to, count)| Mutation::Copy(from, to, count)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let length = bytes.len();
        let place = |index: &Index| index.index(length + 1);
        match mutation {
            Mutation::Set(at, byte) => {
                if let Some(old) = bytes.get_mut(at.index(length + 1)) {
                    *old = *byte;
                }
            }
            Mutation::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.iter().copied())),
            Mutation::Remove(at, count) => drop(bytes.drain(place(at)..(place(at) + count).min(length))),
            Mutation::Cut(at) => bytes.truncate(place(at)),
            Mutation::Copy(from, to, count) => {
                let part = bytes[place(from)..(place(from) + count).min(length)].to_vec();
                drop(bytes.splice(place(to)..place(to), part));
            }
        }
    }
    bytes
}

/// The files of `testdata/fuzz/<target>`: seeds, and what once made the target fail.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/fuzz").join(target);
    let files = directory.read_dir().unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 2, "seeds in {}", directory.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn run(target: &str, read: impl Fn(&[u8])) {
    let seeds = seeds(target);
    for seed in &seeds {
        read(seed);
    }
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let inputs = prop_oneof![
        8 => (select(seeds), vec(mutation(), 1..6)).prop_map(|(seed, mutations)| mutate(seed, &mutations)),
        1 => vec(any::<u8>(), 0..300),
    ];
    let result = TestRunner::new(config).run(&inputs, |bytes| {
        read(&bytes);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{target}: {error}");
    }
}

/// Seeds that nothing can be made of would fuzz nothing.
#[test]
fn the_seeds_are_understood() {
    assert!(seeds("netlink_reply").iter().all(|seed| viproute::internals::net::socket::read_anything(seed) > 0));
    assert!(seeds("dhcp_packet").iter().filter(|seed| viproute::internals::dhcp::read_anything(seed)).count() >= 14);
    assert!(seeds("link_frame").iter().all(|seed| viproute::internals::net::acd::read_anything(seed)));
    assert!(seeds("gossip").iter().filter(|seed| viproute::node::peers::read_anything(seed)).count() >= 11);
}

#[test]
fn cni_request() {
    run("cni_request", targets::cni_request);
}

#[test]
fn prev_result() {
    run("prev_result", targets::prev_result);
}

#[test]
fn dhcp_packet() {
    run("dhcp_packet", targets::dhcp_packet);
}

#[test]
fn link_frame() {
    run("link_frame", targets::link_frame);
}

#[test]
fn registry_file() {
    run("registry_file", targets::registry_file);
}

#[test]
fn allocator_line() {
    run("allocator_line", targets::allocator_line);
}

#[test]
fn gossip() {
    run("gossip", targets::gossip);
}

#[test]
fn netlink_reply() {
    run("netlink_reply", targets::netlink_reply);
}
