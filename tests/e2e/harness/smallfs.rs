//! A small file system of the test's own: a tmpfs mounted nowhere, reached by its descriptor, freed with it.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

/// From linux/mount.h.
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

const PAGE: u64 = 4096;

pub struct SmallFs(OwnedFd);

impl SmallFs {
    /// With room for so many pages of 4 KiB and so many files.
    pub fn new(pages: u64, files: u64) -> Self {
        let context = call("fsopen", || {
            // SAFETY: the name is a C string.
            unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) }
        });
        let set = |key: &CStr, value: u64| {
            let value = CString::new(value.to_string()).expect("a number");
            config(&context, FSCONFIG_SET_STRING, Some((key, &value)));
        };
        set(c"size", pages * PAGE);
        set(c"nr_inodes", files);
        config(&context, FSCONFIG_CMD_CREATE, None);
        let root = call("fsmount", || {
            // SAFETY: the descriptor is open.
            unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 0, 0) }
        });
        Self(root)
    }

    /// A path any process of root's can use.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    pub fn set_read_only(&self, read_only: bool) {
        let bit = libc::MOUNT_ATTR_RDONLY;
        let (attr_set, attr_clr) = if read_only { (bit, 0) } else { (0, bit) };
        let attributes = libc::mount_attr { attr_set, attr_clr, propagation: 0, userns_fd: 0 };
        // SAFETY: the descriptor is open, the structure lives on this stack, and its size is given.
        let status = unsafe {
            let (fd, size) = (self.0.as_raw_fd(), size_of::<libc::mount_attr>());
            libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), libc::AT_EMPTY_PATH, &raw const attributes, size)
        };
        assert_eq!(status, 0, "mount_setattr: {}", Error::last_os_error());
    }

    /// Fills it up to `pages` free pages and `files` more files.
    pub fn fill(&self, pages: u64, files: u64) {
        self.empty();
        let mut filler = File::create(self.path().join("filler")).expect("a file to fill the disk with");
        let mut size = 0;
        while filler.write_all(&[1; 4096]).is_ok() {
            size += PAGE;
        }
        filler.set_len(size.saturating_sub(pages * PAGE)).expect("make a filler smaller");
        let many =
            (0..1_000_000).take_while(|number| File::create(self.path().join(format!("file{number}"))).is_ok()).count();
        for number in 0..many.min(usize::try_from(files).expect("few files")) {
            fs::remove_file(self.path().join(format!("file{number}"))).expect("remove a filler");
        }
    }

    /// Removes what fills it.
    pub fn empty(&self) {
        for entry in fs::read_dir(self.path()).expect("list a small file system").flatten() {
            if entry.file_name().to_string_lossy().starts_with("fil") {
                fs::remove_file(entry.path()).expect("remove a filler");
            }
        }
    }
}

fn config(context: &OwnedFd, command: u32, pair: Option<(&CStr, &CStr)>) {
    let (key, value) = pair.map_or((std::ptr::null(), std::ptr::null()), |(key, value)| (key.as_ptr(), value.as_ptr()));
    // SAFETY: the descriptor is open; key and value are C strings or null.
    let status = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
    assert_eq!(status, 0, "fsconfig: {}", Error::last_os_error());
}

/// A system call that makes a descriptor.
fn call(name: &str, call: impl FnOnce() -> libc::c_long) -> OwnedFd {
    let fd = call();
    assert!(fd >= 0, "{name}: {}", Error::last_os_error());
    // SAFETY: the kernel has just handed it out.
    unsafe { OwnedFd::from_raw_fd(fd.try_into().expect("a descriptor")) }
}
