//! What a packet meets in a table of nftables or iptables, worked out as far as it can be known without a packet.
//!
//! A test of a rule is met, not met, or unknown (what isn't modelled, what depends on more than is known of the packet). Of
//! an unknown one the harmless half is believed: a rule that may accept has accepted, one that may drop hasn't. So what is
//! said to be dropped is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::model::Family;

#[derive(Debug)]
pub struct Table {
    /// How it is called and changed.
    pub place: Place,
    /// Its chains, by name.
    pub chains: BTreeMap<String, Chain>,
}

/// Which program a table is changed by, and how it calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Nft {
        /// `ip`, `ip6` or `inet`.
        family: String,
        name: String,
    },
    /// `iptables-nft` or `ip6tables-nft`
    Iptables { family: Family, name: String },
}

#[derive(Debug, Default)]
pub struct Chain {
    /// Where packets enter; none: by jumps only.
    pub hook: Option<Hook>,
    /// Its policy.
    pub drops: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A place in the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets on their way through.
    Forward,
    /// Packets for the node itself.
    Input,
    /// Packets that have just come in.
    Prerouting,
    /// Where addresses are translated on the way out.
    SourceNat,
    /// Any other.
    Other,
}

/// A rule: all tests met, the verdict is so.
#[derive(Debug)]
pub struct Rule {
    /// What a packet must be.
    pub tests: Vec<Test>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// How it is found among the others of its chain.
    pub shown: String,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this hook's chain.
    Accept,
    /// It is dropped or rejected.
    Drop,
    /// Its source is rewritten.
    Rewrite,
    /// It goes to a socket of another port.
    Redirect,
    /// Another chain's rules come first.
    Jump(String),
    /// Another chain's rules come instead.
    Goto(String),
    /// The rest of the chain doesn't matter.
    Return,
    /// Nothing.
    Continue,
    /// Something that isn't modelled.
    Unknown,
}

/// A test of a packet, or its contrary.
#[derive(Clone, Debug)]
pub struct Test {
    /// What is tested.
    pub target: Operand,
    /// The contrary is wanted.
    pub negated: bool,
}

/// What a packet is tested for.
#[derive(Clone, Debug)]
pub enum Operand {
    /// The device it came in by; `*` at the end matches anything.
    Input(Vec<String>),
    /// The device it leaves by.
    Output(Vec<String>),
    /// Where it comes from.
    Source(Vec<IpNetwork>),
    /// Where it goes.
    Destination(Vec<IpNetwork>),
    /// What conntrack says of it.
    State(Vec<String>),
    /// Its mark under a mask.
    Mark { mask: u64, value: u64 },
    /// What it carries, as protocols are called.
    Protocol(Vec<String>),
    /// The port that it goes to.
    Port(Vec<RangeInclusive<u16>>),
    /// Of what kind the address is that it goes to, as routes are called.
    AddressType(Vec<String>),
    /// Its family.
    Family(Vec<Family>),
    /// Something known of every packet here.
    Cache(bool),
    /// What isn't modelled.
    Unknown,
}

/// What is known of a packet.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// By which family it goes.
    pub family: Family,
    /// What it carries.
    pub protocol: &'static str,
    /// The port that it goes to.
    pub port: Option<u16>,
    /// Of what kind the address is that it goes to.
    pub address_type: Option<&'static str>,
    /// The device it came in by.
    pub input: Option<&'a str>,
    /// The device it leaves by.
    pub output: Option<&'a str>,
    /// Where it comes from.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: Option<IpAddr>,
    /// What conntrack says of it.
    pub state: &'static str,
    pub mark: Option<u64>,
}

impl Packet<'_> {
    /// One of IPv4 of which nothing is known but that, and what conntrack says of it.
    pub fn of(protocol: &'static str, state: &'static str) -> Self {
        let (family, input, output, source, destination) = (Family::V4, None, None, None, None);
        Self { family, protocol, port: None, address_type: None, input, output, source, destination, state, mark: None }
    }
}

/// What becomes of a packet in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes, or may pass.
    Passes,
    /// It is dropped for certain.
    Dropped,
    /// Its source is rewritten for certain.
    Rewritten,
    /// It goes to a socket of another port for certain.
    Redirected,
}

/// Deeper than any kernel lets chains jump (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: u8 = 16;
/// At most so many rules are evaluated for one packet: chains that fork again and again would take too long.
const MOST_RULES: u32 = 100_000;

/// What is left of a packet's way.
#[derive(Clone, Copy)]
struct Left<'a, 'r> {
    depth: u8,
    rules: &'a Cell<u32>,
    /// The rule that the packet was dropped by.
    dropped_by: &'a Cell<Option<&'r str>>,
}

impl Left<'_, '_> {
    /// One rule more; false: that was too many.
    fn goes_on(self) -> bool {
        self.rules.set(self.rules.get().saturating_sub(1));
        self.rules.get() > 0
    }
}

impl Table {
    /// What becomes of a packet that enters by this chain.
    pub fn fate(&self, name: &str, packet: &Packet<'_>) -> Fate {
        self.end(name, packet).0
    }

    /// What becomes of a packet that enters by this chain, and the rule that drops it; none: the chain's policy does.
    pub fn end(&self, name: &str, packet: &Packet<'_>) -> (Fate, Option<&str>) {
        let met = Some(&self.place).filter(|place| place.meets(packet.family));
        let Some(chain) = met.and_then(|_| self.chains.get(name)) else { return (Fate::Passes, None) };
        let policy = if chain.drops { Fate::Dropped } else { Fate::Passes };
        let (rules, dropped_by) = (Cell::new(MOST_RULES), Cell::new(None));
        let fate = self.walk(chain, packet, Left { depth: DEEPEST, rules: &rules, dropped_by: &dropped_by });
        (fate.unwrap_or(policy), dropped_by.get())
    }

    /// `None`: it returns from the chain.
    fn walk<'r>(&'r self, chain: &'r Chain, packet: &Packet<'_>, left: Left<'_, 'r>) -> Option<Fate> {
        for rule in &chain.rules {
            if !left.goes_on() {
                return Some(Fate::Passes);
            }
            let met = rule.is_met(packet);
            if met == Some(false) {
                continue;
            }
            let into = |name: &'r String| match self.chains.get(name).filter(|_| left.depth > 0) {
                Some(chain) => self.walk(chain, packet, Left { depth: left.depth - 1, ..left }),
                None => Some(Fate::Passes),
            };
            let fate = match &rule.verdict {
                Verdict::Continue => None,
                Verdict::Accept | Verdict::Unknown => Some(Fate::Passes),
                // Where it may be the end of the chain, nothing is known of the rest.
                Verdict::Return | Verdict::Goto(_) if met.is_none() => Some(Fate::Passes),
                Verdict::Drop => {
                    left.dropped_by.set(Some(&rule.shown));
                    Some(Fate::Dropped)
                }
                Verdict::Rewrite => Some(Fate::Rewritten),
                Verdict::Redirect => Some(Fate::Redirected),
                Verdict::Jump(name) => into(name),
                Verdict::Return => return None,
                Verdict::Goto(name) => return into(name),
            };
            // What harms counts only if the rule is met for certain.
            if fate == Some(Fate::Passes) || (fate.is_some() && met.is_some()) {
                return fate;
            }
            left.dropped_by.set(None);
        }
        None
    }
}

impl Place {
    /// The family and name under which nft shows a table of iptables-nft's.
    pub fn shadow(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Iptables { family: Family::V4, name } => Some(("ip", name)),
            Self::Iptables { family: Family::V6, name } => Some(("ip6", name)),
            Self::Nft { .. } => None,
        }
    }

    /// Whether packets of that family come here.
    pub fn meets(&self, of: Family) -> bool {
        match self {
            Self::Iptables { family, .. } => *family == of,
            Self::Nft { family, .. } => match of {
                Family::V4 => family != "ip6",
                Family::V6 => family != "ip",
            },
        }
    }
}

impl Chain {
    /// Address translation needs conntrack, and so does asking for its state.
    pub fn needs_conntrack(&self) -> bool {
        let asks = |test: &Test| matches!(test.target, Operand::State(_));
        self.rules.iter().any(|rule| rule.verdict == Verdict::Rewrite || rule.tests.iter().any(asks))
    }
}

impl Rule {
    fn is_met(&self, packet: &Packet<'_>) -> Option<bool> {
        let results: Vec<_> = self.tests.iter().map(|test| test.is_met(packet)).collect();
        match (results.contains(&Some(false)), results.contains(&None)) {
            (true, _) => Some(false),
            (_, true) => None,
            _ => Some(true),
        }
    }
}

impl Test {
    fn is_met(&self, packet: &Packet<'_>) -> Option<bool> {
        self.target.is_met(packet).map(|met| met != self.negated)
    }
}

impl Operand {
    fn is_met(&self, packet: &Packet<'_>) -> Option<bool> {
        let of_device =
            |names: &[String], device: Option<&str>| device.map(|device| names.iter().any(|n| is_of(n, device)));
        let is_of_family = |address: &IpAddr| Family::of(*address) == packet.family;
        let within = |networks: &[IpNetwork], address: Option<IpAddr>| match address {
            // Everything is within 0.0.0.0/0, or ::/0.
            _ if networks.iter().any(|network| network.prefix() == 0 && is_of_family(&network.ip())) => Some(true),
            address => address.map(|address| networks.iter().any(|network| network.contains(address))),
        };
        match self {
            Self::Input(names) => of_device(names, packet.input),
            Self::Output(names) => of_device(names, packet.output),
            Self::Source(networks) => within(networks, packet.source),
            Self::Destination(networks) => within(networks, packet.destination),
            Self::State(states) => Some(states.iter().any(|state| state.eq_ignore_ascii_case(packet.state))),
            Self::Mark { mask, value } => packet.mark.map(|mark| mark & mask == *value),
            Self::Protocol(protocols) => Some(protocols.iter().any(|protocol| protocol == packet.protocol)),
            Self::Port(ranges) => packet.port.map(|port| ranges.iter().any(|range| range.contains(&port))),
            Self::AddressType(types) => {
                packet.address_type.map(|one| types.iter().any(|other| one.eq_ignore_ascii_case(other)))
            }
            Self::Family(families) => Some(families.contains(&packet.family)),
            Self::Cache(met) => Some(*met),
            Self::Unknown => None,
        }
    }
}

fn is_of(pattern: &str, device: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => device.starts_with(beginning),
        None => pattern == device,
    }
}
