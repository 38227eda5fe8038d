//! What a packet meets in a table of nftables or iptables, worked out as far as it can be known without a packet.
//!
//! A test of a rule is met, not met, or unknown (what isn't modelled, what depends on more than is known of the packet). Of
//! an unknown one the harmless half is believed: a rule that may accept has accepted, one that may drop hasn't. So what is
//! said to be dropped is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

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
        /// `ip` or `inet`.
        family: String,
        name: String,
    },
    /// `iptables-nft`
    Iptables { name: String },
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
    Source(Vec<Ipv4Network>),
    /// Where it goes.
    Destination(Vec<Ipv4Network>),
    /// What conntrack says of it.
    State(Vec<String>),
    /// Its mark under a mask.
    Mark { mask: u64, value: u64 },
    /// Something known of every packet here: that it is IPv4, that it is TCP.
    Cache(bool),
    /// What isn't modelled.
    Unknown,
}

/// What is known of a packet.
#[derive(Clone, Debug, Default)]
pub struct Packet<'a> {
    /// The device it came in by.
    pub input: Option<&'a str>,
    /// The device it leaves by.
    pub output: Option<&'a str>,
    /// Where it comes from.
    pub source: Option<Ipv4Addr>,
    /// Where it goes.
    pub destination: Option<Ipv4Addr>,
    /// What conntrack says of it.
    pub state: &'static str,
    pub mark: Option<u64>,
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
}

/// Deeper than any kernel lets chains jump (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: u8 = 16;
/// At most so many rules are evaluated for one packet: chains that fork again and again would take too long.
const MOST_RULES: u32 = 100_000;

/// What is left of a packet's way.
#[derive(Clone, Copy)]
struct Left<'a> {
    depth: u8,
    rules: &'a Cell<u32>,
}

impl Left<'_> {
    /// One rule more; false: that was too many.
    fn goes_on(self) -> bool {
        self.rules.set(self.rules.get().saturating_sub(1));
        self.rules.get() > 0
    }
}

impl Table {
    /// What becomes of a packet that enters by this chain.
    pub fn fate(&self, name: &str, packet: &Packet<'_>) -> Fate {
        let Some(chain) = self.chains.get(name) else { return Fate::Passes };
        let policy = if chain.drops { Fate::Dropped } else { Fate::Passes };
        let rules = Cell::new(MOST_RULES);
        self.walk(chain, packet, Left { depth: DEEPEST, rules: &rules }).unwrap_or(policy)
    }

    /// `None`: it returns from the chain.
    fn walk(&self, chain: &Chain, packet: &Packet<'_>, left: Left<'_>) -> Option<Fate> {
        for rule in &chain.rules {
            if !left.goes_on() {
                return Some(Fate::Passes);
            }
            let met = rule.is_met(packet);
            if met == Some(false) {
                continue;
            }
            let into = |name: &String| match self.chains.get(name).filter(|_| left.depth > 0) {
                Some(chain) => self.walk(chain, packet, Left { depth: left.depth - 1, ..left }),
                None => Some(Fate::Passes),
            };
            let fate = match &rule.verdict {
                Verdict::Continue => None,
                Verdict::Accept | Verdict::Unknown => Some(Fate::Passes),
                // Where it may be the end of the chain, nothing is known of the rest.
                Verdict::Return | Verdict::Goto(_) if met.is_none() => Some(Fate::Passes),
                Verdict::Drop => Some(Fate::Dropped),
                Verdict::Rewrite => Some(Fate::Rewritten),
                Verdict::Jump(name) => into(name),
                Verdict::Return => return None,
                Verdict::Goto(name) => return into(name),
            };
            // What harms counts only if the rule is met for certain.
            if fate == Some(Fate::Passes) || (fate.is_some() && met.is_some()) {
                return fate;
            }
        }
        None
    }
}

impl Place {
    /// The name under which nft shows a table of iptables-nft's.
    pub fn shadow(&self) -> Option<String> {
        match self {
            Self::Iptables { name } => Some(name.clone()),
            Self::Nft { .. } => None,
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
        let within = |networks: &[Ipv4Network], address: Option<Ipv4Addr>| match address {
            // Everything is within 0.0.0.0/0.
            _ if networks.iter().any(|network| network.prefix() == 0) => Some(true),
            address => address.map(|address| networks.iter().any(|network| network.contains(address))),
        };
        match self {
            Self::Input(names) => of_device(names, packet.input),
            Self::Output(names) => of_device(names, packet.output),
            Self::Source(networks) => within(networks, packet.source),
            Self::Destination(networks) => within(networks, packet.destination),
            Self::State(states) => Some(states.iter().any(|state| state.eq_ignore_ascii_case(packet.state))),
            Self::Mark { mask, value } => packet.mark.map(|mark| mark & mask == *value),
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
