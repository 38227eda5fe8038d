//! A BPF filesystem that is mounted nowhere: a file descriptor of the test process, and vanishes with it.

use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub struct BpfFs(OwnedFd);

impl BpfFs {
    pub fn new() -> Self {
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        // SAFETY: system calls (fsopen(2), fsconfig(2), fsmount(2)) with a static string, numbers, and descriptors just made.
        unsafe {
            let context = libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), 1);
            assert!(context >= 0, "fsopen bpf: {}", Error::last_os_error());
            let context = OwnedFd::from_raw_fd(i32::try_from(context).unwrap());
            let no_string = std::ptr::null::<libc::c_char>();
            let made =
                libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, no_string, no_string, 0);
            assert_eq!(made, 0, "fsconfig: {}", Error::last_os_error());
            let mount = libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0);
            assert!(mount >= 0, "fsmount: {}", Error::last_os_error());
            Self(OwnedFd::from_raw_fd(i32::try_from(mount).unwrap()))
        }
    }

    /// Where it is, for any process of root's.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}
