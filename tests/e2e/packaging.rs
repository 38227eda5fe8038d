//! What packaging/build.sh makes: programs that need nothing of the machine they run on.

mod arm64;
mod chart;
mod deb;
mod image;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Run, TempDir, VIPROUTE, tool};

const PROGRAMS: [&str; 3] = ["viproute", "viprouted", "viproutectl"];

/// Where packaging/build.sh has put them.
pub(crate) fn built(name: &str) -> PathBuf {
    built_for(std::env::consts::ARCH, name)
}

fn built_for(arch: &str, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("dist/bin-{arch}/{name}"));
    assert!(path.is_file(), "{} is missing: run packaging/build.sh {arch}", path.display());
    path
}

/// Whether a program asks for a dynamic loader (ELF-64, little endian: `PT_INTERP` among its program headers).
fn has_interpreter(program: &[u8]) -> bool {
    const PT_INTERP: usize = 3;
    assert_eq!(program[..6], *b"\x7fELF\x02\x01", "ELF-64, little endian");
    let number =
        |at: usize, size: usize| program[at..at + size].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte));
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    assert!(count > 0, "a program has headers");
    (0..count).any(|place| number(table + place * size, 4) == PT_INTERP)
}

fn contains(program: &[u8], text: &str) -> bool {
    program.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A static glibc's `getaddrinfo` loads libraries of the machine's, and crashes with those of another version. Names of functions
/// are stripped; the file that it alone reads isn't.
const OF_GETADDRINFO: &str = "/etc/gai.conf";

#[test]
fn programs_are_static_and_ask_no_resolver_of_the_c_library() {
    for name in PROGRAMS {
        let program = fs::read(built(name)).unwrap();
        assert!(!has_interpreter(&program), "{name} needs a dynamic loader");
        assert!(!contains(&program, OF_GETADDRINFO), "{name} has getaddrinfo in it");
        for place in [env!("CARGO_MANIFEST_DIR"), "/.cargo/registry"] {
            assert!(!contains(&program, place), "{name} says where it was built: {place}");
        }
    }
}

/// What the test above looks for is there in a program that has it.
#[test]
fn a_program_that_resolves_names_is_told_from_one_that_does_not() {
    let dir = TempDir::new();
    let source = "fn main() { drop(std::net::ToSocketAddrs::to_socket_addrs(\"localhost:80\")); }";
    fs::write(dir.file("main.rs"), source).unwrap();
    for (crt, is_static) in [("+crt-static", true), ("-crt-static", false)] {
        let mut command = Command::new("rustc");
        command.args([
            "-Cstrip=symbols",
            &format!("-Ctarget-feature={crt}"),
            "-o",
            &dir.file("main"),
            &dir.file("main.rs"),
        ]);
        command.finish("").ok();
        let program = fs::read(dir.file("main")).unwrap();
        assert_eq!(has_interpreter(&program), !is_static);
        assert_eq!(contains(&program, OF_GETADDRINFO), is_static);
    }
}

/// No libc, no loader, no shell: what a program needs beside itself would be missing.
#[test]
fn programs_run_where_there_is_nothing_else() {
    let root = TempDir::new();
    for name in PROGRAMS {
        fs::copy(built(name), root.path().join(name)).unwrap();
    }
    let inside = |name: &str| {
        let mut command = Command::new(tool("chroot"));
        command.arg(root.path()).arg(format!("/{name}")).env_clear();
        command
    };
    let answer = inside("viproute").env("CNI_COMMAND", "VERSION").finish(r#"{"cniVersion":"1.0.0"}"#).ok();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(answer, json!({ "cniVersion": "1.0.0", "supportedVersions": supported }));
    for name in PROGRAMS {
        let said = inside(name).arg("--version").finish("").ok();
        assert!(said.starts_with(&format!("{name} {}", env!("CARGO_PKG_VERSION"))), "{said}");
    }
}

/// Sources elsewhere: what the archive is made of, without cargo and git.
pub(crate) fn sources() -> TempDir {
    let dir = TempDir::new();
    for part in ["install.sh", "packaging", "conf", "LICENSE", "CHANGELOG.md"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        Command::new("cp").arg("-r").arg(from).arg(dir.path()).finish("").ok();
    }
    dir
}

/// Makes the archive of the programs under test; its path.
fn archive(sources: &TempDir, umask: &str) -> PathBuf {
    let script = format!("umask {umask}; exec packaging/tarball.sh {}", std::env::consts::ARCH);
    let mut command = Command::new(tool("sh"));
    command.current_dir(sources.path()).args(["-c", &script]).env("BINARIES", Path::new(VIPROUTE).parent().unwrap());
    sources.path().join(command.finish("").ok().trim())
}

#[test]
fn an_archive_is_the_same_wherever_it_is_made() {
    let places = [sources(), sources()];
    let made = [archive(&places[0], "022"), archive(&places[1], "077")];
    assert_eq!(made[0].file_name(), made[1].file_name());
    let name = made[0].file_name().unwrap().to_str().unwrap();
    assert_eq!(name, format!("viproute-{}-linux-{}.tar.gz", viproute::RELEASE, std::env::consts::ARCH));
    assert!(fs::read(&made[0]).unwrap() == fs::read(&made[1]).unwrap(), "two archives of one source differ");
}

/// No cargo, no clang, no jq, no apt-get: what install.sh calls is in every Debian's base.
#[test]
fn an_archive_installs_itself_where_nothing_else_is() {
    const BASE: [&str; 29] = [
        "bash",
        "basename",
        "cat",
        "chmod",
        "cmp",
        "cp",
        "cut",
        "dirname",
        "env",
        "find",
        "grep",
        "head",
        "id",
        "install",
        "ln",
        "ls",
        "mktemp",
        "mv",
        "readlink",
        "rm",
        "rmdir",
        "sed",
        "sha256sum",
        "sort",
        "stat",
        "sync",
        "uname",
        "wc",
        "true",
    ];
    let (made_in, root, bin) = (sources(), TempDir::new(), TempDir::new());
    let made = archive(&made_in, "022");
    Command::new(tool("tar")).arg("-xzf").arg(&made).arg("-C").arg(made_in.path()).finish("").ok();
    let unpacked = made_in.path().join(made.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz"));
    for name in BASE {
        std::os::unix::fs::symlink(tool(name), bin.path().join(name)).unwrap();
    }
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(bin.path().join(program));
        command.current_dir(&unpacked).args(arguments).env_clear();
        command.env("PATH", bin.path()).env("DESTDIR", root.path()).finish("")
    };
    run("sha256sum", &["--check", "--quiet", "--strict", "SHA256SUMS"]).ok();
    for file in [
        "LICENSE",
        "CHANGELOG.md",
        "man/viproute.8",
        "man/viprouted.toml.5",
        "completions/viproutectl.zsh",
        "conf/nomad.conflist",
    ] {
        assert!(unpacked.join(file).is_file(), "{file}");
    }
    let network = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    let chain = root.path().join("etc/cni/net.d/10-n.conflist");
    fs::create_dir_all(chain.parent().unwrap()).unwrap();
    fs::write(&chain, network).unwrap();
    let tree = || Command::new("find").arg(root.path()).args(["-type", "f", "-printf", "%P %m %s\n"]).finish("").ok();
    let before = tree();
    run("bash", &["install.sh", "install"]).ok();
    assert!(fs::read_to_string(&chain).unwrap().contains("\"viproute\""));
    let installed = root.path().join("usr/local/bin/viproutectl");
    let said = Command::new(installed).arg("--version").finish("").ok();
    assert!(said.contains(viproute::VERSION), "{said}");
    run("bash", &["install.sh", "uninstall"]).ok();
    assert_eq!(tree(), before);
    // Without a network, and without the plugins for one, none is made that no pod could use.
    fs::remove_file(&chain).unwrap();
    let said = run("bash", &["install.sh", "install"]).ok();
    assert!(
        said.contains("No pod network was made") && !chain.with_file_name("10-viproute.conflist").exists(),
        "{said}"
    );
    let refused = run("bash", &["install.sh", "demo"]);
    assert!(refused.stderr.contains("demo needs the sources"), "{refused:?}");
}
