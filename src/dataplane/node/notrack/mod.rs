//! The node's nftables tables, one of each family. No connection tracking for VIP traffic, nor for the tunnel to other nodes: what isn't tracked costs no
//! entry, no masquerade rule can rewrite it, and no firewall takes it for invalid that sees one direction of it. And no packet for the
//! tunnel from who isn't one of the nodes that this one knows. The plugin never touches it. It stays when viprouted ends, as traffic
//! does, and goes with the node's last VIP and the last other node.
//!
//! ```text
//! table ip viproute {
//!     counter source_denied { packets 0 bytes 0 }
//!     counter tunnel_denied { packets 0 bytes 0 }
//!     set vips { type ipv4_addr; size 16384; elements = { 10.118.0.7, … } }
//!     set nodes { type ipv4_addr; size 64; elements = { 192.0.2.1 } }
//!     set pods { type ifname; size 4096; elements = { "cni0", … } }
//!     set members { type ipv4_addr; size 4096; elements = { 192.0.2.2, … } }
//!     chain replies {
//!         iifname @pods counter name "source_denied" drop
//!         ip daddr @nodes accept
//!         notrack accept
//!     }
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip saddr @vips jump replies
//!         ip daddr @vips notrack accept
//!         udp dport 8118 ip saddr @members notrack accept
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         udp dport 8118 ip daddr @members notrack accept
//!     }
//!     chain tunnel {
//!         type filter hook input priority raw; policy accept;
//!         udp dport 8118 ip saddr != @members counter name "tunnel_denied" drop
//!     }
//! }
//! ```
//!
//! That of IPv6 is `table ip6 viproute`, with `ipv6_addr` in its sets and `ip6` in its rules. It is there while VIPs have addresses of IPv6, or
//! other nodes' ends of the tunnel: what concerns the tunnel is in the table of the family of its own packets.
//!
//! The rules that say `notrack`, and the one before them, are there once anything of the node's is tracked, and stay then: a node that
//! tracks nothing has nothing to be kept out of, and each packet would pay for them. VIP traffic shows it too, so none is tracked
//! for longer than it takes to see. What concerns the tunnel is there while the node knows others. Who isn't one of them is turned away
//! where the node's own packets pass, so that what is forwarded pays nothing for it.
//!
//! A VIP as the source of what comes from a pod's own interface is a raw socket's doing: a replica's answers leave by its
//! pair. Only what has a VIP as its source is asked for its device, so that all other packets pay nothing for it.
//!
//! The node's own connections to VIPs are tracked as ever: a stock firewall (ufw's, firewalld's) lets in what belongs to a
//! connection that it knows, and drops an answer that it can't tell.
//!
//! Written in nft's own language and read as its JSON, by the program `nft`. A transaction is all or nothing. Changes of
//! the sets alone leave the chains as they are, so that no packet passes between an old chain and a new one.
//!
//! `accept` ends this chain alone, other tables' go on: what has matched is not looked up a second time. A set that tells
//! its size, here what the flow owner has room for, is the kernel's fixed hash table, faster than the one that grows
//! (`net/netfilter/nft_set_hash.c`).

mod nft;
mod rules;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::dataplane::ids::TUNNEL_PORT;
use crate::model::Family;
use crate::net::conntrack;
use crate::net::nftables::Generation;

use nft::{read, write};
use rules::difference;

/// `raw`: before connection tracking (-200) sees a packet.
const PRIORITY: i32 = -300;
/// More addresses than a node has as sources of its VIPs' routes, or calls from by IPv6.
pub const NODES: u32 = 64;
/// As many other nodes as the programs have room for (`tunnel.h`).
const MEMBERS: u32 = 4096;
/// The table's name.
pub const TABLE: &str = "viproute";
/// Its counter of what was dropped for its source.
pub const DENIED: &str = "source_denied";
/// Its counter of what was dropped because it came to the tunnel from no node that is known.
pub const STRANGERS: &str = "tunnel_denied";

/// How often a transaction is made anew when another program's came in between.
const TRIES: u32 = 4;
/// `nft` that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the table can't be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error("this kernel has no nftables for viprouted")]
    Kernel(#[source] crate::net::Error),
    /// There is no such program.
    #[error("the program nft is not to be found in PATH (Debian's package nftables has it)")]
    NoProgram,
    /// The program could not be run.
    #[error("run nft")]
    Run(#[source] io::Error),
    /// The program does not come to an end.
    #[error("nft was killed: it had not ended after {} s", LIMIT.as_secs())]
    Hung,
    /// The program refused.
    #[error("nft: {0}")]
    Refused(String),
    /// The program says what can't be understood.
    #[error("nft's list of the table is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// Changed by another program as often as it was repaired.
    #[error("the table is changed by another program again and again")]
    Contested,
}

/// The table of this network namespace, and whether it was changed since it was last reconciled.
#[derive(Debug, Default)]
pub struct Table {
    family: Family,
    /// While it can be read.
    generation: Option<Generation>,
    /// The table was right at this generation of the kernel's rules; none: it has to be read.
    settled: Option<u32>,
    /// Packets are tracked on this node, or were.
    tracked: bool,
    /// Whether they are, as the last reconciliation has asked; none: it hasn't.
    asked: Option<bool>,
}

/// Which rules a table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Those that keep packets from being tracked.
    tracked: bool,
    /// Those of the tunnel to other nodes.
    tunnel: bool,
}

impl Form {
    /// It lacks nothing but rules that the other has.
    fn is_within(self, other: Self) -> bool {
        self.tracked <= other.tracked && self.tunnel <= other.tunnel
    }
}

/// What was done to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it is right.
    Right,
    /// It is made.
    Made,
    /// Its sets follow the VIPs and nodes.
    Followed,
    /// Another program had removed it.
    WasGone,
    /// Another program had changed it.
    WasChanged,
    /// It is removed: there are neither VIPs nor other nodes.
    Removed,
}

impl Table {
    /// That of a family, of which nothing is known.
    pub fn of(family: Family) -> Self {
        Self { family, ..Self::default() }
    }

    /// It has the rules that keep packets from being tracked, as far as was seen last.
    pub fn keeps_out(&self) -> bool {
        self.tracked
    }

    /// Whether packets are tracked. The kernel is asked unless the reconciliation before has done so, which
    /// [`Table::forget`] ends.
    pub fn is_tracking(&self) -> bool {
        self.asked.unwrap_or_else(conntrack::is_tracking)
    }

    /// What was asked is of another moment.
    pub fn forget(&mut self) {
        self.asked = None;
    }

    /// Other elements than before are wanted.
    pub fn want_changed(&mut self) {
        self.settled = None;
    }

    /// Makes the table have exactly these elements; where nothing is wanted there is none. While no rules have changed since, it asks
    /// the kernel for their generation, and whether anything is tracked, and nothing else.
    pub fn reconcile(&mut self, want: &Want) -> Result<Outcome, Error> {
        let generation = self.generation.take().map_or_else(Generation::open, Ok).map_err(Error::Kernel)?;
        let outcome = self.reconcile_by(&generation, want)?;
        self.generation = Some(generation);
        Ok(outcome)
    }

    fn reconcile_by(&mut self, generation: &Generation, want: &Want) -> Result<Outcome, Error> {
        if !self.tracked && !want.is_nothing() {
            self.tracked = *self.asked.insert(conntrack::is_tracking());
            self.settled = self.settled.filter(|_| !self.tracked);
        }
        if self.settled.is_some_and(|settled| generation.get().is_ok_and(|now| now == settled)) {
            return Ok(Outcome::Right);
        }
        let was_right = self.settled.take().is_some();
        let mut outcome = Outcome::Right;
        for _ in 0..TRIES {
            // Before the table is read: after a change in between it is read again.
            let now = generation.get().map_err(Error::Kernel)?;
            let have = read(self.family)?;
            // They may be there from before, and be all that keeps packets from being tracked.
            self.tracked |= matches!(have, Have::Table { form: Form { tracked: true, .. }, .. });
            let Some(transaction) = difference(self.family, &have, want, self.tracked) else {
                self.settled = Some(now);
                return Ok(outcome);
            };
            match write(&transaction) {
                Ok(()) => outcome = outcome_of(&have, want, was_right),
                // Perhaps it was made for a table that another program has changed since.
                Err(Error::Refused(_)) if generation.get().is_ok_and(|later| later != now) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Contested)
    }
}

/// `was_right`: it was, for the same VIPs, so that another program has changed it.
fn outcome_of(have: &Have, want: &Want, was_right: bool) -> Outcome {
    match have {
        Have::Nothing if was_right => Outcome::WasGone,
        _ if was_right => Outcome::WasChanged,
        _ if want.is_nothing() => Outcome::Removed,
        Have::Table { .. } => Outcome::Followed,
        Have::Nothing | Have::Wrong => Outcome::Made,
    }
}

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// No table.
    Nothing,
    /// A table that isn't as we make it.
    Wrong,
    /// The table.
    Table {
        /// What its sets have.
        elements: Want,
        /// Which rules it has.
        form: Form,
    },
}

/// The elements of a table's sets, all of its family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// The VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// The addresses that the node's own connections to VIPs come from.
    pub nodes: BTreeSet<IpAddr>,
    /// The devices by which packets of the replicas' own interfaces come in.
    pub pods: BTreeSet<String>,
    /// The other nodes' ends of the tunnel.
    pub members: BTreeSet<IpAddr>,
}

impl Want {
    /// There is to be no table.
    pub fn is_nothing(&self) -> bool {
        self.vips.is_empty() && self.members.is_empty()
    }
}

#[cfg(test)]
mod tests;
