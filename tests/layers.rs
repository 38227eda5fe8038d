//! The rooms of `src/` depend on one another in one direction only. This reads what the sources name and fails on an
//! arrow that points up.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From the top down. A room may use the rooms of the rows below its own; rooms of one row don't know each other, except
/// as [`SIDEWAYS`] has it.
const ROWS: [&[&str]; 5] = [
    &["cni", "node", "ctl"],
    &["membership", "lease"],
    &["dataplane", "dhcp", "api"],
    &["registry", "ebpf", "net", "chain"],
    &["model"],
];

/// `viproutectl` shows what viprouted's configuration says and writes its manual page; both tools end up with the plugin's
/// own errors and annotations.
const SIDEWAYS: [(&str, &str); 2] = [("ctl", "node"), ("ctl", "cni")];

/// These know packets, kernel objects and programs, and nothing of what they are used for.
const WITHOUT_POLICY: [&str; 3] = ["dhcp", "net", "ebpf"];

fn row(room: &str) -> usize {
    ROWS.iter().position(|rooms| rooms.contains(&room)).unwrap_or_else(|| panic!("src/{room} has no row in ROWS"))
}

fn may(from: &str, to: &str) -> bool {
    let down =
        row(from) < row(to) && !(WITHOUT_POLICY.contains(&from) && to != "model" && !(from == "dhcp" && to == "net"));
    from == to || down || SIDEWAYS.contains(&(from, to))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a source names: `crate::ROOM`, and `crate::{ROOM, ROOM::…}`.
fn named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            rooms.extend(first_segments(group));
        } else {
            rooms.extend(identifier(rest));
        }
    }
    let known: BTreeSet<_> = ROWS.iter().flat_map(|rooms| rooms.iter().copied()).collect();
    rooms.into_iter().filter(|room| known.contains(room.as_str())).collect()
}

fn identifier(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// Of `a, b::{c, d}, e}` the words a, b and e.
fn first_segments(group: &str) -> Vec<String> {
    let (mut depth, mut fresh, mut words) = (0_usize, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && depth == 0 && (c.is_ascii_alphabetic() || c == '_') => {
                words.extend(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    words
}

/// Every room, with the rooms its sources name.
fn arrows() -> BTreeMap<(String, String), Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut arrows: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(&root).unwrap();
        let Some(from) = below.parent().and_then(|p| p.iter().next()).and_then(|r| r.to_str()) else { continue };
        if from == "bin" {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for to in named(&text) {
            arrows.entry((from.to_owned(), to)).or_default().push(below.display().to_string());
        }
    }
    arrows
}

#[test]
fn no_arrow_points_up() {
    let arrows = arrows();
    assert!(arrows.len() > 20, "the sources were not understood: {arrows:?}");
    let wrong: Vec<_> = arrows.iter().filter(|((from, to), _)| !may(from, to)).collect();
    assert!(wrong.is_empty(), "arrows that point up or sideways: {wrong:#?}");
}

/// The records of replicas have one writer: whatever else wants one goes by it, and leaves its source.
#[test]
fn replicas_are_written_by_membership_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let writes = [".write_endpoint(", ".insert_pending(", ".remove_endpoint(", "registry.attach(", "locked.replace("];
    let mut who_writes: BTreeSet<String> = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let below = file.strip_prefix(&root).unwrap();
        // The registry writes what membership has handed in.
        if writes.iter().any(|call| text.contains(call)) && !below.starts_with("registry") {
            who_writes.insert(below.iter().next().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(who_writes.into_iter().collect::<Vec<_>>(), ["membership"]);
}

#[test]
fn every_folder_is_a_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders = root.read_dir().unwrap().flatten().filter(|entry| entry.path().is_dir());
    for name in folders.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name != "bin") {
        row(&name);
    }
}

#[test]
fn groups_are_read() {
    let text = "use crate::{net::{self, link}, registry};\nuse crate::api::client;\ncrate::model::Port";
    let rooms: Vec<_> = named(text).into_iter().collect();
    assert_eq!(rooms, ["api", "model", "net", "registry"]);
    assert!(!may("registry", "cni") && !may("net", "dataplane") && !may("api", "lease") && may("cni", "net"));
}

/// The plugin is started for each pod: it brings no runtime, no HTTP and no metrics along.
#[test]
fn the_plugin_needs_no_runtime() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--no-default-features", "--edges", "normal", "--prefix", "none", "--offline"];
    let tree =
        std::process::Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("netlink-sys"), "{text}");
    for heavy in ["tokio", "hyper", "prometheus", "clap", "kube"] {
        assert!(!crates.contains(heavy), "{heavy}: {text}");
    }
}
