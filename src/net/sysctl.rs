//! Settings below `/proc/sys` (`sysctl`), of the calling thread's network namespace.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::model::Family;

use super::{Error, Result};

/// Where they are.
const SETTINGS: &str = "/proc/sys";

/// Where a container that isn't privileged has the node's, to write to: its own are read-only. What is below `net` is of the namespace
/// of whoever opens it, by whatever mount (the kernel's `net_ctl_root_lookup`).
const NODES: &str = "/host/proc/sys";

/// A device's setting as [`get`] has it, `net.ipv4.conf.DEVICE.KEY`: a dot in the device's name is written as a slash. `group` is `conf` or
/// `neigh`.
pub fn of_device(family: Family, group: &str, device: &str, key: &str) -> String {
    let net = match family {
        Family::V4 => "net.ipv4",
        Family::V6 => "net.ipv6",
    };
    format!("{net}.{group}.{}.{key}", device.replace('.', "/"))
}

/// Reads a number: `get("net.ipv4.ip_forward")`.
pub fn get(name: &str) -> Result<i64> {
    let text = std::fs::read_to_string(path(SETTINGS, name)).map_err(|e| Error::io("read sysctl", name, &e))?;
    text.trim().parse().map_err(|_| Error::new("read sysctl", name, nix::errno::Errno::EINVAL))
}

/// Whether this kernel has a setting of that name.
pub fn exists(name: &str) -> bool {
    path(SETTINGS, name).exists()
}

/// Makes a setting have this value. Writes only where it has another, so that a read-only `/proc/sys` with the
/// right values is no error, and routing caches aren't flushed for nothing.
pub fn ensure(name: &str, value: i64) -> Result<()> {
    if get(name)? == value {
        return Ok(());
    }
    let failed = |e: io::Error| Error::io("write sysctl", format!("{name} = {value}"), &e);
    let mut file = open(name).map_err(failed)?;
    file.write_all(value.to_string().as_bytes()).map_err(failed)
}

/// Whether it could be written: `/proc/sys` may be mounted read-only.
pub fn is_writable(name: &str) -> bool {
    open(name).is_ok()
}

/// For writing, in either place.
fn open(name: &str) -> io::Result<File> {
    let write = |path: &Path| File::options().write(true).open(path);
    match write(&path(SETTINGS, name)) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            // Without that mount the first error says what is wrong.
            write(&path(NODES, name))
                .map_err(|other| if other.kind() == io::ErrorKind::NotFound { error } else { other })
        }
        opened => opened,
    }
}

/// Dots separate the parts, as with sysctl(8); a device name with a dot in it is written with a slash instead.
fn path(root: &str, name: &str) -> PathBuf {
    let swapped: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    Path::new(root).join(swapped)
}
