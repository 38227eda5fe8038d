//! Packets written as text (testdata/packets/README.md): read here, with the names of a running node filled in.

use std::collections::BTreeMap;

use viproute::internals::model::Family;

use super::family::{self, Form, TCP, UDP};

/// What the running node calls `{…}`, as octets.
pub type Names = BTreeMap<String, Vec<u8>>;

/// A packet and what must become of it.
pub struct Case {
    /// File, line and title: what a failure says.
    pub title: String,
    pub program: Program,
    /// The pod whose host veth it is on.
    pub pod: String,
    pub mark: u32,
    pub segment: u32,
    /// Whether the VIP's buckets may move.
    pub moving: bool,
    pub verdict: Verdict,
    pub counter: Option<String>,
    pub packet: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Owner,
    Guard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    To(String),
    Copies,
    /// Redirected as this packet.
    Reset(Vec<u8>),
}

/// The packets of a file, in its order. What is written for IPv4 is for IPv6, too, if nothing says `ipv4` and IPv6 has the like.
pub fn read(file: &str, text: &str, (family, names): (Family, &Names)) -> Vec<Case> {
    let mut cases: Vec<(usize, Vec<&str>)> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("== ") {
            Some(title) => cases.push((number + 1, vec![title])),
            None => cases.last_mut().unwrap_or_else(|| panic!("{file}: {line:?} belongs to no packet")).1.push(line),
        }
    }
    let of_family = cases.iter().filter_map(|(number, lines)| {
        let title = format!("{file}:{number}: {}", lines[0]);
        let lines: Vec<String> = match family {
            Family::V6 if lines.contains(&"ipv4") => return None,
            Family::V6 => family::as_ipv6(&lines[1..])?,
            Family::V4 => lines[1..].iter().map(|line| (*line).to_owned()).collect(),
        };
        Some((title, lines))
    });
    of_family.map(|(title, lines)| case(&title, &lines.iter().map(String::as_str).collect::<Vec<_>>(), names)).collect()
}

fn case(title: &str, lines: &[&str], names: &Names) -> Case {
    let (way, wanted) = lines[0].split_once(": ").unwrap_or_else(|| panic!("{title}: a verdict is missing"));
    let (program, pod) = match way.split_once(' ') {
        Some(("by", pod)) => (Program::Owner, pod),
        Some(("from", pod)) => (Program::Guard, pod),
        _ => panic!("{title}: {way:?} is neither by a pod nor from one"),
    };
    let (verdict, counter) = wanted.split_once(", ").map_or((wanted, None), |(verdict, name)| (verdict, Some(name)));
    let number = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let mut sides = lines[1..].split(|line| *line == "answer");
    let packet = frame(title, sides.next().unwrap_or_default(), names);
    let verdict = match verdict {
        "pass" => Verdict::Pass,
        "drop" => Verdict::Drop,
        "copies" => Verdict::Copies,
        "reset" => {
            let answer = sides.next().unwrap_or_else(|| panic!("{title}: no answer"));
            Verdict::Reset(frame(title, answer, names))
        }
        other => Verdict::To(other.strip_prefix("to ").unwrap_or_else(|| panic!("{title}: {other:?}?")).to_owned()),
    };
    Case {
        title: title.to_owned(),
        program,
        pod: pod.to_owned(),
        mark: number("mark").map_or(0, |hex| u32::from_str_radix(hex, 16).expect("a mark")),
        segment: number("gso").map_or(0, |octets| octets.parse().expect("a segment size")),
        moving: lines.contains(&"moving"),
        verdict,
        counter: counter.map(str::to_owned),
        packet,
    }
}

/// A line of a packet: its octets, and where `{length}` and `{sum}` belong.
struct Layer {
    label: String,
    octets: Vec<u8>,
    length: Option<usize>,
    sum: Option<usize>,
    partial: bool,
}

fn frame(title: &str, lines: &[&str], names: &Names) -> Vec<u8> {
    let mut layers: Vec<Layer> = Vec::new();
    let (mut pad, mut keep) = (Vec::new(), usize::MAX);
    for line in lines {
        let (label, rest) = line.split_once(' ').unwrap_or((line, ""));
        match label {
            "eth" | "ip" | "ip6" | "ext" | "tcp" | "udp" | "icmp" | "data" => {
                layers.push(layer(title, label, rest, names));
            }
            "pad" => pad = layer(title, label, rest, names).octets,
            "keep" => keep = rest.parse().unwrap_or_else(|_| panic!("{title}: keep {rest:?}")),
            "mark" | "gso" | "moving" | "ipv4" => {}
            other => panic!("{title}: {other:?} is no layer"),
        }
    }
    // From the innermost on: an outer checksum covers the inner ones.
    let mut behind: Vec<u8> = Vec::new();
    for place in (0..layers.len()).rev() {
        let outer = layers[..place].iter().rev().find(|layer| ["ip", "ip6"].contains(&layer.label.as_str()));
        let outer = outer.map(|layer| layer.octets.clone());
        let layer = &mut layers[place];
        if let Some(at) = layer.length {
            // IPv6's header doesn't count itself.
            let own = if layer.label == "ip6" { 0 } else { layer.octets.len() };
            let length = u16::try_from(own + behind.len()).expect("a length of 16 bits");
            layer.octets[at..at + 2].copy_from_slice(&length.to_be_bytes());
        }
        if let Some(at) = layer.sum {
            let whole = [layer.octets.as_slice(), &behind].concat();
            let sum = match (layer.label.as_str(), outer) {
                ("ip", _) => !sum(&layer.octets),
                (label, Some(ip)) => match protocol_of(label, &ip) {
                    Some(protocol) if layer.partial => sum(&pseudo_header(&ip, protocol, whole.len())),
                    Some(protocol) => !sum(&[pseudo_header(&ip, protocol, whole.len()), whole].concat()),
                    None => !sum(&whole),
                },
                _ => !sum(&whole),
            };
            layer.octets[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        behind.splice(0..0, layer.octets.iter().copied());
    }
    behind.extend(pad);
    behind.truncate(keep);
    behind
}

fn layer(title: &str, label: &str, text: &str, names: &Names) -> Layer {
    let mut layer = Layer {
        label: label.to_owned(),
        octets: Vec::new(),
        length: None,
        sum: None,
        partial: text.contains("{partial}"),
    };
    for word in text.split_whitespace() {
        let at = layer.octets.len();
        match word {
            "{length}" => layer.length = Some(at),
            "{sum}" | "{partial}" => layer.sum = Some(at),
            _ => {}
        }
        match (word.strip_prefix('{').and_then(|name| name.strip_suffix('}')), word.split_once('*')) {
            (Some("length" | "sum" | "partial"), _) => layer.octets.extend([0, 0]),
            (Some(name), _) => {
                let octets = names.get(name).unwrap_or_else(|| panic!("{title}: nobody knows {{{name}}}"));
                layer.octets.extend(octets);
            }
            (None, Some((hex, times))) => {
                layer.octets.extend(octets_of(title, hex).repeat(times.parse().expect("how many times")));
            }
            (None, None) => layer.octets.extend(octets_of(title, word)),
        }
    }
    layer
}

fn octets_of(title: &str, hex: &str) -> Vec<u8> {
    let octet =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok();
    let octets: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(octet).collect();
    octets.unwrap_or_else(|| panic!("{title}: {hex:?} isn't hexadecimal"))
}

/// The sum of RFC 1071, not complemented.
pub fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("it is folded")
}

/// The protocol whose checksum has a pseudo-header in its sum behind this IP header. ICMP's has one by IPv6 alone.
fn protocol_of(label: &str, ip: &[u8]) -> Option<u8> {
    match label {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        "icmp" if is_ipv6(ip) => Some(Family::V6.icmp()),
        _ => None,
    }
}

/// Of IPv4 one may claim so.
fn is_ipv6(ip: &[u8]) -> bool {
    ip[0] >> 4 == 6 && ip.len() == 40
}

/// The pseudo-header of a protocol behind this IP header (RFC 9293, 3.1; RFC 8200, 8.1).
pub fn pseudo_header(ip: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).expect("a length of 16 bits").to_be_bytes();
    let addresses = if is_ipv6(ip) { &ip[8..40] } else { &ip[12..20] };
    [addresses, &[0, protocol], &length].concat()
}
