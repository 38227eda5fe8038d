//! What one node asks another beside the gossip, and the answer: a line of text each. Clocks of nodes are not compared: an answer has
//! durations as of the moment it is given, and who has asked counts them from the moment it asked.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::lease::decider::message::Message;
use crate::lease::grant::Lease;
use crate::model::Family;
use crate::model::address::is_unicast;

use super::holding::LeaseKey;

/// No lease is longer, unless it is for ever (RFC 2131 section 3.3: 32 bits of seconds).
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64 - 1);

/// A note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// `lease? NUMBER VIP`, `lease6? NUMBER VIP`: what the receiver was granted.
    WhichLease {
        /// The question's, which the answer repeats.
        number: u64,
        /// Of which lease.
        key: LeaseKey,
    },
    /// `lease NUMBER VIP GRANT ADDRESS SERVER AGE RENEW REBIND LONG`, `-` for what there isn't, durations in milliseconds; of IPv6 `lease6 …`.
    Lease {
        /// The question's.
        number: u64,
        /// Which lease.
        key: LeaseKey,
        /// What was granted.
        told: Told,
    },
    /// About an address of the pool.
    Pool(Message),
}

/// A lease as one node tells another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The number of the grant.
    pub grant: u64,
    /// The address.
    pub address: IpAddr,
    /// Who granted it.
    pub server: Option<IpAddr>,
    /// For how long it has been granted.
    pub age: Duration,
    /// How long after the grant it is renewed, then urgently, and ends; `None`: never.
    pub term: Option<[Duration; 3]>,
}

impl Told {
    /// A lease that was granted here, as of `now`; `None`: no server can have, or it is over.
    pub fn of(lease: &Lease, grant: u64, now: SystemTime) -> Option<Self> {
        let after = |at: Option<SystemTime>| at?.duration_since(lease.granted).ok();
        let term = match lease.expires {
            None => None,
            Some(_) => Some([after(lease.renew)?, after(lease.rebind)?, after(lease.expires)?]),
        };
        let age = now.duration_since(lease.granted).unwrap_or_default();
        let told = Self { grant, address: lease.address, server: lease.server, age, term };
        told.is_possible().then_some(told)
    }

    /// The lease by this node's clock, which said `asked` when the question was sent: it ends rather too soon than too late.
    pub fn lease(&self, asked: SystemTime) -> Option<Lease> {
        let granted = asked.checked_sub(self.age)?;
        let after = |duration: Duration| granted.checked_add(duration);
        let [renew, rebind, expires] = match self.term {
            None => [None; 3],
            Some(term) => [Some(after(term[0])?), Some(after(term[1])?), Some(after(term[2])?)],
        };
        let Self { address, server, .. } = *self;
        Some(Lease { address, server, link: None, granted, renew, rebind, expires })
    }

    /// Whether a server could have granted it, and it isn't over.
    fn is_possible(&self) -> bool {
        let is_server = |server: IpAddr| match server {
            // DHCPv6's answer on a link from their address there (RFC 8415 section 7.1).
            IpAddr::V6(server) if server.is_unicast_link_local() => self.address.is_ipv6(),
            server => is_unicast(server) && server.is_ipv6() == self.address.is_ipv6(),
        };
        let in_order = self.term.is_none_or(|[renew, rebind, long]| {
            Duration::ZERO < renew && renew < rebind && rebind < long && long <= LONGEST && self.age < long
        });
        is_unicast(self.address) && self.server.is_none_or(is_server) && in_order && self.age <= LONGEST
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(message) => message.fmt(f),
            Self::WhichLease { number, key } => write!(f, "{}? {number} {}", word(key.family), key.vip),
            Self::Lease { number, key, told } => {
                let Told { grant, address, server, age, term } = told;
                let server = server.map_or_else(|| "-".to_owned(), |server| server.to_string());
                let (word, vip, age) = (word(key.family), &key.vip, age.as_millis());
                write!(f, "{word} {number} {vip} {grant} {address} {server} {age}")?;
                match term {
                    Some(term) => term.iter().try_for_each(|after| write!(f, " {}", after.as_millis())),
                    None => f.write_str(" - - -"),
                }
            }
        }
    }
}

impl FromStr for Note {
    type Err = ();

    /// What a later version adds behind it is ignored.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(message) = text.parse() {
            return Ok(Self::Pool(message));
        }
        let mut fields = text.split(' ');
        let mut field = || fields.next().ok_or(());
        let (what, number) = (field()?, field()?.parse().map_err(drop)?);
        let vip = field()?.parse().map_err(drop)?;
        let (said, is_question) = what.strip_suffix('?').map_or((what, false), |said| (said, true));
        let family = Family::ALL.into_iter().find(|family| word(*family) == said).ok_or(())?;
        let key = LeaseKey { vip, family };
        if is_question {
            return Ok(Self::WhichLease { number, key });
        }
        let told = told(field)?;
        if Family::of(told.address) == family { Ok(Self::Lease { number, key, told }) } else { Err(()) }
    }
}

/// `GRANT ADDRESS SERVER AGE RENEW REBIND LONG`
fn told<'a>(mut field: impl FnMut() -> Result<&'a str, ()>) -> Result<Told, ()> {
    let (grant, address) = (field()?.parse().map_err(drop)?, field()?.parse().map_err(drop)?);
    let server = optional(field()?, |text| text.parse().ok())?;
    let age = millis(field()?).ok_or(())?;
    let term = [optional(field()?, millis)?, optional(field()?, millis)?, optional(field()?, millis)?];
    let term = match term {
        [Some(renew), Some(rebind), Some(long)] => Some([renew, rebind, long]),
        [None, None, None] => None,
        _ => return Err(()),
    };
    let told = Told { grant, address, server, age, term };
    if told.is_possible() { Ok(told) } else { Err(()) }
}

/// What a note about a lease of the family begins with.
const fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "lease",
        Family::V6 => "lease6",
    }
}

fn optional<T>(text: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, ()> {
    if text == "-" { Ok(None) } else { read(text).map(Some).ok_or(()) }
}

fn millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn lease(granted: u64) -> Lease {
        let after = |seconds| Some(at(granted + seconds));
        let server = Some([192, 0, 2, 254].into());
        let address = [192, 0, 2, 100].into();
        Lease {
            server,
            renew: after(300),
            rebind: after(525),
            expires: after(600),
            ..Lease::permanent(address, at(granted))
        }
    }

    #[test]
    fn a_lease_is_told_by_durations_and_counted_by_the_askers_clock() {
        let told = Told::of(&lease(1000), 7, at(1100)).unwrap();
        let key = |family| LeaseKey { vip: "shop/web".parse().unwrap(), family };
        let note = Note::Lease { number: 3, key: key(Family::V4), told };
        let text = "lease 3 shop/web 7 192.0.2.100 192.0.2.254 100000 300000 525000 600000";
        assert_eq!(note.to_string(), text);
        assert_eq!(format!("{text} later").parse(), Ok(note));
        // The asker's clock is 50,000 seconds ahead.
        assert_eq!(told.lease(at(51_100)).unwrap(), lease(51_000));
        assert_eq!(Told::of(&lease(1000), 7, at(1600)), None, "it is over");
        let for_ever = Lease::permanent([192, 0, 2, 100].into(), at(1000));
        let told = Told::of(&for_ever, 8, at(1100)).unwrap();
        assert_eq!(told.lease(at(2100)).unwrap(), Lease { granted: at(2000), ..for_ever });
        let note = Note::Lease { number: 3, key: key(Family::V4), told };
        assert_eq!(note.to_string().parse(), Ok(note));
        // Of IPv6, by a server of the link.
        let [address, server] = ["2001:db8::100", "fe80::1"].map(|text| text.parse().unwrap());
        let told = Told::of(&Lease { address, server: Some(server), ..lease(1000) }, 7, at(1100)).unwrap();
        let note = Note::Lease { number: 3, key: key(Family::V6), told };
        let text = "lease6 3 shop/web 7 2001:db8::100 fe80::1 100000 300000 525000 600000";
        assert_eq!((note.to_string(), text.parse()), (text.to_owned(), Ok(note)));
        let question = Note::WhichLease { number: 3, key: key(Family::V6) };
        assert_eq!((question.to_string(), "lease6? 3 shop/web".parse()), ("lease6? 3 shop/web".into(), Ok(question)));
    }

    #[test]
    fn what_no_server_can_have_granted_is_refused() {
        let lease = "lease 3 shop/web 7";
        for bad in [
            "lease? 3",
            "lease? x shop/web",
            "lease? 3 shop",
            "lease! 3 shop/web",
            &format!("{lease} 127.0.0.1 - 0 300 525 600"),
            &format!("{lease} 192.0.2.100 224.0.0.1 0 300 525 600"),
            &format!("{lease} 192.0.2.100 fe80::1 0 300 525 600"),
            &format!("{lease} 2001:db8::100 fe80::1 0 300 525 600"),
            "lease6 3 shop/web 7 192.0.2.100 - 0 300 525 600",
            "lease6 3 shop/web 7 fe80::100 - 0 300 525 600",
            "lease6 3 shop/web 7 2001:db8::100 192.0.2.254 0 300 525 600",
            "lease7 3 shop/web 7 192.0.2.100 - 0 300 525 600",
            &format!("{lease} 192.0.2.100 - 600 300 525 600"),
            &format!("{lease} 192.0.2.100 - 0 525 300 600"),
            &format!("{lease} 192.0.2.100 - 0 0 525 600"),
            &format!("{lease} 192.0.2.100 - 0 300 600 600"),
            &format!("{lease} 192.0.2.100 - 0 300 525 4294967295001"),
            &format!("{lease} 192.0.2.100 - 0 300 525 -"),
            &format!("{lease} 192.0.2.100 - -1 300 525 600"),
        ] {
            assert!(bad.parse::<Note>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read_or_refused(text in "(lease6?\\??( [-0-9a-z.:/]{1,12}){0,10})|\\PC{0,60}") {
            if let Ok(note) = text.parse::<Note>() {
                prop_assert_eq!(note.to_string().parse(), Ok(note));
            }
        }
    }
}
