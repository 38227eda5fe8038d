//! Compiles the programs in `src/ebpf` with clang and tells the library the version of the flow owner's: a hash of its
//! objects, so that another build's are known as such; and which release, or which commit, all programs are of.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use object::build::elf::{Builder, SectionData};
use object::elf::{SHT_STRTAB, STB_LOCAL, STT_NOTYPE};
use object::{Endian, Endianness};
use sha2::{Digest, Sha256};

fn main() {
    println!("cargo::rerun-if-changed=src/ebpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let mut hash = Sha256::new();
    for kind in [Kind::Full, Kind::WithoutBtf] {
        compile("listen", kind);
        add(&mut hash, &compile("owner", kind));
    }
    // The verifier has no room for it where it walks all in one.
    add(&mut hash, &compile("owner6", Kind::Full));
    let version = hash.finalize().iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    println!("cargo::rustc-env=VIPROUTE_OWNER_VERSION={version:012x}");
    println!("cargo::rustc-env=VIPROUTE_RELEASE={}", release());
}

fn add(hash: &mut Sha256, object: &Path) {
    hash.update(fs::read(object).unwrap_or_else(|e| fail(&format!("read {}: {e}", object.display()))));
}

/// `0.2.0+g<commit>`; `0.2.0` where the commit has the tag `v0.2.0`, and where nothing tells the commit.
fn release() -> String {
    let version = variable("CARGO_PKG_VERSION");
    match Commit::of_checkout().or_else(Commit::of_archive) {
        Some(commit) if commit.tag != format!("v{version}") => format!("{version}+g{:.12}", commit.id),
        _ => version,
    }
}

/// What the sources are.
struct Commit {
    id: String,
    /// Empty, or another text, where it has no tag of a release.
    tag: String,
}

impl Commit {
    /// Of a clone, while it is one: another commit runs this script again, and nothing else in git does.
    fn of_checkout() -> Option<Self> {
        // Around sources that were unpacked somewhere there may be somebody else's repository.
        let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
        if fs::canonicalize(top).ok()? != fs::canonicalize(variable("CARGO_MANIFEST_DIR")).ok()? {
            return None;
        }
        watch("HEAD");
        if let Some(branch) = git(&["symbolic-ref", "--quiet", "HEAD"]) {
            // A file that isn't there would run the script each time. Its directory tells of its coming.
            if !watch(&branch) {
                watch("packed-refs");
                watch("refs/heads");
            }
        }
        let tag = git(&["describe", "--exact-match", "--tags", "--match", "v*", "HEAD"]).unwrap_or_default();
        Some(Self { id: git(&["rev-parse", "HEAD"])?, tag })
    }

    /// Of what `git archive` has made.
    fn of_archive() -> Option<Self> {
        const PATH: &str = "packaging/commit";
        println!("cargo::rerun-if-changed={PATH}");
        let text = fs::read_to_string(PATH).ok()?;
        let (id, tag) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        // Elsewhere git's placeholder is still in it.
        let is_id = id.len() >= 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| Self { id: id.to_owned(), tag: tag.to_owned() })
    }
}

/// Runs the script again when this file of git's has changed, if there is one.
fn watch(name: &str) -> bool {
    let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) else {
        return false;
    };
    println!("cargo::rerun-if-changed={path}");
    true
}

/// What git says; none where there is no git, or where it refuses.
fn git(arguments: &[&str]) -> Option<String> {
    // As root in somebody else's clone it would refuse otherwise.
    let safe = format!("safe.directory={}", variable("CARGO_MANIFEST_DIR"));
    let answer = Command::new("git").args(["-c", &safe]).args(arguments).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| text.trim().to_owned())
}

/// For which kernels an object is.
#[derive(Clone, Copy)]
enum Kind {
    Full,
    /// Those that have no BTF of their own, and so can't verify functions alone.
    WithoutBtf,
}

/// Makes `NAME.bpf.o`, or `NAME.without-btf.bpf.o`, of `src/ebpf/NAME.bpf.c`.
fn compile(name: &str, kind: Kind) -> PathBuf {
    let source = format!("src/ebpf/{name}.bpf.c");
    let (suffix, defines): (_, &[_]) = match kind {
        Kind::Full => ("bpf.o", &[]),
        Kind::WithoutBtf => ("without-btf.bpf.o", &["-DWITHOUT_BTF"]),
    };
    let object = Path::new(&variable("OUT_DIR")).join(format!("{name}.{suffix}"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    // v3: 32-bit arithmetic, since Linux 5.1.
    command
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-addrsig", "-mcpu=v3", "-target", target()])
        .args(defines);
    // Where the compiler was called from must not change the version. And under a path that doesn't exist it finds no source, whose
    // lines it would add to the BTF.
    command.arg(format!("-ffile-prefix-map={}=/viproute", variable("CARGO_MANIFEST_DIR")));
    if let Some(headers) = machine_headers() {
        command.arg("-idirafter").arg(headers);
    }
    match command.args(["-c", &source, "-o"]).arg(&object).status() {
        Ok(status) if status.success() => {
            if let Err(e) = strip(&object) {
                println!("cargo::warning={} keeps what only a debugger reads: {e}", object.display());
            }
            object
        }
        Ok(status) => {
            fail(&format!("{clang} could not compile {source} ({status}); it needs linux-libc-dev's headers"))
        }
        Err(e) => fail(&format!("{clang} can't be run ({e}): install the package clang, or set CLANG")),
    }
}

/// Takes out of an object what only debuggers and linkers read: the programs carry the objects within them. BTF stays, by which
/// maps are declared, and functions verified alone. (llvm-strip is in another package than clang.)
fn strip(object: &Path) -> Result<(), Box<dyn Error>> {
    let whole = fs::read(object)?;
    let mut builder = Builder::read(whole.as_slice())?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete =
            [".debug_", ".rel.debug_", ".rel.BTF"].iter().any(|prefix| name.starts_with(prefix.as_bytes()));
        if name == b".BTF.ext"
            && let SectionData::Data(info) = &mut section.data
        {
            *info = without_lines(info, builder.endian)?.into();
        }
    }
    builder.delete_orphans();
    delete_labels(&mut builder);
    // clang's symbols and sections share one table of names, which the builder knows as the symbols'.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    #[allow(clippy::disallowed_methods)] // cargo waits for the end of this program
    fs::write(object, stripped)?;
    Ok(())
}

/// `.BTF.ext` without the source's lines, which are its last part where nothing is relocated by the kernel's own BTF. (Its form:
/// struct `btf_ext_header` in libbpf's `libbpf_internal.h`.)
fn without_lines(info: &[u8], endian: Endianness) -> Result<Vec<u8>, Box<dyn Error>> {
    let field = |at: usize| -> Result<usize, Box<dyn Error>> {
        let bytes = info.get(at..at + 4).ok_or(".BTF.ext is too short")?.try_into()?;
        Ok(endian.read_u32(bytes) as usize)
    };
    let (header, functions, lines, of_lines) = (field(4)?, field(12)?, field(16)?, field(20)?);
    if header < 24 || field(8)? != 0 || lines != functions || info.len() != header + lines + of_lines {
        return Err("the parts of .BTF.ext are in an unknown order".into());
    }
    let mut rest = info[..header + functions].to_vec();
    rest[16..header].fill(0); // where the lines, and what would follow them, begin, and how long that is
    Ok(rest)
}

/// Local labels that no relocation names.
fn delete_labels(builder: &mut Builder) {
    let kept = builder.sections.iter().filter(|section| !section.delete);
    let relocations = kept.filter_map(|section| match &section.data {
        SectionData::Relocation(relocations) => Some(relocations),
        _ => None,
    });
    let named: Vec<_> = relocations.flatten().filter_map(|relocation| relocation.symbol).collect();
    for symbol in &mut builder.symbols {
        let is_label = symbol.st_bind() == STB_LOCAL && symbol.st_type() == STT_NOTYPE;
        symbol.delete |= is_label && !named.contains(&symbol.id());
    }
}

/// The byte order is the target machine's.
fn target() -> &'static str {
    if variable("CARGO_CFG_TARGET_ENDIAN") == "big" { "bpfeb" } else { "bpfel" }
}

/// `asm/types.h` is the target machine's; Debian keeps it apart, and for cross-compiling elsewhere than for programs of that machine.
fn machine_headers() -> Option<PathBuf> {
    let arch = match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        "x86" => "i386".to_owned(),
        "powerpc64" => "powerpc64le".to_owned(),
        other => other.to_owned(),
    };
    let places = [format!("/usr/include/{arch}-linux-gnu"), format!("/usr/{arch}-linux-gnu/include")];
    places.map(PathBuf::from).into_iter().find(|headers| headers.join("asm/types.h").exists())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set: this is a build script, run by cargo")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
