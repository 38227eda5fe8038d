//! Errors as a runtime reads them (CNI spec, section 5, "Error").

use serde::Serialize;

/// What kind of failure it is. 1–99 are the specification's, 100 and up our own; docs/reference/errors.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// The configuration's `cniVersion` is none we speak.
    IncompatibleVersion = 1,
    /// A `CNI_…` variable is missing or bad.
    InvalidEnvironment = 4,
    /// A file or socket could not be read or written.
    Io = 5,
    /// Stdin is not what it should be.
    Undecodable = 6,
    /// The configuration, or an annotation, has a bad key or value.
    InvalidConfig = 7,
    /// Nothing wrong with the request: it may succeed later.
    TryAgain = 11,
    /// STATUS: an ADD could not work now.
    NotAvailable = 50,
    /// This container is attached by this interface already.
    AlreadyAttached = 100,
    /// The pod has a `vip0` already: another attachment's, or a foreign device.
    DeviceInTheWay = 101,
    /// The kernel lacks what VIPs need (Linux 5.14).
    KernelTooOld = 102,
    /// A capability is missing: `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN` to enter a pod.
    NotPermitted = 103,
    /// The pod has no address.
    NoPodAddress = 104,
    /// A registry file is torn, foreign or of a newer version.
    RegistryDamaged = 105,
    /// CHECK: an object is missing or differs from the registry.
    CheckFailed = 106,
    /// The kernel refused a change.
    Kernel = 107,
    /// The flow owner can't run here: BPF is not permitted, there is no BPF filesystem, the verifier refuses its programs, or a
    /// module of the kernel's is missing.
    NoFlowOwner = 108,
}

/// An error in the shape that goes to stdout.
#[derive(Debug, Serialize)]
pub struct Error {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    code: u16,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Error {
    /// `msg` is one sentence, `details` the chain of causes.
    pub fn new(cni_version: &str, code: Code, msg: String, details: String) -> Self {
        Self { cni_version: cni_version.to_owned(), code: code as u16, msg, details }
    }
}
