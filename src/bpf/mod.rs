//! The flow owner: two programs on every host end (`owner.bpf.c`), loaded once per boot and pinned with their maps. And a
//! program of the agent's own (`listening`).
//!
//! A build knows its own programs by their version (a hash, in the pins' names) and its maps by their names, which say
//! their form: another build's programs are replaced, and its maps taken over where their form is the same.

mod listening;
mod maps;

use std::cell::OnceCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::{ProgramError, ProgramFd, ProgramInfo, ProgramType, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

pub use listening::{Listening, Question};
pub use maps::{ADDRESSES, Attached, CROWDED, Counts, GUARDED, MEMBERS, Maps, Member, PORTS, STICKY_UDP};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/owner.bpf.o"));
/// Which build's programs these are.
const VERSION: &str = env!("VIPROUTE_OWNER_VERSION");
/// In its place while a program isn't on every host end yet.
const NEW: &str = "new";
/// The programs, as in the object.
const OWNER: &str = "owner";
const GUARD: &str = "guard";

/// What can go wrong with programs and maps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nowhere to pin anything.
    #[error(
        "the flow owner needs a BPF filesystem at {}: mount -t bpf bpf /sys/fs/bpf, or set \"flowOwner\" to \"off\"",
        .0.display()
    )]
    NotMounted(PathBuf),
    /// The kernel lets nobody, or not us, load programs.
    #[error("the flow owner can't be loaded: {why}; set \"flowOwner\" to \"off\" to do without it")]
    NotPermitted {
        /// Which of the possible reasons it is.
        why: String,
        /// The refusal.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel doesn't take the programs.
    #[error("load the flow owner")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nobody can be asked who listens.
    #[error("ask who listens by a BPF program")]
    Listening(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A map.
    #[error("{op} map entry {object}")]
    Map {
        /// What was tried.
        op: &'static str,
        /// With what.
        object: String,
        /// The refusal.
        #[source]
        source: Box<MapError>,
    },
    /// A file or directory below the pins'.
    #[error("{op} {}", .path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a call here gives.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn map(op: &'static str, object: impl fmt::Display, source: MapError) -> Self {
        if errno_of(&source) == Some(Errno::EPERM) {
            return Self::not_permitted(source);
        }
        Self::Map { op, object: object.to_string(), source: Box::new(source) }
    }

    fn load(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        match errno_of(&source) {
            Some(Errno::EPERM) => Self::not_permitted(source),
            _ => Self::Load(Box::new(source)),
        }
    }

    fn not_permitted(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::NotPermitted { why: why_not(), source: Box::new(source) }
    }

    fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.to_owned(), source }
    }
}

/// The kernel's own word, below whatever wraps it.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno::from_raw(code));
        }
        next = error.source();
    }
    None
}

/// Which of the things that forbid bpf(2) it is.
fn why_not() -> String {
    /// `CAP_NET_ADMIN`, `CAP_SYS_ADMIN` and `CAP_BPF` (`linux/capability.h`): the first, and one of the others.
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF: u64 = 1 << 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    if effective & NET_ADMIN == 0 || effective & (SYS_ADMIN | BPF) == 0 {
        return "CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) are needed".to_owned();
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    match lockdown.split('[').nth(1).and_then(|rest| rest.split(']').next()) {
        Some(mode) if mode != "none" => format!("the kernel is locked down ({mode})"),
        _ => "bpf(2) is not permitted here, though the capabilities are there (a seccomp filter?)".to_owned(),
    }
}

/// The programs, loaded.
#[derive(Debug)]
pub struct Programs {
    /// For tc egress of a host end.
    pub owner: Program,
    /// For tc ingress of a host end.
    pub guard: Program,
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    info: ProgramInfo,
    fd: OnceCell<ProgramFd>,
}

impl Program {
    /// What the kernel says of it is enough: aya's own type for a pinned program tries out what the kernel can do first,
    /// by some twenty system calls.
    fn open(pin: &Path) -> Result<Option<Self>> {
        match ProgramInfo::from_pin(pin) {
            Ok(info) => Ok(Some(Self { info, fd: OnceCell::new() })),
            Err(e) if matches!(errno_of(&e), Some(Errno::ENOENT | Errno::ENOTDIR)) => Ok(None),
            Err(e) => Err(Error::load(e)),
        }
    }

    fn load(object: &mut Ebpf, dir: &Path, name: &str) -> Result<Self> {
        let missing = || Error::Load(format!("the object has no program {name}").into());
        let program = object.program_mut(name).ok_or_else(missing)?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e: ProgramError| Error::load(e))?;
        program.load().map_err(Error::load)?;
        let pin = new_pin_of(dir, name);
        remove_if_present(&pin)?; // a crash has left it
        program.pin(&pin).map_err(Error::load)?;
        Self::open(&pin)?.ok_or_else(missing)
    }

    /// Its id in the kernel.
    pub fn id(&self) -> u32 {
        self.info.id()
    }

    /// Its file descriptor, for as long as this lives.
    pub fn fd(&self) -> Result<RawFd> {
        if self.fd.get().is_none() {
            let _ = self.fd.set(self.info.fd().map_err(Error::load)?);
        }
        self.fd.get().map(|fd| fd.as_fd().as_raw_fd()).ok_or_else(|| Error::Load("no descriptor".into()))
    }
}

impl Programs {
    /// The programs of this build, if they are loaded.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let pair = (Program::open(&pin_of(dir, OWNER))?, Program::open(&pin_of(dir, GUARD))?);
        let (Some(owner), Some(guard)) = pair else { return Ok(None) };
        Ok(Some(Self { owner, guard }))
    }

    /// The programs of another build, if those are what is pinned.
    pub fn open_others(dir: &Path) -> Result<Option<Self>> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(None) };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let version = |name: &String| Some(name.strip_prefix(OWNER)?.strip_prefix('_')?.to_owned());
        for version in names.filter_map(|name| version(&name)).filter(|found| found != NEW && found != VERSION) {
            let pin = |program| Program::open(&dir.join(format!("{program}_{version}")));
            if let (Some(owner), Some(guard)) = (pin(OWNER)?, pin(GUARD)?) {
                return Ok(Some(Self { owner, guard }));
            }
        }
        Ok(None)
    }

    /// Loads the programs, with the maps that are pinned or with new ones, which are pinned. ADDs don't use them yet.
    pub fn load(dir: &PinDir) -> Result<Self> {
        let dir = &dir.path;
        let paths: Vec<(&str, PathBuf)> = maps::NAMES.iter().map(|name| (*name, dir.join(name))).collect();
        let mut loader = EbpfLoader::new();
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        let mut object = loader.load(OBJECT).map_err(Error::load)?;
        Ok(Self { owner: Program::load(&mut object, dir, OWNER)?, guard: Program::load(&mut object, dir, GUARD)? })
    }

    /// From now on they are the ones that ADDs use. The owner comes last and counts.
    pub fn publish(&self, dir: &PinDir) -> Result<()> {
        for name in [GUARD, OWNER] {
            let path = pin_of(&dir.path, name);
            std::fs::rename(new_pin_of(&dir.path, name), &path).map_err(Error::io("pin", &path))?;
        }
        Ok(())
    }
}

/// Whether another build's programs are pinned there.
pub fn has_anothers(dir: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let mine = [pin_of(dir, OWNER), new_pin_of(dir, OWNER)];
    let beginning = format!("{OWNER}_");
    let is_owner = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(&beginning);
    Ok(entries.flatten().any(|entry| is_owner(&entry.file_name()) && !mine.contains(&entry.path())))
}

/// Dots are not allowed in names of a BPF filesystem.
fn pin_of(dir: &Path, program: &str) -> PathBuf {
    dir.join(format!("{program}_{VERSION}"))
}

/// Where a program is until every host end has it.
fn new_pin_of(dir: &Path, program: &str) -> PathBuf {
    dir.join(format!("{program}_{NEW}"))
}

/// Whether all of this build's maps are pinned.
pub fn has_maps(dir: &Path) -> bool {
    maps::NAMES.iter().all(|name| dir.join(name).exists())
}

/// The pins' directory, locked: one at a time loads programs.
#[derive(Debug)]
pub struct PinDir {
    _lock: File,
    path: PathBuf,
}

impl PinDir {
    /// Makes the directory where it is missing, and waits for its lock.
    pub fn lock(path: &Path) -> Result<Self> {
        check_mounted(path)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("create", path))?;
        let directory = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(path);
        let directory = directory.map_err(Error::io("open", path))?;
        directory.lock().map_err(Error::io("lock", path))?;
        Ok(Self { _lock: directory, path: path.to_owned() })
    }

    /// Removes the pins of other builds: programs that no filter needs any more, maps of another form.
    pub fn remove_others(&self) -> Result<()> {
        let mine = [pin_of(&self.path, OWNER), pin_of(&self.path, GUARD)];
        for entry in std::fs::read_dir(&self.path).map_err(Error::io("list", &self.path))? {
            let path = entry.map_err(Error::io("list", &self.path))?.path();
            let is_map =
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| maps::NAMES.contains(&name));
            if !is_map && !mine.contains(&path) {
                remove_if_present(&path)?;
            }
        }
        Ok(())
    }
}

fn remove_if_present(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The nearest directory that exists must be on a BPF filesystem.
fn check_mounted(path: &Path) -> Result<()> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    match existing.map(statfs) {
        Some(Ok(filesystem)) if filesystem.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        _ => Err(Error::NotMounted(path.to_owned())),
    }
}

/// Whether an ADD could load the programs where they aren't yet.
pub fn check_available(dir: &Path) -> Result<()> {
    check_mounted(dir)?;
    if Programs::open(dir)?.is_some() {
        return Ok(());
    }
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Load("the kernel has no tc programs (CONFIG_NET_CLS_BPF)".into())),
        Err(e) => Err(Error::load(e)),
    }
}
