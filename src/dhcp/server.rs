//! Who a server is.

use std::fmt;
use std::net::IpAddr;

/// The longest DUID (RFC 8415 section 11.1).
const LONGEST: usize = 130;

/// A server: the address that it gives as its own (option 54), or that it answers from and the name that it calls itself by (`DHCPv6`'s
/// option 2, a DUID).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Server {
    address: IpAddr,
    duid: [u8; LONGEST],
    length: usize,
}

impl Server {
    /// One of which only the address is known.
    pub const fn at(address: IpAddr) -> Self {
        Self { address, duid: [0; LONGEST], length: 0 }
    }

    /// One that calls itself so. None: no server may have that name.
    pub fn called(name: &[u8], address: IpAddr) -> Option<Self> {
        let mut server = Self { length: name.len(), ..Self::at(address) };
        server.duid.get_mut(..name.len()).filter(|_| name.len() > 2)?.copy_from_slice(name);
        Some(server)
    }

    /// Its address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Its DUID; empty where that isn't known.
    pub fn duid(&self) -> &[u8] {
        &self.duid[..self.length]
    }

    /// Whether both are one: by their names, and where one isn't known by their addresses.
    pub fn is(&self, other: &Self) -> bool {
        if self.length > 0 && other.length > 0 { self.duid() == other.duid() } else { self.address == other.address }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:02x?}", self.address, self.duid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_name_and_else_by_its_address() {
        let [a, b]: [IpAddr; 2] = ["fe80::1", "fe80::2"].map(|text| text.parse().unwrap());
        let named = |name: &[u8], at| Server::called(name, at).unwrap();
        assert!(named(b"\0\x03x", a).is(&named(b"\0\x03x", b)));
        assert!(!named(b"\0\x03x", a).is(&named(b"\0\x03y", a)));
        assert!(named(b"\0\x03x", a).is(&Server::at(a)) && !Server::at(b).is(&named(b"\0\x03x", a)));
        assert_eq!(Server::called(&[1; LONGEST + 1], a), None);
        assert_eq!(Server::called(&[0, 1], a), None);
    }
}
