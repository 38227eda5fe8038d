//! The errors of all verbs, and the one place that maps them to CNI codes.

use nix::errno::Errno;

use crate::api::client;
use crate::api::protocol::code as protocol_code;
use crate::cni::protocol::config::ConfigError;
use crate::cni::protocol::env::EnvError;
use crate::cni::protocol::result::ResultError;
use crate::cni::protocol::{self, Code};
use crate::{dataplane, ebpf, membership, net, registry, with_causes};

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
    /// Annotations that don't go together.
    #[error("{0}")]
    Annotations(String),
    /// Membership failed; the pod's VIPs are unchanged.
    #[error(transparent)]
    Membership(membership::Error),
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
    /// The pod has no address.
    #[error("the pod has no address on {0}, by which it is known")]
    NoPodAddress(String),
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
    Bpf(#[from] ebpf::Error),
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

impl From<membership::Error> for Error {
    fn from(error: membership::Error) -> Self {
        match error {
            membership::Error::Net(e) => Self::Net(e),
            membership::Error::Bpf(e) => Self::Bpf(e),
            membership::Error::Registry(e) => Self::Registry(e),
            membership::Error::Several { first, others } => {
                Self::Several { first: Box::new(Self::from(*first)), others }
            }
            other => Self::Membership(other),
        }
    }
}

impl From<dataplane::Error> for Error {
    fn from(error: dataplane::Error) -> Self {
        membership::Error::from(error).into()
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
            Self::Config(_) | Self::Invalid { .. } | Self::Annotations(_) => Code::InvalidConfig,
            Self::NoPodAddress(_) => Code::NoPodAddress,
            Self::Membership(e) => membership_code(e),
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
    pub fn to_cni(&self, cni_version: &str) -> protocol::Error {
        let mut details = match self {
            Self::Several { first, .. } => first.causes(),
            other => other.causes(),
        };
        if let Self::Several { others, .. } = self {
            details.extend(others.iter().map(|other| format!("also: {other}")));
        }
        protocol::Error::new(cni_version, self.code(), self.to_string(), details.join(": "))
    }
}

fn membership_code(error: &membership::Error) -> Code {
    match error {
        membership::Error::NoFamily { why: Some(why), .. } if why.code != protocol_code::INVALID => Code::TryAgain,
        membership::Error::SharedGroup(_) => Code::RegistryDamaged,
        membership::Error::NoNodeAddress
        | membership::Error::NotOurAddress(_)
        | membership::Error::MixedOwners(..)
        | membership::Error::OtherRegistry { .. }
        | membership::Error::NarrowForIpv6(_)
        | membership::Error::NoIpv6(_)
        | membership::Error::NoFamily { .. }
        | membership::Error::Want(_) => Code::InvalidConfig,
        membership::Error::NoInterface(_) | membership::Error::NoNetns(_) | membership::Error::NodesOwnNetns(_) => {
            Code::InvalidEnvironment
        }
        membership::Error::DeviceInTheWay => Code::DeviceInTheWay,
        membership::Error::KernelTooOld(_) => Code::KernelTooOld,
        membership::Error::Allocator { source, .. } => allocator_code(source),
        membership::Error::Renumbered(_) => Code::TryAgain,
        membership::Error::Net(e) => net_code(e),
        membership::Error::NoIpv6Programs | membership::Error::Bpf(_) => Code::NoFlowOwner,
        membership::Error::Registry(e) => registry_code(e),
        membership::Error::Several { first, .. } => membership_code(first),
    }
}

fn allocator_code(error: &client::Error) -> Code {
    match error {
        client::Error::Refused(refusal) if refusal.code == protocol_code::INVALID => Code::InvalidConfig,
        _ => Code::TryAgain,
    }
}

fn net_code(error: &net::Error) -> Code {
    if error.missing.is_some_and(net::Module::is_flow_owners) {
        return Code::NoFlowOwner;
    }
    match error.errno {
        Errno::EPERM | Errno::EACCES => Code::NotPermitted,
        _ => Code::Kernel,
    }
}

fn registry_code(error: &registry::Error) -> Code {
    match error {
        registry::Error::AlreadyAttached { .. } => Code::AlreadyAttached,
        registry::Error::Locked { .. } => Code::TryAgain,
        registry::Error::Io { .. } | registry::Error::NoSlot => Code::Io,
        error if error.is_damage() => Code::RegistryDamaged,
        _ => Code::Io,
    }
}
