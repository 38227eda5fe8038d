//! Programs on a device's packets by way of tcx (Linux 6.6): an array of programs a device and direction, asked before any
//! filter of [`super::filter`]. Attached without a link object, a program stays until somebody takes it off.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::filter::Side;
use super::{Error, Result};

/// `BPF_…` (linux/bpf.h).
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const F_REPLACE: u32 = 1 << 2;

/// So many programs on one device and direction: the kernel's own limit (`BPF_MPROG_MAX`).
const MOST: usize = 64;
/// Bytes of a program's name, with the zero that ends it (`BPF_OBJ_NAME_LEN`).
const NAME: usize = 16;

/// `union bpf_attr` of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Attach {
    index: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    relative: u32,
    revision: u64,
}

/// The same of `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    index: u32,
    kind: u32,
    asked: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The same of `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The same of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    at: u64,
}

/// `struct bpf_prog_info` up to the name. The kernel fills in as much as it is asked for.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    before: [u64; 8],
    name: [u8; NAME],
}

/// The ids of the programs on a device's side, in their order. `None`: the kernel has no tcx. An absent device has none.
pub fn programs(index: u32, side: Side) -> Result<Option<Vec<u32>>> {
    let mut ids = [0_u32; MOST];
    let mut query = Query { index, kind: kind(side), ids: address(&mut ids), count: 64, ..Query::default() };
    match call(PROG_QUERY, &mut query) {
        Ok(_) => Ok(Some(ids.iter().take(query.count as usize).copied().collect())),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(Some(Vec::new())),
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err(Error::new("list tcx programs", object(index, side), errno)),
    }
}

/// Puts a program behind those that are there.
pub fn attach(index: u32, side: Side, program: RawFd) -> Result<()> {
    let mut attach = Attach { index, program: program.cast_unsigned(), kind: kind(side), ..Attach::default() };
    done("attach tcx program", index, side, call(PROG_ATTACH, &mut attach))
}

/// Puts a program in the place of the one of that id, in one step.
pub fn replace(index: u32, side: Side, program: RawFd, id: u32) -> Result<()> {
    let op = "replace tcx program";
    let replaced = by_id(id).map_err(|errno| Error::new(op, object(index, side), errno))?;
    let mut attach = Attach {
        index,
        program: program.cast_unsigned(),
        kind: kind(side),
        flags: F_REPLACE,
        replaced: replaced.as_raw_fd().cast_unsigned(),
        ..Attach::default()
    };
    done(op, index, side, call(PROG_ATTACH, &mut attach))
}

/// Takes the program of that id off; it needn't be there.
pub fn detach(index: u32, side: Side, id: u32) -> Result<()> {
    let detached = by_id(id).and_then(|program| {
        let program = program.as_raw_fd().cast_unsigned();
        call(PROG_DETACH, &mut Attach { index, program, kind: kind(side), ..Attach::default() })
    });
    match detached {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        other => done("detach tcx program", index, side, other),
    }
}

/// The name of the program of that id, cut off behind 15 bytes. `None`: it is gone.
pub fn name(id: u32) -> Result<Option<String>> {
    let failed = |errno| Error::new("read", format!("program {id}"), errno);
    let program = match by_id(id) {
        Err(Errno::ENOENT) => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut found = ProgramInfo::default();
    let length = u32::try_from(size_of::<ProgramInfo>()).unwrap_or_default();
    let mut info = Info { fd: program.as_raw_fd().cast_unsigned(), length, at: address(&mut found) };
    call(OBJ_GET_INFO_BY_FD, &mut info).map_err(failed)?;
    Ok(Some(String::from_utf8_lossy(&found.name).trim_end_matches('\0').to_owned()))
}

fn by_id(id: u32) -> nix::Result<OwnedFd> {
    let fd = call(PROG_GET_FD_BY_ID, &mut ById { id, next: 0, flags: 0 })?;
    // SAFETY: the kernel has just opened it for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2). What the attribute points to must live, and be as long as the attribute says.
fn call<T>(command: libc::c_long, attribute: &mut T) -> nix::Result<RawFd> {
    // SAFETY: the attribute is one of the structs above, which are of the command's form, and of the length given. The
    // pointers in it are to arrays and structs of the callers', which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    Errno::result(result).map(|result| RawFd::try_from(result).unwrap_or_default())
}

fn address<T>(to: &mut T) -> u64 {
    std::ptr::from_mut(to).expose_provenance() as u64
}

fn kind(side: Side) -> u32 {
    match side {
        Side::Ingress => TCX_INGRESS,
        Side::Egress => TCX_EGRESS,
    }
}

fn done(op: &'static str, index: u32, side: Side, result: nix::Result<RawFd>) -> Result<()> {
    result.map(drop).map_err(|errno| Error::new(op, object(index, side), errno))
}

fn object(index: u32, side: Side) -> String {
    format!("{side} of link {index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As linux/bpf.h has them; a longer one would be refused by a kernel of 6.6.
    #[test]
    fn attributes_have_the_kernels_form() {
        use std::mem::offset_of;
        assert_eq!((size_of::<Attach>(), offset_of!(Attach, revision)), (32, 24));
        assert_eq!((size_of::<Query>(), offset_of!(Query, ids), offset_of!(Query, revision)), (64, 16, 56));
        assert_eq!(offset_of!(ProgramInfo, name), 64);
    }
}
