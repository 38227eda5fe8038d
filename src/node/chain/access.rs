//! Whether viprouted may write to a network's directory. Under systemd's `ProtectSystem=strict` it may write where its unit says, as far as that was
//! there when it started (`ReadWritePaths=` in systemd.exec(5)): to a directory that has come since, or anew, after its next start.

use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

use crate::node::notify;

/// What viprouted may do with a network's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Write,
    /// Read, and write after a restart.
    AfterRestart,
    Read,
}

/// That to this network, for a viprouted that runs since `started`.
pub fn to(network: &Path, started: SystemTime) -> Access {
    let Some(directory) = network.parent() else { return Access::Write };
    if access(directory, AccessFlags::W_OK) != Err(Errno::EROFS) {
        return Access::Write;
    }
    let created = directory.metadata().and_then(|directory| directory.created());
    // Without that time, which some filesystems don't have, there is no telling whether a restart would help.
    let came_later = created.is_ok_and(|created| created > started);
    if came_later && notify::is_managed() { Access::AfterRestart } else { Access::Read }
}

/// As by `systemctl restart`: what ends without a failure is started again by its unit.
pub fn restart() {
    let _ = kill(Pid::this(), Signal::SIGTERM); // to itself it is always allowed
}
