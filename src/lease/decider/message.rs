//! What nodes say to each other about the pool's addresses: a line of text each.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::model::VipKey;
use crate::model::address::is_unicast;

/// The longest reason that is believed, in bytes.
const MAX_REASON: usize = 300;

/// A message about a VIP. Its number is the question's, which the answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Of the question.
    pub number: u64,
    /// The VIP.
    pub vip: VipKey,
    /// What is asked or answered.
    pub what: What,
}

/// What is asked or answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// `claim? REMEMBERED UNFIT`: to the node that decides, an address for the VIP: the one it had if that can be, not one that
    /// is in conflict.
    Claim {
        /// The address it had.
        remembered: Option<Ipv4Addr>,
        /// One that it can't have.
        unfit: Option<Ipv4Addr>,
    },
    /// `claim ADDRESS`: that is the VIP's.
    Granted(Ipv4Addr),
    /// `no full WHY` or `no later WHY`: none is.
    Refused {
        /// All addresses are taken.
        exhausted: bool,
        /// One sentence.
        why: String,
    },
    /// `may? ADDRESS`: to every node, whether the VIP may have that address.
    May(Ipv4Addr),
    /// `may ADDRESS`: it may.
    Fine(Ipv4Addr),
    /// `taken ADDRESS VIP`: another VIP has it there.
    Taken(Ipv4Addr, VipKey),
    /// `has?`: to a node that was granted it, whether it still has, or wants, the VIP's address.
    Has,
    /// `has`: it does.
    HasIt,
    /// `hasn't`: it doesn't.
    HasNot,
}

impl What {
    /// A refusal for a reason that may be of any length.
    pub fn not_now(why: &str) -> Self {
        let clean = why.chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut length = 0;
        let fits = |c: &char| {
            length += c.len_utf8();
            length <= MAX_REASON
        };
        Self::Refused { exhausted: false, why: clean.take_while(fits).collect() }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {} {} ", self.number, self.vip)?;
        let or_none = |address: Option<Ipv4Addr>| address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        match &self.what {
            What::Claim { remembered, unfit } => write!(f, "claim? {} {}", or_none(*remembered), or_none(*unfit)),
            What::Granted(address) => write!(f, "claim {address}"),
            What::Refused { exhausted, why } => write!(f, "no {} {why}", if *exhausted { "full" } else { "later" }),
            What::May(address) => write!(f, "may? {address}"),
            What::Fine(address) => write!(f, "may {address}"),
            What::Taken(address, other) => write!(f, "taken {address} {other}"),
            What::Has => f.write_str("has?"),
            What::HasIt => f.write_str("has"),
            What::HasNot => f.write_str("hasn't"),
        }
    }
}

impl FromStr for Message {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.splitn(6, ' ');
        let mut field = || fields.next().ok_or(());
        if field()? != "pool" {
            return Err(());
        }
        let (number, vip) = (field()?.parse().map_err(drop)?, field()?.parse().map_err(drop)?);
        let what = match field()? {
            "claim?" => What::Claim { remembered: or_none(field()?)?, unfit: or_none(field()?)? },
            "claim" => What::Granted(address(field()?)?),
            "no" => {
                let exhausted = match field()? {
                    "full" => true,
                    "later" => false,
                    _ => return Err(()),
                };
                What::Refused { exhausted, why: reason(field()?)? }
            }
            "may?" => What::May(address(field()?)?),
            "may" => What::Fine(address(field()?)?),
            "taken" => What::Taken(address(field()?)?, field()?.parse().map_err(drop)?),
            "has?" => What::Has,
            "has" => What::HasIt,
            "hasn't" => What::HasNot,
            _ => return Err(()),
        };
        Ok(Self { number, vip, what })
    }
}

fn address(text: &str) -> Result<Ipv4Addr, ()> {
    text.parse().ok().filter(|address| is_unicast(IpAddr::V4(*address))).ok_or(())
}

fn or_none(text: &str) -> Result<Option<Ipv4Addr>, ()> {
    if text == "-" { Ok(None) } else { address(text).map(Some) }
}

/// Fit for a log and a terminal.
fn reason(text: &str) -> Result<String, ()> {
    let fine = (1..=MAX_REASON).contains(&text.len()) && !text.chars().any(char::is_control);
    fine.then(|| text.to_owned()).ok_or(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        for what in [
            "claim? - -",
            "claim? 10.118.0.7 10.118.0.8",
            "claim 10.118.0.7",
            "no full no address is free",
            "no later node n2 is silent",
            "may? 10.118.0.7",
            "may 10.118.0.7",
            "taken 10.118.0.7 shop/api",
            "has?",
            "has",
            "hasn't",
        ] {
            let text = format!("pool 7 shop/web {what}");
            assert_eq!(text.parse::<Message>().unwrap().to_string(), text);
        }
        let long = Message { number: 7, vip: "shop/web".parse().unwrap(), what: What::not_now(&"é\n".repeat(300)) };
        assert_eq!(long.to_string().parse(), Ok(long));
        for bad in [
            "",
            "pool",
            "pool 7 shop claim? - -",
            "pool 7 shop/web claim 127.0.0.1",
            "pool 7 shop/web claim? -",
            "pool 7 shop/web no why",
            "pool 7 shop/web no full \u{1b}[31m",
            "pool -1 shop/web has",
            "lease 7 shop/web has",
        ] {
            assert!(bad.parse::<Message>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read_or_refused(text in "pool( [-0-9a-z./?']{1,12}){0,7}|\\PC{0,60}") {
            if let Ok(message) = text.parse::<Message>() {
                prop_assert_eq!(message.to_string().parse(), Ok(message));
            }
        }
    }
}
