//! What a node that has VIPs must be set to.

use crate::net::{self, sysctl};

/// Hash policy 3 with these fields (addresses, protocol, ports) computes a flow's hash from the packet itself; with policy
/// 1 the kernel may take the sender's, which TCP changes after a time-out.
pub const SETTINGS: [(&str, i64); 3] = [
    ("net.ipv4.fib_multipath_hash_policy", 3),
    ("net.ipv4.fib_multipath_hash_fields", 0x37),
    ("net.ipv4.ip_forward", 1),
];

/// A setting that has another value than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    name: &'static str,
    want: i64,
    found: i64,
}

/// What `name` must be changed by; none: it has the value wanted.
pub fn difference(name: &'static str, want: i64, found: i64) -> Option<Change> {
    (want != found).then_some(Change { name, want, found })
}

impl Change {
    /// A sentence for CHECK.
    pub fn finding(&self) -> String {
        let Self { name, want, found } = self;
        format!("sysctl {name} is {found}, not {want}")
    }

    /// Writes it.
    pub fn apply(&self) -> net::Result<()> {
        sysctl::ensure(self.name, self.want)
    }
}

/// Reads one and compares.
pub fn read((name, want): (&'static str, i64)) -> net::Result<Option<Change>> {
    Ok(difference(name, want, sysctl::get(name)?))
}

/// Sets the node up for VIPs.
pub fn configure() -> net::Result<()> {
    for setting in SETTINGS {
        read(setting)?.map_or(Ok(()), |change| change.apply())?;
    }
    Ok(())
}

/// The first setting that isn't right: a word for CHECK.
pub fn finding() -> net::Result<Option<String>> {
    for setting in SETTINGS {
        if let Some(change) = read(setting)? {
            return Ok(Some(change.finding()));
        }
    }
    Ok(None)
}
