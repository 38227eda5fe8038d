//! The flow owner: two programs on every host veth, two on every uplink, two on the tunnel to other nodes and three in pods that serve
//! UDP (`owner.bpf.c`, and the headers that it includes), all of them once more for packets of IPv6 (`owner6.bpf.c`; what is a family's own is
//! in headers with 4 and 6 in their names), loaded once per boot and pinned with their maps. And a program of the agent's own (`listening`).
//!
//! A build knows its own programs by their version (a hash, in the pins' names) and its maps by their names, which say
//! their form: another build's programs are replaced, and its maps taken over where their form is the same.

mod answers;
mod attached;
mod counts;
mod express;
mod flows;
mod hash;
mod ipv6;
#[cfg(test)]
mod layout;
mod listening;
mod lots;
mod maps;
mod nodes;
mod pins;
mod policies;
mod program;
mod servers;
mod shared;
mod spec;
mod translations;
mod vips;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::programs::{ProgramError, ProgramType};
use nix::errno::Errno;

pub use attached::{
    ANY_EGRESS, Attached, DRAINING, GUARDED, Member, OVER_MEMBER_LIMIT, POLICED, PORTS, SHARES_NUMBERS, STICKY_UDP,
    TRANSLATES,
};
pub use counts::{Counts, LinkDrops};
pub use express::{Express, ExpressCounts, express_counts};
pub use flows::{FlowId, FlowPlace, client, hint, sticky};
pub use ipv6::{OWN, own};
pub use listening::{Listening, OnDemand, Question};
pub use lots::{Asked, appointed};
pub use maps::{ADDRESSES, Maps};
pub use nodes::{Here, Nodes, tunnel_counts, tunnel_source};
pub use pins::{PinDir, check_dir, has_maps, other_versions, pinned_parts};
pub use policies::{Policies, PolicyChange, PortPolicy, RANGES, set_uplinks, uplinks};
pub use program::Programs;
pub use servers::{ByPort, Server};
pub use spec::{Hook, Parts, of_name};
pub use vips::{Known, MEMBERS, Ring};

/// Which build's programs these are.
const VERSION: &str = env!("VIPROUTE_OWNER_VERSION");

/// What can go wrong with programs and maps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nowhere to pin anything.
    #[error(
        "the flow owner needs a BPF filesystem at {}: mount -t bpf bpf /sys/fs/bpf, or set \"flowOwner\" to \"off\"",
        .0.display()
    )]
    NotMounted(PathBuf),
    /// Others than root could put programs of their own there.
    #[error("{}: {flaw}; programs are pinned only where root alone can write: set \"bpfDir\" to such a directory", .path.display())]
    UnsafeDir {
        /// The directory, or a pin in it.
        path: PathBuf,
        /// What is wrong with it.
        flaw: &'static str,
    },
    /// The kernel doesn't let this process, or any, load programs.
    #[error("the flow owner can't be loaded: {why}; set \"flowOwner\" to \"off\" to do without it")]
    NotPermitted {
        /// Which of the possible reasons it is.
        why: String,
        /// The refusal.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's verifier takes none of the objects.
    #[error("the flow owner can't be loaded: {why}; set \"flowOwner\" to \"off\" to do without it")]
    Refused {
        /// What is known of the reason.
        why: &'static str,
        /// The verifier's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel doesn't take the programs.
    #[error("load the flow owner")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The program that finds listening sockets can't be loaded or run.
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
            // The verifier's, to a program. (To a map they would mean something else.)
            Some(Errno::EACCES | Errno::EINVAL | Errno::E2BIG) if is_of_a_program(&source) => {
                Self::Refused { why: why_refused(), source: Box::new(source) }
            }
            _ => Self::Load(Box::new(source)),
        }
    }

    /// A file was refused (EACCES): to root only a security module does that.
    pub fn is_access_denied(&self) -> bool {
        !self.is_verifiers() && errno_of(self) == Some(Errno::EACCES)
    }

    /// Whether another object may do.
    fn is_verifiers(&self) -> bool {
        matches!(self, Self::Refused { .. })
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

fn is_of_a_program(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(ProgramError::LoadError { .. }))
}

/// What the kernel has where it was built with `CONFIG_DEBUG_INFO_BTF`.
const BTF: &str = "/sys/kernel/btf/vmlinux";

fn why_refused() -> &'static str {
    if Path::new(BTF).exists() {
        "the kernel's verifier refuses its programs"
    } else {
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF), and its verifier refuses the programs that do without"
    }
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

/// Whether an ADD could load the programs where they aren't yet.
pub fn check_available(dir: &Path) -> Result<()> {
    check_dir(dir)?;
    if Programs::open(dir, Parts::default())?.is_some() {
        return Ok(());
    }
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Programs::try_out(),
        Ok(false) => Err(Error::Load("the kernel has no programs of tc's kind (CONFIG_NET)".into())),
        Err(e) => Err(Error::load(e)),
    }
}
