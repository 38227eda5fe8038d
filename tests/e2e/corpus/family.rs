//! A packet's headers in either family, read as the programs must read them, and IPv4's packets written as IPv6's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use viproute::internals::model::Family;

const ETHERNET: usize = 14;
/// Protocols' numbers.
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// RFC 8200, 4.1: hop-by-hop options, routing, fragment, authentication, destination options.
const EXTENSIONS: [u8; 5] = [0, 43, FRAGMENT, AUTHENTICATION, 60];
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// So many are walked.
const MOST: usize = 8;

/// What a family's packets are like.
pub trait Form {
    /// `h_proto` of the Ethernet header.
    fn ethertype(self) -> [u8; 2];
    /// Octets of the Ethernet and the IP header, which has no options.
    fn headers(self) -> usize;
    /// Where the source's address begins; the destination's follows.
    fn source_at(self) -> usize;
    /// Octets of an address.
    fn address(self) -> usize;
    /// ICMP's number.
    fn icmp(self) -> u8;
}

impl Form for Family {
    fn ethertype(self) -> [u8; 2] {
        if self == Self::V4 { [0x08, 0x00] } else { [0x86, 0xdd] }
    }

    fn headers(self) -> usize {
        if self == Self::V4 { 34 } else { 54 }
    }

    fn source_at(self) -> usize {
        if self == Self::V4 { 26 } else { 22 }
    }

    fn address(self) -> usize {
        if self == Self::V4 { 4 } else { 16 }
    }

    fn icmp(self) -> u8 {
        if self == Self::V4 { 1 } else { 58 }
    }
}

/// What is known of a packet by its headers.
pub struct Headers {
    pub family: Family,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// What follows them; 255: what can't be read.
    pub protocol: u8,
    /// Where that begins.
    pub inner: usize,
    pub in_fragments: bool,
    /// A fragment, and not the first.
    pub is_later: bool,
    /// Octets behind the first header, by its own word.
    pub length: usize,
}

pub fn address_at(family: Family, packet: &[u8], at: usize) -> IpAddr {
    let octets = &packet[at..at + family.address()];
    match family {
        Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(octets).expect("four octets")).into(),
        Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("sixteen octets")).into(),
    }
}

fn number(packet: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]))
}

/// `None`: it is no packet of that family.
pub fn read(family: Family, packet: &[u8]) -> Option<Headers> {
    if packet.len() < family.headers() || packet[12..14] != family.ethertype() {
        return None;
    }
    let at = family.source_at();
    let (source, destination) = (address_at(family, packet, at), address_at(family, packet, at + family.address()));
    let mut headers = Headers {
        family,
        source,
        destination,
        protocol: 255,
        inner: family.headers(),
        in_fragments: false,
        is_later: false,
        length: 0,
    };
    match family {
        Family::V4 if packet[14] >> 4 != 4 || packet[14] & 15 < 5 => return None,
        Family::V6 if packet[14] >> 4 != 6 => return None,
        Family::V4 => {
            let fragment = number(packet, 20);
            headers.protocol = packet[23];
            headers.inner = ETHERNET + usize::from(packet[14] & 15) * 4;
            headers.in_fragments = fragment & 0x3fff != 0;
            headers.is_later = fragment & 0x1fff != 0;
            headers.length = number(packet, 16).saturating_sub(20);
        }
        Family::V6 => headers.walk(packet),
    }
    Some(headers)
}

impl Headers {
    /// Where a packet of IPv6 ends by its own word; of IPv4 the guard needs none: what is in its header is in the first fragment.
    pub fn end(&self, packet: &[u8]) -> usize {
        match (self.family, self.length) {
            (Family::V6, 1..) => packet.len().min(self.family.headers() + self.length),
            _ => packet.len(),
        }
    }

    fn walk(&mut self, packet: &[u8]) {
        self.length = number(packet, 18);
        let end = self.end(packet);
        let mut next = packet[20];
        for _ in 0..MOST {
            if !EXTENSIONS.contains(&next) {
                self.protocol = next;
                return;
            }
            if self.inner + 8 > end {
                return;
            }
            let (kind, length) = (next, usize::from(packet[self.inner + 1]));
            let fragment = number(packet, self.inner + 2);
            next = packet[self.inner];
            self.inner += match kind {
                AUTHENTICATION => (length + 2) * 4,
                FRAGMENT => 8,
                _ => (length + 1) * 8,
            };
            if kind == FRAGMENT && fragment & 0xfff9 != 0 {
                self.in_fragments = true;
                self.is_later = fragment & 0xfff8 != 0;
            }
            if self.is_later {
                self.protocol = next;
                return;
            }
        }
    }
}

/// A case's lines, as IPv4 has them, for IPv6; `None`: it is about something that IPv6 has in another form.
pub fn as_ipv6(lines: &[&str]) -> Option<Vec<String>> {
    let (mut written, mut at, mut longer) = (Vec::new(), 0, 0);
    for line in lines {
        let (label, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match label {
            "eth" => {
                let (addresses, kind) = rest.rsplit_once(' ')?;
                (kind == "0800" || kind == "86dd").then_some(())?;
                written.push(format!("eth {addresses} 86dd"));
                at = ETHERNET;
            }
            "ip" => {
                let header = ip6(&words)?;
                longer += header.iter().map(|(octets, _)| octets).sum::<usize>() - 20;
                at += 20;
                written.extend(header.into_iter().map(|(_, line)| line));
            }
            "icmp" if lines.iter().any(|line| line.starts_with("ip ")) => {
                written.push(format!("icmp {} {}", icmp6(words[0], words[1])?, words[2..].join(" ")));
                at += 8;
            }
            // Only where it cuts off what is behind all headers.
            "keep" => written.push(format!("keep {}", rest.parse::<usize>().ok().filter(|keep| *keep >= at)? + longer)),
            _ => written.push((*line).to_owned()),
        }
    }
    Some(written)
}

/// The header, and with it a fragment's: octets and line.
fn ip6(words: &[&str]) -> Option<Vec<(usize, String)>> {
    let [version, tos, length, id, fragment, ttl, protocol, _, source, destination] = *words else { return None };
    if version != "45" || !source.starts_with('{') || !destination.starts_with('{') {
        return None;
    }
    let fragment = u16::from_str_radix(fragment, 16).ok()?;
    let (is_fragment, offset, more) =
        (fragment & 0x3fff != 0, (fragment & 0x1fff) << 3, u16::from(fragment & 0x2000 != 0));
    let protocol = if protocol == "01" { "3a" } else { protocol };
    let length = match length {
        "{length}" | "0000" => length.to_owned(),
        hex => format!("{:04x}", u16::from_str_radix(hex, 16).ok()?.checked_sub(20)? + 8 * u16::from(is_fragment)),
    };
    let tos = u8::from_str_radix(tos, 16).ok()?;
    let next = if is_fragment { "2c" } else { protocol };
    let first = format!("ip6 6{:x}{:x}00000 {length} {next} {ttl} {source} {destination}", tos >> 4, tos & 15);
    let behind = format!("ext {protocol} 00 {:04x} 0000{id}", offset | more);
    Some(std::iter::once((40, first)).chain(is_fragment.then_some((8, behind))).collect())
}

/// The type and code that say the same by IPv6 (RFC 4443).
fn icmp6(kind: &str, code: &str) -> Option<&'static str> {
    Some(match (kind, code) {
        ("00", "00") => "81 00",
        ("08", "00") => "80 00",
        ("03", "00") => "01 00",
        ("03", "01") => "01 03",
        ("03", "03") => "01 04",
        ("03", "04") => "02 00",
        ("0b", "00") => "03 00",
        ("0b", "01") => "03 01",
        _ => return None,
    })
}
