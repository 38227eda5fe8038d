//! What packaging/build.sh makes for arm64 on another machine. qemu runs those programs by this machine's kernel, and knows no BPF: what they do with
//! files and processes can be tried, a pod's ADD can't.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use super::{OF_GETADDRINFO, PROGRAMS, built, built_for, contains, has_interpreter, sources};
use crate::harness::{Run, TempDir, tool};

const ARCH: &str = "aarch64";

const OBJECTS: [&str; 4] = ["owner.bpf.o", "owner.without-btf.bpf.o", "listen.bpf.o", "listen.without-btf.bpf.o"];

/// Of the programs under test.
fn object(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("OUT_DIR")).join(name)).unwrap()
}

/// The build script's program, the one that was made last.
fn build_script() -> PathBuf {
    let builds = Path::new(env!("OUT_DIR")).parent().and_then(Path::parent).expect("where build scripts are");
    let made = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let scripts = fs::read_dir(builds).unwrap().map(|entry| entry.unwrap().path());
    let scripts = scripts.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("viproute-"));
    scripts.map(|path| path.join("build-script-build")).filter(|path| path.is_file()).max_by_key(made).expect("one")
}

/// Compiled for a machine with these headers, as cargo has them compiled; what the script tells cargo, its warnings among it.
fn compile(arch: &str, to: &TempDir) -> String {
    let mut command = Command::new(build_script());
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"));
    command.env("CARGO_PKG_VERSION", env!("CARGO_PKG_VERSION")).env("OUT_DIR", to.path());
    command.env("CARGO_CFG_TARGET_ENDIAN", "little").env("CARGO_CFG_TARGET_ARCH", arch).finish("").ok()
}

#[test]
fn objects_for_the_kernel_are_the_same_for_each_processor() {
    let headers = ["/usr/aarch64-linux-gnu/include/asm/types.h", "/usr/include/aarch64-linux-gnu/asm/types.h"];
    assert!(
        headers.iter().any(|header| Path::new(header).exists()),
        "none of {headers:?}: apt-get install linux-libc-dev-arm64-cross"
    );
    for arch in ["x86_64", ARCH] {
        let to = TempDir::new();
        let said = compile(arch, &to);
        assert!(!said.contains("cargo::warning"), "{arch}: {said}");
        for name in OBJECTS {
            assert!(fs::read(to.path().join(name)).unwrap() == object(name), "{name} for {arch} is another one");
        }
    }
}

/// One of the programs for arm64, run by qemu.
fn emulated(program: &str) -> Command {
    let mut command = Command::new(tool("qemu-aarch64-static"));
    command.arg(built_for(ARCH, program)).env_remove("DESTDIR");
    command
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn programs_are_static_and_have_the_same_objects() {
    const AARCH64: [u8; 2] = [183, 0];
    for name in PROGRAMS {
        let program = fs::read(built_for(ARCH, name)).unwrap();
        assert_eq!(program[18..20], AARCH64, "{name}: e_machine");
        assert!(!has_interpreter(&program), "{name} needs a dynamic loader");
        for text in [OF_GETADDRINFO, env!("CARGO_MANIFEST_DIR"), "/.cargo/registry"] {
            assert!(!contains(&program, text), "{name} has {text} in it");
        }
        // The last two are viprouted's alone.
        for object_name in if name == "viprouted" { &OBJECTS[..] } else { &OBJECTS[..2] } {
            let object = object(object_name);
            assert!(program.windows(object.len()).any(|window| window == object), "{object_name} isn't in {name}");
        }
        // Release, commit, and the hash of the flow owner's objects.
        let here = Command::new(built(name)).arg("--version").finish("").ok();
        assert_eq!(emulated(name).arg("--version").finish("").ok(), here);
    }
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn programs_run() {
    let answer = emulated("viproute").env("CNI_COMMAND", "VERSION").finish(r#"{"cniVersion":"1.1.0"}"#).ok();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["supportedVersions"].as_array().unwrap().contains(&"1.1.0".into()), "{answer}");
    for name in &PROGRAMS[1..] {
        assert!(emulated(name).arg("--help").finish("").ok().contains(&format!("Usage: {name}")));
    }
    let dir = TempDir::new();
    fs::write(dir.file("viprouted.toml"), "backend = \"pool\"\npool.cidr = \"10.118.0\"\n").unwrap();
    let refused = emulated("viprouted").arg("--config").arg(dir.file("viprouted.toml")).finish("");
    assert!(!refused.status.success() && refused.stderr.contains("10.118.0"), "{refused:?}");
}

/// Without qemu's binfmt the new plugin can't be run once where the runtime will: `join` doesn't.
#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn a_network_is_joined_and_left() {
    let root = TempDir::new();
    let chain = root.path().join("etc/cni/net.d/10-n.conflist");
    let network = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    fs::create_dir_all(chain.parent().unwrap()).unwrap();
    fs::write(&chain, network).unwrap();
    let node = |verb: &str| emulated("viproutectl").args(["node", verb, "--root"]).arg(root.path()).finish("").ok();
    node("join");
    assert!(fs::read_to_string(&chain).unwrap().contains("\"viproute\""));
    node("leave");
    assert_eq!(fs::read_to_string(&chain).unwrap(), network);
}

/// The archive's and the package's own pages are made by the program itself, and so by qemu.
#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn an_archive_and_a_package_are_made_of_them() {
    let made_in = sources();
    let make = |script: &str| {
        let mut command = Command::new(made_in.path().join(format!("packaging/{script}")));
        command.arg(ARCH).env("BINARIES", built_for(ARCH, "viproute").parent().unwrap());
        made_in.path().join(command.finish("").ok().trim())
    };
    let (archive, deb) = (make("tarball.sh"), make("deb.sh"));
    assert!(archive.to_str().unwrap().ends_with("-linux-aarch64.tar.gz"), "{}", archive.display());
    assert!(deb.to_str().unwrap().ends_with("_arm64.deb"), "{}", deb.display());
    let listed = Command::new(tool("tar")).arg("-tzf").arg(&archive).finish("").ok();
    for file in ["/bin/viproute\n", "/man/viproute.8\n", "/completions/viproutectl.bash\n"] {
        assert!(listed.contains(file), "{file:?} in {listed}");
    }
    let architecture = Command::new(tool("dpkg-deb")).arg("--field").arg(&deb).arg("Architecture").finish("").ok();
    assert_eq!(architecture, "arm64\n");
    let mut lintian = Command::new(tool("lintian"));
    lintian.args(["--allow-root", "--no-cfg", "--fail-on", "error,warning"]).arg(&deb);
    assert_eq!(lintian.finish("").ok(), "");
}
