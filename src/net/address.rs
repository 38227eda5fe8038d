//! Addresses of a device (`ip address`).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo};

use crate::model::Family;

use super::{Request, Result, Socket, address_family};

/// An address and its link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_field_names)] // the kernel calls both so (IFA_ADDRESS)
pub struct Address {
    /// The device's index.
    pub index: u32,
    /// The address itself.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Known beyond this link and host (`scope global`).
    pub global: bool,
    /// It isn't temporary (RFC 8981), deprecated, or in doubt: others may be told of it.
    pub lasts: bool,
}

/// `ip address add ADDRESS dev INDEX`, with a prefix of that address alone. Of IPv6 `nodad noprefixroute preferred_lft 0`: nobody
/// else on the link has it, and a deprecated address is the source of nothing that doesn't ask for it (RFC 6724, rule 3).
pub fn add(index: u32, address: IpAddr) -> Request {
    let mut message = message(index, address);
    if address.is_ipv6() {
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
    }
    let object = object(index, address);
    Request::new("add address", object, NLM_F_CREATE | NLM_F_EXCL, &Message::NewAddress(message))
}

/// `ip address del ADDRESS dev INDEX`, as [`add`].
pub fn del(index: u32, address: IpAddr) -> Request {
    let message = message(index, address);
    let object = object(index, address);
    Request::new("delete address", object, 0, &Message::DelAddress(message))
}

fn object(index: u32, address: IpAddr) -> String {
    format!("{address}/{} on link {index}", Family::of(address).bits())
}

fn message(index: u32, address: IpAddr) -> AddressMessage {
    let family = Family::of(address);
    let mut message = AddressMessage::default();
    message.header.family = address_family(family);
    message.header.index = index;
    message.header.prefix_len = family.bits();
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    message
}

/// The addresses of a family on one device (`index`), or on all (`None`).
pub fn list(socket: &Socket, family: Family, index: Option<u32>) -> Result<Vec<Address>> {
    let mut query = AddressMessage::default();
    query.header.family = address_family(family);
    query.header.index = index.unwrap_or(0);
    // A kernel without that family lists those of all (`rtnetlink_rcv_msg`).
    socket.dump(("list addresses", format_args!("{family:?}")), &Message::GetAddress(query), |_, payload| {
        decode(payload).filter(|found| Family::of(found.address) == family)
    })
}

pub(super) fn decode(payload: &[u8]) -> Option<Address> {
    read(&AddressMessage::parse(payload).ok()?)
}

fn read(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut other, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    // The own one of a point-to-point link; elsewhere IPv6 says `IFA_ADDRESS` alone.
    let address = local.or(other)?;
    Some(Address {
        index: message.header.index,
        address,
        prefix: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        lasts: !flags.intersects(passing(address)),
    })
}

/// What is said of an address that others shouldn't be told of. The flag of a temporary one is that of another thing in IPv4 (`IFA_F_SECONDARY`).
fn passing(address: IpAddr) -> AddressFlags {
    let of_both = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    if address.is_ipv6() { of_both | AddressFlags::Secondary } else { of_both }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read_as_they_are_written() {
        for (address, prefix) in [("10.118.0.7", 32), ("2001:db8::7", 128)] {
            let address = address.parse().unwrap();
            let expected = Address { index: 3, address, prefix, global: true, lasts: true };
            assert_eq!(read(&message(3, address)), Some(expected));
        }
    }

    #[test]
    fn an_address_that_lasts_is_told_from_one_that_passes() {
        let lasts = |address: &str, flags| {
            let mut message = message(3, address.parse().unwrap());
            message.attributes.push(AddressAttribute::Flags(flags));
            read(&message).unwrap().lasts
        };
        assert!(lasts("2001:db8::7", AddressFlags::Permanent) && lasts("2001:db8::7", AddressFlags::Managetempaddr));
        // Temporary: IFA_F_TEMPORARY is IFA_F_SECONDARY.
        assert!(!lasts("2001:db8::7", AddressFlags::Secondary) && lasts("192.0.2.7", AddressFlags::Secondary));
        for passing in [AddressFlags::Tentative, AddressFlags::Deprecated, AddressFlags::Dadfailed] {
            assert!(!lasts("2001:db8::7", passing), "{passing:?}");
        }
    }
}
