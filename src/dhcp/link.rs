//! Broadcast on one link, through a packet socket: it needs no address on the interface and works beside another
//! client that has port 68.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{self, MsgFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frame;
use super::relay::{enlarge, errno};
use super::transport::{BUFFER, SendError};
use super::wire::{self, Message, Reply, WireError};
use super::{Error, Identity};

/// `ETH_P_IP` as the kernel wants it: in network order.
const ETH_P_IP: u16 = (libc::ETH_P_IP as u16).to_be();

/// Lets through what [`frame::parse_frame`] would read on: IPv4, UDP, no fragment but a first one, port 68. As
/// `tcpdump -dd "udp dst port 68"` without its IPv6 half.
const FILTER: [libc::sock_filter; 10] = [
    code(0x28, 0, 0, 12),         // ldh [12]        the Ethernet type
    code(0x15, 0, 7, 0x0800),     // jeq IPv4        else drop
    code(0x30, 0, 0, 23),         // ldb [23]        the protocol
    code(0x15, 0, 5, 17),         // jeq UDP         else drop
    code(0x28, 0, 0, 20),         // ldh [20]        the fragment offset
    code(0x45, 3, 0, 0x1fff),     // jset 0x1fff     drop
    code(0xb1, 0, 0, 14),         // ldxb 4*([14]&15) the IP header's length
    code(0x48, 0, 0, 16),         // ldh [x+16]      the destination port
    code(0x15, 1, 0, 68),         // jeq 68          accept
    code(0x06, 0, 0, 0),          // ret 0
];

const fn code(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}
