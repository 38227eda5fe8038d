//! In the place of the C library's resolver, which a static program must not have in it: it loads libraries of the machine's, and
//! crashes with those of another version. Names are resolved by hickory; a crate that asks the C library (chitchat would for a seed's
//! name, and the Kubernetes client for the API's) hears that there is no such name.

use std::ffi::{c_char, c_int};

use libc::{EAI_NONAME, addrinfo};

#[unsafe(no_mangle)]
extern "C" fn getaddrinfo(
    _node: *const c_char,
    _service: *const c_char,
    _hints: *const addrinfo,
    _found: *mut *mut addrinfo,
) -> c_int {
    EAI_NONAME
}

/// Nothing was ever found.
#[unsafe(no_mangle)]
extern "C" fn freeaddrinfo(_found: *mut addrinfo) {}
