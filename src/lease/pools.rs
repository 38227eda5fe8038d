//! The pools that addresses are given out of, and which of them serves which VIP. Pure.
//!
//! As with `MetalLB`: a Service may name its pool. For one that names none, pools that say whom they serve and mean this one come first, then
//! those that say nothing, in the order of the configuration; the next is taken where one is used up. A pool that isn't `auto` is given out to
//! who names it alone. Namespaces and labels must both fit, also where the pool is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnetwork::Ipv4Network;

use crate::model::VipKey;

/// The annotation by which a Service names its pool.
pub const ANNOTATION: &str = "viproute.io/pool";
/// What the only pool is called where the configuration gives it no name.
pub const DEFAULT_NAME: &str = "default";

/// Labels by their names.
pub type Labels = BTreeMap<String, String>;

/// Addresses one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// A network, without its network and broadcast address, which a /31 or /32 hasn't (RFC 3021).
    Network(Ipv4Network),
    /// From the first to the last, both included.
    Span(Ipv4Addr, Ipv4Addr),
}

/// Addresses that are given out together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What Services call it.
    pub name: String,
    /// Its addresses; the lowest free one of the first range that has one is taken.
    pub ranges: Vec<Range>,
    /// Those of them that are never given out.
    pub exclude: Vec<Ipv4Addr>,
    /// It is given out to VIPs that name no pool, too.
    pub auto: bool,
    /// The namespaces that it serves; empty: all.
    pub namespaces: BTreeSet<String>,
    /// Labels that a Service must have; empty: none, and pods' own VIPs are served too.
    pub labels: Labels,
}

/// With what an address is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish<'a> {
    /// The VIP's namespace.
    pub namespace: &'a str,
    /// The pool that its Service names.
    pub pool: Option<&'a str>,
    /// Its Service's labels; none: it has no Service.
    pub labels: Option<&'a Labels>,
    /// The only address that will do.
    pub address: Option<Ipv4Addr>,
}

/// All pools, in the order of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

/// Why no pool serves a VIP, whatever is free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// No pool is called so.
    #[error("there is no pool {name} ({ANNOTATION}; there are: {known})")]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The pool that is named serves other namespaces.
    #[error("pool {pool} doesn't serve namespace {namespace} (it serves: {served})")]
    Namespace {
        /// The pool.
        pool: String,
        /// The VIP's.
        namespace: String,
        /// Those that it serves.
        served: String,
    },
    /// The pool that is named serves other Services.
    #[error("pool {pool} serves Services with the labels {labels} alone")]
    Labels {
        /// The pool.
        pool: String,
        /// What they must have.
        labels: String,
    },
    /// None serves it by itself.
    #[error("no pool serves namespace {namespace} without being named ({ANNOTATION}; there are: {known})")]
    Nobody {
        /// The VIP's.
        namespace: String,
        /// The names there are.
        known: String,
    },
}

/// Why a VIP can't have what it asks for, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such pool.
    Unknown,
    /// It serves others.
    Unserved,
    /// It has no free address.
    UsedUp,
    /// The address that is asked for isn't to be had.
    Address,
}

impl Unserved {
    /// In a word.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unknown { .. } => Refusal::Unknown,
            Self::Namespace { .. } | Self::Labels { .. } | Self::Nobody { .. } => Refusal::Unserved,
        }
    }
}

/// How much of a pool is given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub pool: String,
    /// So many addresses can be given out.
    pub size: usize,
    /// So many are.
    pub used: usize,
}

impl Range {
    /// The first and the last address that a VIP can have.
    fn hosts(self) -> (u32, u32) {
        match self {
            Self::Network(network) if network.prefix() < 31 => {
                (u32::from(network.network()) + 1, u32::from(network.broadcast()) - 1)
            }
            other => other.bounds(),
        }
    }

    /// The first and the last address.
    fn bounds(self) -> (u32, u32) {
        match self {
            Self::Network(network) => (network.network().into(), network.broadcast().into()),
            Self::Span(first, last) => (first.into(), last.into()),
        }
    }

    /// Whether an address lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(&u32::from(address))
    }

    /// Whether an address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        let ((first, last), (others_first, others_last)) = (self.bounds(), other.bounds());
        first <= others_last && others_first <= last
    }

    /// The fewest networks that have its addresses and no others.
    pub fn networks(self) -> Vec<Ipv4Network> {
        let (first, last) = self.bounds();
        let (mut at, mut found) = (u64::from(first), Vec::new());
        while at <= u64::from(last) {
            // As large as the address allows where it begins, and as what is left.
            let aligned = (at | 1 << 32).trailing_zeros();
            let left = (u64::from(last) - at + 1).ilog2();
            let bits = aligned.min(left);
            let address = Ipv4Addr::from(u32::try_from(at).unwrap_or(u32::MAX));
            found.extend(Ipv4Network::new(address, u8::try_from(32 - bits).unwrap_or(32)));
            at += 1 << bits;
        }
        found
    }
}

impl FromStr for Range {
    type Err = ();

    /// A network whose host bits are zero, or `FIRST-LAST`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some((first, last)) = text.split_once('-') {
            let read = |text: &str| text.trim().parse::<Ipv4Addr>().map_err(drop);
            let (first, last) = (read(first)?, read(last)?);
            return if first <= last { Ok(Self::Span(first, last)) } else { Err(()) };
        }
        let network: Ipv4Network = text.parse().map_err(drop)?;
        if text.contains('/') && network.ip() == network.network() { Ok(Self::Network(network)) } else { Err(()) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Span(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl Pool {
    /// One that serves everybody.
    pub fn open(name: &str, ranges: Vec<Range>, exclude: Vec<Ipv4Addr>) -> Self {
        let (namespaces, labels) = (BTreeSet::new(), Labels::new());
        Self { name: name.to_owned(), ranges, exclude, auto: true, namespaces, labels }
    }

    /// Whether an address lies in one of its ranges.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether it may be given out.
    pub fn gives(&self, address: Ipv4Addr) -> bool {
        let is_host = |range: &Range| {
            let (first, last) = range.hosts();
            (first..=last).contains(&u32::from(address))
        };
        self.ranges.iter().any(is_host) && !self.exclude.contains(&address)
    }

    /// What may be given out, in order.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let hosts = self.ranges.iter().flat_map(|range| {
            let (first, last) = range.hosts();
            first..=last
        });
        hosts.map(Ipv4Addr::from).filter(|address| !self.exclude.contains(address))
    }

    /// How many that are.
    pub fn size(&self) -> usize {
        let of = |range: &Range| {
            let (first, last) = range.hosts();
            usize::try_from(last - first).unwrap_or(usize::MAX).saturating_add(1)
        };
        let excluded: BTreeSet<&Ipv4Addr> = self.exclude.iter().collect();
        let is_host = |address: &&&Ipv4Addr| Self { exclude: Vec::new(), ..self.clone() }.gives(***address);
        let excluded = excluded.iter().filter(is_host).count();
        self.ranges.iter().map(of).fold(0_usize, usize::saturating_add).saturating_sub(excluded)
    }

    /// It says whom it serves.
    fn is_reserved(&self) -> bool {
        !self.namespaces.is_empty() || !self.labels.is_empty()
    }

    fn check(&self, wish: &Wish<'_>) -> Result<(), Unserved> {
        if !self.namespaces.is_empty() && !self.namespaces.contains(wish.namespace) {
            let served = joined(self.namespaces.iter().cloned());
            return Err(Unserved::Namespace { pool: self.name.clone(), namespace: wish.namespace.to_owned(), served });
        }
        let has = |(name, value): (&String, &String)| wish.labels.and_then(|labels| labels.get(name)) == Some(value);
        if !self.labels.iter().all(has) {
            let labels = joined(self.labels.iter().map(|(name, value)| format!("{name}={value}")));
            return Err(Unserved::Labels { pool: self.name.clone(), labels });
        }
        Ok(())
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, joined(self.ranges.iter().map(ToString::to_string)))
    }
}

impl<'a> Wish<'a> {
    /// That of a VIP that has no Service.
    pub fn of(vip: &'a VipKey) -> Self {
        Self { namespace: vip.namespace(), ..Self::default() }
    }
}

impl Pools {
    /// In that order.
    pub fn new(pools: Vec<Pool>) -> Self {
        Self(pools)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    /// Those that an address may be taken out of, in that order; at least one.
    pub fn serving(&self, wish: &Wish<'_>) -> Result<Vec<&Pool>, Unserved> {
        if let Some(name) = wish.pool {
            let unknown = || Unserved::Unknown { name: name.to_owned(), known: self.names() };
            let pool = self.0.iter().find(|pool| pool.name == name).ok_or_else(unknown)?;
            return pool.check(wish).map(|()| vec![pool]);
        }
        let mut serving: Vec<&Pool> = self.0.iter().filter(|pool| pool.auto && pool.check(wish).is_ok()).collect();
        serving.sort_by_key(|pool| !pool.is_reserved());
        if serving.is_empty() {
            return Err(Unserved::Nobody { namespace: wish.namespace.to_owned(), known: self.names() });
        }
        Ok(serving)
    }

    /// The pool in whose ranges an address lies.
    pub fn of(&self, address: Ipv4Addr) -> Option<&Pool> {
        self.0.iter().find(|pool| pool.contains(address))
    }

    /// The networks of all of them.
    pub fn networks(&self) -> Vec<Ipv4Network> {
        self.0.iter().flat_map(|pool| &pool.ranges).flat_map(|range| range.networks()).collect()
    }

    /// How much of each is given out. `pins` can't be.
    pub fn usage(&self, given: &BTreeSet<Ipv4Addr>, pins: &BTreeSet<IpAddr>) -> Vec<Usage> {
        let is_pin = |address: &Ipv4Addr| pins.contains(&IpAddr::V4(*address));
        let of = |pool: &Pool| {
            let pinned = pins.iter().filter(|pin| matches!(pin, IpAddr::V4(pin) if pool.gives(*pin))).count();
            let used = given.iter().filter(|address| pool.contains(**address) && !is_pin(address)).count();
            Usage { pool: pool.name.clone(), size: pool.size().saturating_sub(pinned), used }
        };
        self.0.iter().map(of).collect()
    }

    fn names(&self) -> String {
        joined(self.0.iter().map(|pool| pool.name.clone()))
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&listed(&self.0.iter().collect::<Vec<_>>()))
    }
}

/// That these have no free address.
pub fn used_up(pools: &[&Pool]) -> String {
    format!("no address of {} is free", listed(pools))
}

/// As sentences name them.
pub fn listed(pools: &[&Pool]) -> String {
    let names = joined(pools.iter().map(ToString::to_string));
    if pools.len() == 1 { format!("pool {names}") } else { format!("the pools {names}") }
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
