//! The programs that tests/kubernetes.sh has built.

use std::path::Path;

const PARTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/kubernetes");

/// The path of one of them, which is the same in a machine.
pub fn part(name: &str) -> String {
    assert!(Path::new(PARTS).join("version").is_file(), "{PARTS} is missing: run ./install.sh test --kubernetes");
    format!("{PARTS}/{name}")
}
