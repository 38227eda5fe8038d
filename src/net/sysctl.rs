//! Settings below `/proc/sys` (`sysctl`), of the calling thread's network namespace.

use std::io::Write;
use std::path::PathBuf;

use super::{Error, Result};

/// Reads a number: `get("net.ipv4.ip_forward")`.
pub fn get(name: &str) -> Result<i64> {
    let text = std::fs::read_to_string(path(name)).map_err(|e| Error::io("read sysctl", name, &e))?;
    text.trim().parse().map_err(|_| Error::new("read sysctl", name, nix::errno::Errno::EINVAL))
}

/// Makes a setting have this value. Writes only where it has another, so that a read-only `/proc/sys` with the
/// right values is no error, and routing caches aren't flushed for nothing.
pub fn ensure(name: &str, value: i64) -> Result<()> {
    if get(name)? == value {
        return Ok(());
    }
    let failed = |e: std::io::Error| Error::io("write sysctl", format!("{name} = {value}"), &e);
    let mut file = std::fs::OpenOptions::new().write(true).open(path(name)).map_err(failed)?;
    file.write_all(value.to_string().as_bytes()).map_err(failed)
}

/// Dots separate the parts, as with sysctl(8); a device name with a dot in it is written with a slash instead.
fn path(name: &str) -> PathBuf {
    let swapped: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    PathBuf::from("/proc/sys").join(swapped)
}

/// Whether it could be written: `/proc/sys` may be mounted read-only.
pub fn is_writable(name: &str) -> bool {
    std::fs::OpenOptions::new().write(true).open(path(name)).is_ok()
}
