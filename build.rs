//! Compiles the programs in `src/bpf` with clang and tells the library the version of the flow owner's: a hash of the
//! object, so that another build's are known as such.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use sha2::{Digest, Sha256};

fn main() {
    println!("cargo::rerun-if-changed=src/bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    compile("listen");
    let owner = compile("owner");
    let bytes = fs::read(&owner).unwrap_or_else(|e| fail(&format!("read {}: {e}", owner.display())));
    let hash = Sha256::digest(bytes);
    let version = hash.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    println!("cargo::rustc-env=VIPROUTE_OWNER_VERSION={version:012x}");
}

/// Makes `NAME.bpf.o` of `src/bpf/NAME.bpf.c`.
fn compile(name: &str) -> PathBuf {
    let source = format!("src/bpf/{name}.bpf.c");
    let object = Path::new(&variable("OUT_DIR")).join(format!("{name}.bpf.o"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    // v3: 32-bit arithmetic, since Linux 5.1.
    command.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-target", target()]);
    // Where the compiler was called from must not change the version.
    command.arg(format!("-ffile-prefix-map={}=.", variable("CARGO_MANIFEST_DIR")));
    if let Some(headers) = machine_headers() {
        command.arg("-idirafter").arg(headers);
    }
    match command.args(["-c", &source, "-o"]).arg(&object).status() {
        Ok(status) if status.success() => object,
        Ok(status) => {
            fail(&format!("{clang} could not compile {source} ({status}); it needs linux-libc-dev's headers"))
        }
        Err(e) => fail(&format!("{clang} can't be run ({e}): install the package clang, or set CLANG")),
    }
}

/// The byte order is the target machine's.
fn target() -> &'static str {
    if variable("CARGO_CFG_TARGET_ENDIAN") == "big" { "bpfeb" } else { "bpfel" }
}

/// `asm/types.h` is the machine's; Debian keeps it apart.
fn machine_headers() -> Option<PathBuf> {
    let arch = match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        "x86" => "i386".to_owned(),
        "powerpc64" => "powerpc64le".to_owned(),
        other => other.to_owned(),
    };
    let headers = PathBuf::from(format!("/usr/include/{arch}-linux-gnu"));
    headers.join("asm/types.h").exists().then_some(headers)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set: this is a build script, run by cargo")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
