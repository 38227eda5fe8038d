//! Who holds a lock (`/proc/locks`).

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, as `ps` shows it.
    pub command: String,
    /// It was stopped by a signal, or is traced.
    pub stopped: bool,
}

impl Holder {
    /// The process that holds the lock of that file; none where the kernel doesn't show it: it is in another PID namespace,
    /// or has let go of it.
    pub fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let pid = pid_of(&locks, metadata.dev(), metadata.ino())?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may have blanks and brackets in it.
        let (command, state) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).unwrap_or(("?", ""));
        Some(Self { pid, command: command.to_owned(), stopped: state.starts_with(['T', 't']) })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, stopped } = self;
        if *stopped {
            return write!(f, "{command} (pid {pid}, which is stopped: `kill -CONT {pid}` lets it go on)");
        }
        write!(f, "{command} (pid {pid})")
    }
}

/// Of lines `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`; waiters have `->` behind the number. Some filesystems
/// show another device in stat(2) than here (btrfs, overlayfs): then the inode decides, where it is the only one.
fn pid_of(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid, place) = (words.next()?, words.nth(2)?, words.next()?);
        let (found_device, found_inode) = place.rsplit_once(':')?;
        (kind == "FLOCK" && found_inode.parse() == Ok(inode))
            .then(|| Some((found_device.to_owned(), pid.parse().ok()?)))?
    };
    let holders: Vec<(String, u32)> = locks.lines().filter_map(entry).collect();
    let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
    let exact = holders.iter().find(|(found, _)| *found == format!("{major:02x}:{minor:02x}"));
    match (exact, holders.as_slice()) {
        (Some((_, pid)), _) | (None, [(_, pid)]) => Some(*pid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 11 fd:01:77 0 EOF\n\
                         2: FLOCK  ADVISORY  WRITE 22 fd:01:77 0 EOF\n\
                         2: -> FLOCK  ADVISORY  WRITE 33 fd:01:77 0 EOF\n\
                         3: FLOCK  ADVISORY  WRITE 44 fd:02:77 0 EOF\n\
                         4: FLOCK  ADVISORY  WRITE 55 00:2c:78 0 EOF\n";

    #[test]
    fn the_holder_is_told_from_waiters_and_other_files() {
        let device = nix::libc::makedev(0xfd, 1);
        assert_eq!(pid_of(LOCKS, device, 77), Some(22));
        assert_eq!(pid_of(LOCKS, nix::libc::makedev(0xfd, 2), 77), Some(44));
        assert_eq!(pid_of(LOCKS, nix::libc::makedev(0xfd, 9), 77), None, "two files of that inode");
        assert_eq!(pid_of(LOCKS, device, 78), Some(55), "the only one of that inode");
        assert_eq!(pid_of(LOCKS, device, 79), None);
    }

    #[test]
    fn this_process_is_named() {
        let path = std::env::temp_dir().join(format!("viproute-holder-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.lock().unwrap();
        let holder = Holder::of(&file).unwrap();
        assert_eq!((holder.pid, holder.stopped), (std::process::id(), false));
        assert!(holder.to_string().contains(&format!("(pid {})", holder.pid)));
        std::fs::remove_file(path).unwrap();
    }
}
