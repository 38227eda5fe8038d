//! Errors of kernel calls: what was refused, for which object.

use std::fmt;

use nix::errno::Errno;

use super::Module;

/// A refused or failed kernel call.
#[derive(Debug, thiserror::Error)]
#[error("{op} {object}{}", Hint(.hint.as_deref(), *.missing))]
pub struct Error {
    /// What was tried: `"add route"`.
    pub op: &'static str,
    /// On which object, in iproute2's words: `"10.118.0.7/32 nhid 1996488705"`.
    pub object: String,
    /// The kernel's own sentence (`NLMSGERR_ATTR_MSG`), where it gave one.
    pub hint: Option<String>,
    /// The kernel's module that it would take, where that is the reason.
    pub missing: Option<Module>,
    /// The errno, kept typed: callers decide on it.
    #[source]
    pub errno: Errno,
}

struct Hint<'a>(Option<&'a str>, Option<Module>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(hint, missing) = self;
        if let Some(module) = missing.map(Module::name) {
            return write!(
                f,
                ": the kernel's module {module} isn't loaded, and it can't load it by itself: run modprobe {module}"
            );
        }
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// An error without the kernel's message.
    pub fn new(op: &'static str, object: impl Into<String>, errno: Errno) -> Self {
        Self { op, object: object.into(), hint: None, missing: None, errno }
    }

    /// From an I/O error; one that carries no errno becomes `EIO`.
    pub fn io(op: &'static str, object: impl Into<String>, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::new(op, object, errno)
    }

    /// The same, with the module that what was tried needs, should it be missing.
    #[must_use]
    pub(super) fn of(mut self, module: Module) -> Self {
        self.missing = Some(module).filter(|module| module.explains(self.errno));
        self
    }

    /// The object, or the device or namespace it lived in, does not exist.
    pub fn is_absent(&self) -> bool {
        ABSENT.contains(&self.errno)
    }
}

/// What the kernel answers when an object to be deleted (or the device it hangs on) isn't there: `ENOENT` rules,
/// neighbours and nexthops, `ESRCH` routes, `ENODEV`/`ENXIO` links, `EADDRNOTAVAIL` addresses.
pub(super) const ABSENT: &[Errno] = &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV, Errno::ENXIO, Errno::EADDRNOTAVAIL];
