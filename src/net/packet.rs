//! Packet sockets (packet(7)): whole Ethernet frames of one link, as far as a filter lets them through.

use std::mem;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType};
use tokio::io::unix::AsyncFd;

use crate::model::Mac;

/// Bytes of an Ethernet header: two addresses and a type.
pub const ETHERNET: usize = 14;
/// Ethernet's types (`linux/if_ether.h`).
pub const ARP: u16 = 0x0806;
/// The same of IPv4.
pub const IPV4: u16 = 0x0800;
/// The same of IPv6.
pub const IPV6: u16 = 0x86dd;

/// An instruction of a filter (`struct sock_filter`).
pub const fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Which frames a socket receives.
#[derive(Clone, Copy)]
pub struct Frames {
    /// Of which Ethernet type.
    pub ethertype: u16,
    /// Which of these; empty: all.
    pub filter: &'static [libc::sock_filter],
}

/// A call failed: which, and how.
pub type Failed = (&'static str, Errno);

/// A non-blocking socket that receives such frames of one link, and sends any.
pub fn open(index: u32, frames: Frames) -> Result<OwnedFd, Failed> {
    let failed = |op| move |errno| (op, errno);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // With no protocol yet it receives nothing; bind names one when the filter is in place (packet(7)).
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(failed("socket"))?;
    if !frames.filter.is_empty() {
        attach(&socket, frames.filter).map_err(failed("SO_ATTACH_FILTER"))?;
    }
    bind(&socket, index, frames.ethertype).map_err(failed("bind"))?;
    Ok(socket)
}

/// The same in the current tokio runtime.
pub fn register(socket: OwnedFd) -> Result<AsyncFd<OwnedFd>, Failed> {
    // SAFETY: an OwnedFd is open until it is dropped and always gives the same descriptor; the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register(socket) };
    registered.map_err(|error| ("register", Errno::from_raw(error.into_parts().1.raw_os_error().unwrap_or(0))))
}

/// Receives frames of that link and type from now on.
pub fn bind(socket: &OwnedFd, index: u32, ethertype: u16) -> Result<(), Errno> {
    // SAFETY: a sockaddr_ll is integers and an array of them, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(|_| Errno::EINVAL)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = index.try_into().map_err(|_| Errno::ENODEV)?;
    // SAFETY: the pointer is to a sockaddr_ll of the length given, which the kernel reads and doesn't keep.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length_of::<libc::sockaddr_ll>()) };
    Errno::result(result).map(drop)
}

fn attach(socket: &OwnedFd, filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let len = filter.len().try_into().map_err(|_| Errno::EINVAL)?;
    // The kernel only reads it.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Whether the link hands up what is sent to an Ethernet multicast group; counted for each socket.
pub fn follow(socket: &OwnedFd, index: u32, group: Mac, follows: bool) -> Result<(), Errno> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&group.0);
    let request = libc::packet_mreq {
        mr_ifindex: index.try_into().map_err(|_| Errno::ENODEV)?,
        mr_type: libc::PACKET_MR_MULTICAST.try_into().map_err(|_| Errno::EINVAL)?,
        mr_alen: 6,
        mr_address: address,
    };
    let option = if follows { libc::PACKET_ADD_MEMBERSHIP } else { libc::PACKET_DROP_MEMBERSHIP };
    set(socket, libc::SOL_PACKET, option, &request)
}

/// The address that a link has for itself; none: it has none, or that can't be read.
pub fn link_local(interface: &str) -> Option<Ipv6Addr> {
    let own = getifaddrs().ok()?.filter(|entry| entry.interface_name == interface);
    let mut addresses = own.filter_map(|entry| Some(entry.address?.as_sockaddr_in6()?.ip()));
    addresses.find(Ipv6Addr::is_unicast_link_local)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> Result<(), Errno> {
    // SAFETY: the option's value is a T of the length given, which the kernel copies before it returns; what it points to lives as long.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(value).cast(), length_of::<T>()) };
    Errno::result(result).map(drop)
}

/// The size of a structure as the socket calls want it.
fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}
