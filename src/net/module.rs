//! Parts of the kernel that may be modules: what the kernel's refusal means where one is missing, and which are.

use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::sys::utsname;

use super::filter::{self, Side};
use super::{Error, Result, Socket};

/// A module that something of ours needs. The kernel loads it by itself, unless it may not (`kernel.modprobe`, a blacklist, a
/// container's own /lib/modules) or doesn't find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// clsact, which programs of devices hang on.
    SchIngress,
    /// The filter that runs a program.
    ClsBpf,
    /// Pairs of devices.
    Veth,
    /// The tunnel between nodes.
    Vxlan,
    /// Listings of TCP sockets.
    TcpDiag,
    /// Listings of UDP sockets.
    UdpDiag,
}

impl Module {
    /// As `modprobe` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SchIngress => "sch_ingress",
            Self::ClsBpf => "cls_bpf",
            Self::Veth => "veth",
            Self::Vxlan => "vxlan",
            Self::TcpDiag => "tcp_diag",
            Self::UdpDiag => "udp_diag",
        }
    }

    /// Whether the flow owner's programs can't be attached without it.
    pub fn is_flow_owners(self) -> bool {
        matches!(self, Self::SchIngress | Self::ClsBpf)
    }

    /// What the kernel answers where it doesn't know the kind of object; it means other things, too.
    fn refusal(self) -> Errno {
        match self {
            Self::Veth | Self::Vxlan => Errno::EOPNOTSUPP,
            _ => Errno::ENOENT,
        }
    }

    /// Whether such a refusal of something that needs the module says that it is missing: it is neither loaded nor built in.
    pub(super) fn explains(self, errno: Errno) -> bool {
        errno == self.refusal() && !Path::new("/sys/module").join(self.name()).exists() && !self.is_built_in()
    }

    fn is_built_in(self) -> bool {
        let release =
            utsname::uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
        let listed = std::fs::read_to_string(Path::new("/lib/modules").join(release).join("modules.builtin"));
        listed.is_ok_and(|listed| listed.contains(&format!("/{}.ko", self.name())))
    }
}

/// Those that are missing: what needs one is tried, in a network namespace that is made for it and ends with its thread. The
/// kernel loads what it can.
pub fn missing() -> Result<Vec<Module>> {
    let failed = |errno| Error::new("make network namespace", "to try out the kernel", errno);
    let inside = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(failed).and_then(|()| try_all());
    thread::scope(|scope| scope.spawn(inside).join().map_err(|_| failed(Errno::ECANCELED))?)
}

fn try_all() -> Result<Vec<Module>> {
    /// The loopback's index in any namespace.
    const LOOPBACK: u32 = 1;
    let socket = Socket::open()?;
    let mut tried = vec![socket.apply(&[filter::add_clsact(LOOPBACK)])];
    // Which kind of filter it is the kernel looks at before the program, which is none.
    tried.push(socket.apply(&[filter::replace(LOOPBACK, Side::Ingress, -1)]));
    #[cfg(feature = "node")]
    tried.extend(super::sockets::try_out()?);
    Ok(tried.into_iter().filter_map(|tried| tried.err()?.missing).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_by_a_module_alone_that_is_not_there() {
        assert!(!Module::SchIngress.explains(Errno::EPERM));
        assert!(!Module::Veth.explains(Errno::ENOENT));
    }
}
