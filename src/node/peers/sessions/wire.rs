//! The form of a datagram.

use std::net::{IpAddr, SocketAddr};

use crate::node::peers::key::TAG;

const MAGIC: [u8; 4] = *b"VPN1";
/// Octets before the body.
pub const HEADER: usize = 32;
/// With headers a datagram is no larger than what every IPv6 link, and so every tunnel, takes whole.
pub const PART: usize = 1150;
/// A message of chitchat's has at most 65,507 octets and a few.
pub const MAX_PARTS: usize = 60;

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message or a part of one.
    Data = 1,
    /// A question for a token.
    Ask = 2,
    /// The answer.
    Token = 3,
    /// What one node asks or tells another, beside the gossip.
    Note = 4,
}

/// What stands before the body.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub kind: Kind,
    pub part: u8,
    pub parts: u8,
    pub boot: u64,
    pub token: u64,
    pub counter: u64,
}

impl Head {
    /// `None`: it is none of ours.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<HEADER>()?;
        if head[..4] != MAGIC || rest.len() < TAG || rest.len() > PART + TAG {
            return None;
        }
        let kind = [Kind::Data, Kind::Ask, Kind::Token, Kind::Note].into_iter().find(|kind| *kind as u8 == head[4])?;
        let number = |at: usize| head[at..at + 8].iter().fold(0, |sum: u64, octet| sum << 8 | u64::from(*octet));
        let (boot, token, counter) = (number(8), number(16), number(24));
        let read = Self { kind, part: head[5], parts: head[6], boot, token, counter };
        let whole = read.part < read.parts && usize::from(read.parts) <= MAX_PARTS;
        // Only a message or a note has a body, and a message's parts have their counters in a row.
        let may_have_a_body = matches!(kind, Kind::Data | Kind::Note) || rest.len() == TAG;
        let may_have_parts = kind == Kind::Data || read.parts == 1;
        (whole && may_have_a_body && may_have_parts && counter >= u64::from(read.part)).then_some(read)
    }

    /// As it is sent.
    pub fn write(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend([self.kind as u8, self.part, self.parts, 0]);
        for number in [self.boot, self.token, self.counter] {
            head.extend(number.to_be_bytes());
        }
        head
    }
}

/// As it is authenticated. What one family's octets stand for the other's can't: no node is heard at 0.0.0.0.
pub fn octets(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&ip.octets()[..], &port].concat(),
        IpAddr::V6(ip) => [&[0; 4][..], &ip.octets(), &port].concat(),
    }
}
