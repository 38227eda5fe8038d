//! What a node that has VIPs must be set to.

use crate::net::{self, sysctl};

/// Hash policy 3 with these fields (addresses, protocol, ports) computes a flow's hash from the packet itself; with policy
/// 1 the kernel may take the sender's, which TCP changes after a time-out.
pub const SETTINGS: [(&str, i64); 3] = [
    ("net.ipv4.fib_multipath_hash_policy", 3),
    ("net.ipv4.fib_multipath_hash_fields", 0x37),
    ("net.ipv4.ip_forward", 1),
];

/// Sets the node up for VIPs.
pub fn configure() -> net::Result<()> {
    for (name, value) in SETTINGS {
        sysctl::ensure(name, value)?;
    }
    Ok(())
}

/// The first setting that isn't right: a word for CHECK.
pub fn finding() -> net::Result<Option<String>> {
    for (name, value) in SETTINGS {
        let have = sysctl::get(name)?;
        if have != value {
            return Ok(Some(format!("sysctl {name} is {have}, not {value}")));
        }
    }
    Ok(None)
}
