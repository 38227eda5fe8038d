//! tcx as another program uses it: a program of its own on a device, and a look at what is there.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::netns::Netns;

const LOAD: libc::c_long = 5;
const ATTACH: libc::c_long = 8;
const DETACH: libc::c_long = 9;
const BY_ID: libc::c_long = 13;
const INFO: libc::c_long = 15;
const QUERY: libc::c_long = 16;

/// A direction of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcx {
    Ingress = 46,
    Egress = 47,
}

/// bpf(2) with an attribute of these words of 32 bits.
fn bpf(command: libc::c_long, words: &mut [u32]) -> std::io::Result<i32> {
    // SAFETY: the attribute is as long as it says, and what it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), std::mem::size_of_val(words)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(i32::try_from(result).expect("a descriptor")) }
}

fn halves(pointer: *const u8) -> [u32; 2] {
    let bytes = (pointer.expose_provenance() as u64).to_ne_bytes();
    let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    [half(0), half(4)]
}

/// A loaded program, of that name, which leaves all packets to the next one (`TCX_NEXT`, `TC_ACT_UNSPEC`).
pub fn passing(name: &str) -> OwnedFd {
    // r0 = -1; exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = b"GPL\0";
    let mut words = [0; 18];
    (words[0], words[1]) = (3, 2);
    words[2..4].copy_from_slice(&halves(code.as_ptr().cast()));
    words[4..6].copy_from_slice(&halves(license.as_ptr()));
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    for (word, bytes) in words[12..16].iter_mut().zip(bytes.chunks(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    let fd = bpf(LOAD, &mut words).expect("load a program");
    // SAFETY: the kernel has just opened it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn index(ns: &Netns, device: &str) -> u32 {
    let links = ns.ip_json(&format!("link show dev {device}"));
    u32::try_from(links[0]["ifindex"].as_u64().expect("an index")).unwrap()
}

/// Attaches it behind what is there.
pub fn attach(ns: &Netns, device: &str, side: Tcx, program: &OwnedFd) {
    let (index, fd) = (index(ns, device), program.as_raw_fd().cast_unsigned());
    ns.run(|| bpf(ATTACH, &mut [index, fd, side as u32, 0, 0, 0, 0, 0])).expect("attach a program");
}

/// Takes it off.
pub fn detach(ns: &Netns, device: &str, side: Tcx, program: &OwnedFd) {
    let (index, fd) = (index(ns, device), program.as_raw_fd().cast_unsigned());
    ns.run(|| bpf(DETACH, &mut [index, fd, side as u32, 0, 0, 0, 0, 0])).expect("detach a program");
}

/// Whether this kernel has it.
pub fn is_known() -> bool {
    let mut words = [0; 16];
    (words[0], words[1]) = (1, Tcx::Ingress as u32);
    bpf(QUERY, &mut words).map_err(|error| error.raw_os_error()) != Err(Some(libc::EINVAL))
}

/// The ids and names of the programs there, in their order; none: the device isn't there, or the kernel has no tcx.
pub fn programs(ns: &Netns, device: &str, side: Tcx) -> Vec<(u32, String)> {
    if !ns.has_device(device) {
        return Vec::new();
    }
    let index = index(ns, device);
    let mut ids = [0_u32; 64];
    let mut words = [0; 16];
    (words[0], words[1], words[6]) = (index, side as u32, 64);
    words[4..6].copy_from_slice(&halves(ids.as_mut_ptr().cast()));
    match ns.run(|| bpf(QUERY, &mut words).map(|_| words[6])) {
        Ok(count) => ids[..count as usize].iter().map(|id| (*id, name(*id))).collect(),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Vec::new(),
        Err(error) => panic!("list the programs on {device}: {error}"),
    }
}

/// A program by its id.
fn opened(id: u32) -> OwnedFd {
    let fd = bpf(BY_ID, &mut [id, 0, 0]).expect("open a program by its id");
    // SAFETY: the kernel has just opened it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes any program off, by its id.
pub fn detach_id(ns: &Netns, device: &str, side: Tcx, id: u32) {
    detach(ns, device, side, &opened(id));
}

fn name(id: u32) -> String {
    let program = opened(id);
    let mut info = [0_u8; 80];
    let mut words = [program.as_raw_fd().cast_unsigned(), 80, 0, 0];
    words[2..4].copy_from_slice(&halves(info.as_mut_ptr()));
    bpf(INFO, &mut words).expect("read a program's name");
    String::from_utf8_lossy(&info[64..80]).trim_end_matches('\0').to_owned()
}

/// Runs it as on a kernel before 6.6, whose bpf(2) knows no tcx: attach, detach and query are refused (EINVAL).
pub fn without_tcx(command: &mut Command) {
    const EINVAL: u32 = libc::EINVAL.cast_unsigned();
    const fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    let number = u32::try_from(libc::SYS_bpf).unwrap();
    let mut filter = [
        code(0x20, 0, 0, 0),      // ld [0]     the system call's number
        code(0x15, 0, 5, number), // jeq        else allow
        code(0x20, 0, 0, 16),     // ld [16]    its first argument, on a little-endian machine
        code(0x15, 2, 0, 8),
        code(0x15, 1, 0, 9),
        code(0x15, 0, 1, 16),
        code(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | EINVAL),
        code(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: plain system calls; the filter is copied by the kernel.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: 8, filter: filter.as_mut_ptr() };
            let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
            if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}
