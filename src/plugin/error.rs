//! Everything a verb can fail with, and the one place where that becomes a CNI error code.

use nix::errno::Errno;

use crate::allocator::client;
use crate::cni::config::ConfigError;
use crate::cni::env::EnvError;
use crate::cni::result::ResultError;
use crate::cni::{self, Code};
use crate::{bpf, net, registry, vip, with_causes};

/// A verb's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// prevResult.
    #[error(transparent)]
    PrevResult(#[from] ResultError),
    /// An annotation, or a VIP's name.
    #[error("{what} is {value:?}: expected {expected}")]
    Invalid {
        /// Which annotation or key.
        what: String,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Too many, or the same twice.
    #[error("{0}")]
    Membership(String),
    /// `CNI_NETNS` is no network namespace.
    #[error("CNI_NETNS is {path:?}: expected the path of a network namespace")]
    NotANetns {
        /// What it is.
        path: String,
        /// Why not.
        #[source]
        source: net::Error,
    },
    /// `CNI_NETNS` is where the plugin runs.
    #[error("CNI_NETNS is {0:?}: that is the node's own network namespace")]
    NodesOwnNetns(String),
    /// The pod has no interface of that name.
    #[error("CNI_IFNAME is {0:?}: the pod has no such interface")]
    NoInterface(String),
    /// The pod has no IPv4 address.
    #[error("the pod has no IPv4 address on {0}, and VIPs need one")]
    NoPodAddress(String),
    /// Which address is the node's?
    #[error("the node has no IPv4 address to be found: set \"nodeIP\"")]
    NoNodeAddress,
    /// There is a `vip0`.
    #[error("the pod has a vip0 already: another attachment's, or not viproute's")]
    DeviceInTheWay,
    /// The kernel is older than VIPs need.
    #[error("the kernel is {0}: VIPs need Linux 5.14")]
    KernelTooOld(String),
    /// The allocator.
    #[error("no address for VIP {vip}")]
    Allocator {
        /// For which VIP.
        vip: String,
        /// Why not.
        #[source]
        source: client::Error,
    },
    /// The VIP got another address while the pod joined it.
    #[error("VIP {0} has just got another address")]
    Renumbered(String),
    /// CHECK found something.
    #[error("{0}")]
    CheckFailed(String),
    /// STATUS: an ADD could not work.
    #[error("{0}")]
    NotAvailable(String),
    /// The kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The flow owner.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
    /// A pod's VIPs disagree about the flow owner.
    #[error("VIP {0} and VIP {1} differ in \"flowOwner\" or \"bpfDir\": one pod's VIPs must agree")]
    MixedOwners(String, String),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Reading stdin or writing stdout.
    #[error("{0}")]
    Io(&'static str, #[source] std::io::Error),
    /// Several things failed; the others are in the details.
    #[error("{first}")]
    Several {
        /// The first.
        first: Box<Error>,
        /// The others, each with its causes.
        others: Vec<String>,
    },
}

impl From<vip::Error> for Error {
    fn from(error: vip::Error) -> Self {
        match error {
            vip::Error::Net(e) => Self::Net(e),
            vip::Error::Bpf(e) => Self::Bpf(e),
            vip::Error::Registry(e) => Self::Registry(e),
            vip::Error::Several { first, others } => Self::Several { first: Box::new(Self::from(*first)), others },
        }
    }
}

impl Error {
    /// The first of several errors, with the others in its details.
    pub fn several(errors: Vec<Self>) -> Result<(), Self> {
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Ok(()) };
        let others: Vec<String> = errors.map(|e| with_causes(&e)).collect();
        Err(if others.is_empty() { first } else { Self::Several { first: Box::new(first), others } })
    }

    /// The code a runtime sees.
    pub fn code(&self) -> Code {
        match self {
            Self::Env(_) | Self::NotANetns { .. } | Self::NodesOwnNetns(_) | Self::NoInterface(_) => {
                Code::InvalidEnvironment
            }
            Self::Config(ConfigError::Version(_)) => Code::IncompatibleVersion,
            Self::Config(ConfigError::Empty | ConfigError::NotJson(_)) | Self::PrevResult(_) => Code::Undecodable,
            Self::Config(_)
            | Self::Invalid { .. }
            | Self::Membership(_)
            | Self::NoNodeAddress
            | Self::MixedOwners(..) => Code::InvalidConfig,
            Self::NoPodAddress(_) => Code::NoPodAddress,
            Self::DeviceInTheWay => Code::DeviceInTheWay,
            Self::KernelTooOld(_) => Code::KernelTooOld,
            Self::Allocator { source, .. } => allocator_code(source),
            Self::Renumbered(_) => Code::TryAgain,
            Self::CheckFailed(_) => Code::CheckFailed,
            Self::NotAvailable(_) => Code::NotAvailable,
            Self::Net(e) => net_code(e),
            Self::Bpf(_) => Code::NoFlowOwner,
            Self::Registry(e) => registry_code(e),
            Self::Io(..) => Code::Io,
            Self::Several { first, .. } => first.code(),
        }
    }

    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            causes.push(error.to_string());
            next = error.source();
        }
        causes
    }

    /// As it goes to stdout.
    pub fn to_cni(&self, cni_version: &str) -> cni::Error {
        let mut details = match self {
            Self::Several { first, .. } => first.causes(),
            other => other.causes(),
        };
        if let Self::Several { others, .. } = self {
            details.extend(others.iter().map(|other| format!("also: {other}")));
        }
        cni::Error::new(cni_version, self.code(), self.to_string(), details.join(": "))
    }
}

fn allocator_code(error: &client::Error) -> Code {
    match error {
        client::Error::Refused(refusal) if refusal.code == 7 => Code::InvalidConfig,
        _ => Code::TryAgain,
    }
}

fn net_code(error: &net::Error) -> Code {
    match error.errno {
        Errno::EPERM | Errno::EACCES => Code::NotPermitted,
        _ => Code::Kernel,
    }
}

fn registry_code(error: &registry::Error) -> Code {
    match error {
        registry::Error::AlreadyAttached { .. } => Code::AlreadyAttached,
        registry::Error::Io { .. } | registry::Error::NoSlot => Code::Io,
        error if error.is_damage() => Code::RegistryDamaged,
        _ => Code::Io,
    }
}
