//! What `deny.toml` says of crates, as far as it can be seen without a network: licences, where they come from, which are not wanted. No root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // Those of other systems are not fetched.
    let output =
        command.args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Crates that are not viproute's own, by name and version.
fn crates(metadata: &Value) -> Vec<(String, &Value)> {
    let used: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let others =
        packages.filter(|package| used.contains(package["id"].as_str().unwrap()) && package["name"] != "viproute");
    others
        .map(|package| {
            (format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap()), package)
        })
        .collect()
}

fn rules() -> toml::Table {
    include_str!("../deny.toml").parse().unwrap()
}

fn names(rules: &toml::Table, table: &str, key: &str) -> Vec<String> {
    let list = rules[table].get(key).and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let name = |entry: &toml::Value| {
        let entry = entry.get("crate").or_else(|| entry.get("name")).unwrap_or(entry);
        entry.as_str().unwrap_or_else(|| panic!("{table}.{key}: {entry}")).to_owned()
    };
    list.iter().map(name).collect()
}

/// SPDX, as far as crates use it: `A OR B`, `A AND B`, parentheses, `A WITH exception`, and `A/B` of old for OR.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (value, rest) = any_of(&words, allowed);
    assert!(rest.is_empty(), "{expression} is not understood");
    value
}

fn any_of<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = all_of(words, allowed);
    while let Some(("OR", more)) = rest.split_first().map(|(word, more)| (*word, more)) {
        let (next, after) = all_of(more, allowed);
        (value, rest) = (value || next, after);
    }
    (value, rest)
}

fn all_of<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (mut value, mut rest) = one(words, allowed);
    while let Some(("AND", more)) = rest.split_first().map(|(word, more)| (*word, more)) {
        let (next, after) = one(more, allowed);
        (value, rest) = (value && next, after);
    }
    (value, rest)
}

fn one<'a>(words: &'a [&'a str], allowed: &[String]) -> (bool, &'a [&'a str]) {
    let (first, rest) = words.split_first().expect("a licence");
    if *first == "(" {
        let (value, rest) = any_of(rest, allowed);
        return (value, rest.strip_prefix(&[")"]).expect("a closing parenthesis"));
    }
    let (name, rest) = match rest {
        ["WITH", exception, rest @ ..] => (format!("{first} WITH {exception}"), rest),
        rest => ((*first).to_owned(), rest),
    };
    (allowed.contains(&name), rest)
}

#[test]
fn licences_are_read() {
    let allowed = ["Apache-2.0".to_owned(), "MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for good in [
        "MIT",
        "MIT/GPL-2.0",
        "(GPL-2.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-2.0 OR (MIT AND Apache-2.0)",
    ] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-2.0", "MIT AND GPL-2.0", "(GPL-2.0 OR ISC) AND MIT", "MIT WITH LLVM-exception"] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn crates_have_allowed_licences_and_come_from_the_registry() {
    let (metadata, rules) = (metadata(), rules());
    let allowed = names(&rules, "licenses", "allow");
    let banned = names(&rules, "bans", "deny");
    let exceptions = names(&rules, "licenses", "exceptions");
    let crates = crates(&metadata);
    assert!(crates.len() > 50, "{crates:?}");
    for (name, package) in crates {
        let bare = package["name"].as_str().unwrap().to_owned();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence, &allowed) || exceptions.contains(&bare), "{name} has {licence}");
        let from = package["source"].as_str().unwrap_or_default();
        assert_eq!(from, "registry+https://github.com/rust-lang/crates.io-index", "{name}");
        assert!(!banned.contains(&bare), "{name} is not wanted: see deny.toml");
    }
}

/// An exception without a reason is found by nobody who comes later.
#[test]
fn every_exception_has_its_reason() {
    let rules = rules();
    for (table, key) in [("bans", "deny"), ("bans", "skip"), ("licenses", "exceptions"), ("advisories", "ignore")] {
        for entry in rules[table].get(key).and_then(toml::Value::as_array).into_iter().flatten() {
            let reason = entry.get("reason").and_then(toml::Value::as_str).unwrap_or_default();
            assert!(!reason.is_empty(), "{table}.{key}: {entry} has no reason");
        }
    }
}

/// packaging/sbom.sh: what the programs are made of, and neither tests nor build scripts.
#[test]
fn a_release_lists_its_crates() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let version = format!("0.0.0-test{}", std::process::id());
    let output = Command::new(root.join("packaging/sbom.sh")).arg(&version).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = root.join(String::from_utf8(output.stdout).unwrap().trim());
    let list: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
    assert_eq!((list["bomFormat"].as_str(), list["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    let components = list["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    assert!(names.contains("aya") && names.contains("tokio") && !names.contains("proptest"), "{names:?}");
    for component in components {
        assert_eq!(component["hashes"][0]["content"].as_str().map(str::len), Some(64), "{component}");
        assert!(!component["licenses"][0]["expression"].as_str().unwrap().is_empty(), "{component}");
    }
}
