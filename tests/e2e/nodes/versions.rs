//! Nodes of different versions know each other, and say so.

use std::fs;
use std::process::Command;

use super::{Scene, web};
use crate::harness::{Run, SOON, Sidecar, TempDir, VIPROUTECTL, until};

/// What this viprouted says of its release.
fn release() -> String {
    let said = Command::new(VIPROUTECTL).arg("--version").finish("").ok();
    said.split(' ').nth(1).expect("a release").to_owned()
}

/// A viprouted that says so of another one, as long.
fn of_another_build(dir: &TempDir, own: &str) -> (String, String) {
    let mut other = own.to_owned();
    let last = other.pop().expect("a release");
    other.push(if last == '0' { '1' } else { '0' });
    let mut program = fs::read(env!("CARGO_BIN_EXE_viprouted")).expect("viprouted");
    let found: Vec<usize> =
        program.windows(own.len()).enumerate().filter(|(_, text)| *text == own.as_bytes()).map(|(at, _)| at).collect();
    for at in found {
        program[at..at + own.len()].copy_from_slice(other.as_bytes());
    }
    let (written, path) = (dir.file("viprouted.written"), dir.file("viprouted"));
    fs::write(&written, program).expect("write a program");
    // A file that any process has open for writing can't be executed: a child of another test's may have inherited it.
    Command::new("install").args(["-m", "755", &written, &path]).finish("").ok();
    (path, other)
}

#[test]
fn another_version_is_shown_and_served() {
    let mut scene = Scene::new(2);
    let own = release();
    let (program, other) = of_another_build(&scene.dir, &own);
    let said = format!("viprouted is {other} on n2, and {own} on this node");
    let finding = |scene: &Scene| scene.members[0].nodes()["findings"].to_string().contains(&said);
    assert!(!finding(&scene));
    scene.members[1].stop();
    let member = &mut scene.members[1];
    member.sidecar = Some(Sidecar::of(&program, &member.node, &member.settings));
    scene.members[0].finds(&said);
    let table = scene.members[0].ctl(&["nodes"]).ok();
    let has_version = |node: &str, version: &str| {
        let mut lines = table.lines().filter(|line| line.trim_start().starts_with(node));
        lines.any(|line| line.split_whitespace().last() == Some(version))
    };
    assert!(has_version("n1", &own) && has_version("n2", &other) && table.contains(&said), "{table}");
    let doctor = scene.members[0].doctor();
    assert!(doctor.contains(&said) && doctor.contains("Upgrade the nodes that have the older one"), "{doctor}");
    let _pod = scene.members[1].node.joined(&web());
    scene.members[0].has("n2's replica", &[("192.0.2.2", "ready", 1)]);
    scene.members[1].stop();
    scene.members[1].start();
    until("the finding is gone", SOON, || (!finding(&scene)).then_some(()));
}
