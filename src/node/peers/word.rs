//! What nodes tell each other, as values of the gossip: about themselves by the key `node`, about each VIP by `vip/<ns>/<name>`.
//! What can't be read is left out, whoever says it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::model::address::is_unicast;
use crate::model::{Family, Mac, Served, VipKey};
use crate::node::config::is_node_name;

/// The key of a node's word about itself.
pub const NODE: &str = "node";
const VIP: &str = "vip/";
/// VIPs of one node that are believed.
pub const MAX_VIPS: usize = 4096;
/// Replicas of one VIP on one node; more count as so many.
const MAX_REPLICAS: u32 = 1 << 16;

/// What a node says of itself: `name tunnel phase cluster version`, then ` mac6=02:00:00:00:00:01` where it answers for IPv6 addresses on a link of
/// their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its name.
    pub name: String,
    /// Where its end of the tunnel is.
    pub tunnel: IpAddr,
    /// Whether it stays.
    pub phase: Phase,
    /// What sets its VIPs apart at a DHCP server, in short; `-`: it has no such name.
    pub cluster: String,
    /// Its viprouted's version.
    pub version: String,
    /// Its Ethernet address on that link.
    pub mac6: Option<Mac>,
}

/// Whether a node stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does.
    Up,
    /// Its viprouted ends, and is expected back.
    Restarting,
    /// It leaves: its replicas get no new connections.
    Left,
}

impl Phase {
    /// As words have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Restarting => "restarting",
            Self::Left => "left",
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tunnel, phase, cluster, version, mac6 } = self;
        write!(f, "{name} {tunnel} {} {cluster} {version}", phase.name())?;
        mac6.map_or(Ok(()), |mac| write!(f, " {MAC6}{mac}"))
    }
}

impl FromStr for Word {
    type Err = ();

    /// What a later version adds behind it is ignored. A phase that only a later version knows says nothing about replicas: how many
    /// are ready is said of each VIP.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split(' ');
        let mut field = |fine: fn(&str) -> bool| fields.next().filter(|field| fine(field)).ok_or(());
        let name = field(is_node_name)?.to_owned();
        let tunnel: IpAddr = field(|_| true)?.parse().map_err(drop)?;
        let phase = field(is_short)?;
        let known = [Phase::Up, Phase::Restarting, Phase::Left].into_iter().find(|known| known.name() == phase);
        let (cluster, version) = (field(is_short)?.to_owned(), field(is_short)?.to_owned());
        let phase = known.unwrap_or(Phase::Up);
        let mac6 = fields.find_map(|field| field.strip_prefix(MAC6)?.parse().ok());
        if is_unicast(tunnel) { Ok(Self { name, tunnel, phase, cluster, version, mac6 }) } else { Err(()) }
    }
}

/// Fit for a line of a table.
fn is_short(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What a node says of a VIP: `address ready replicas`, then ` sticky` where UDP flows stay, ` ports=80/tcp=2` where ready replicas
/// list what they serve, ` ipv6=fd00:118::1` where it has such an address too, and ` only=ipv6` where all replicas ask for that family alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The VIP's address there.
    pub address: IpAddr,
    /// The one of IPv6 that it has beside.
    pub address6: Option<Ipv6Addr>,
    /// The weights of its ready replicas together.
    pub ready: u32,
    /// How many replicas it has, ready or not.
    pub replicas: u32,
    /// A replica of it says that UDP flows stay.
    pub udp_sticky: bool,
    /// How much of `ready` serves which port; `None`: all of it every port.
    pub served: Option<Served>,
    /// The family that all of its replicas ask for and no other.
    pub family: Option<Family>,
}

/// What the word on an Ethernet address begins with.
const MAC6: &str = "mac6=";
/// The word for flows that stay.
const STICKY: &str = "sticky";
/// What the word on ports begins with.
const PORTS: &str = "ports=";
/// And the one on the other address.
const IPV6: &str = "ipv6=";
/// And the one on the family that is asked for alone.
const ONLY: &str = "only=";

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.address, self.ready, self.replicas)?;
        if self.udp_sticky {
            write!(f, " {STICKY}")?;
        }
        if let Some(served) = &self.served {
            write!(f, " {PORTS}{served}")?;
        }
        if let Some(address) = self.address6 {
            write!(f, " {IPV6}{address}")?;
        }
        self.family.map_or(Ok(()), |family| write!(f, " {ONLY}{family}"))
    }
}

impl FromStr for Share {
    type Err = ();

    /// What a later version adds behind it is ignored.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.split(' ');
        let mut field = || fields.next().ok_or(());
        let address: IpAddr = field()?.parse().map_err(drop)?;
        let mut number = || field()?.parse().map(|number: u32| number.min(MAX_REPLICAS)).map_err(drop);
        let (ready, replicas) = (number()?, number()?);
        let fine = address.is_ipv4() && is_unicast(address) && replicas > 0;
        let (mut udp_sticky, mut served, mut address6, mut family) = (false, None, None, None);
        for field in fields {
            udp_sticky |= field == STICKY;
            served = served.or_else(|| field.strip_prefix(PORTS)?.parse().ok());
            address6 = address6.or_else(|| field.strip_prefix(IPV6)?.parse().ok());
            family = family.or_else(|| field.strip_prefix(ONLY)?.parse().ok());
        }
        let address6 = address6.filter(|address| is_unicast(IpAddr::V6(*address)));
        if fine { Ok(Self { address, address6, ready, replicas, udp_sticky, served, family }) } else { Err(()) }
    }
}

/// The key of a VIP's value.
pub fn key_of(vip: &VipKey) -> String {
    format!("{VIP}{vip}")
}

/// A node's VIPs as far as they can be read, and how many can't, or are beyond [`MAX_VIPS`].
pub fn vips<'a>(
    values: impl Iterator<Item = (&'a str, &'a str)>,
) -> (std::collections::BTreeMap<VipKey, Share>, usize) {
    let (mut vips, mut refused) = (std::collections::BTreeMap::new(), 0);
    for (key, value) in values {
        let Some(name) = key.strip_prefix(VIP) else { continue };
        match (name.parse(), value.parse()) {
            (Ok(vip), Ok(share)) if vips.len() < MAX_VIPS => drop(vips.insert(vip, share)),
            _ => refused += 1,
        }
    }
    (vips, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_read_as_they_were_written() {
        let word: Word = "n2.rack1 192.0.2.2 up 0a1b2c3d 0.1.0 later fields".parse().unwrap();
        assert_eq!(word.to_string(), "n2.rack1 192.0.2.2 up 0a1b2c3d 0.1.0");
        for bad in [
            "",
            "n2",
            "n2 192.0.2.2 up -",
            "N2 192.0.2.2 up - 1",
            "n2 127.0.0.1 up - 1",
            "n2 224.0.0.1 up - 1",
            "n2 fe80::1 up - 1",
            "n2 ::ffff:192.0.2.2 up - 1",
            "n2 192.0.2.2 up \u{1b}[31m 1",
            "n\n2 192.0.2.2 up - 1",
        ] {
            assert!(bad.parse::<Word>().is_err(), "{bad:?}");
        }
        let of_ipv6: Word = "n2 2001:db8::2 up - 0.3.0".parse().unwrap();
        assert_eq!(of_ipv6.to_string(), "n2 2001:db8::2 up - 0.3.0");
        let share: Share = "10.118.0.7 2 3".parse().unwrap();
        assert_eq!(share.to_string(), "10.118.0.7 2 3");
        let sticky: Share = "10.118.0.7 2 3 sticky later".parse().unwrap();
        assert_eq!((sticky.udp_sticky, sticky.to_string().as_str()), (true, "10.118.0.7 2 3 sticky"));
        let ports: Share = "10.118.0.7 3 3 ports=80/tcp=2,443/tcp=1 later".parse().unwrap();
        assert_eq!(ports.to_string(), "10.118.0.7 3 3 ports=80/tcp=2,443/tcp=1");
        let both: Share = "10.118.0.7 3 3 ports=80/tcp=2 ipv6=fd00:118::7 later".parse().unwrap();
        assert_eq!(both.to_string(), "10.118.0.7 3 3 ports=80/tcp=2 ipv6=fd00:118::7");
        let only: Share = "10.118.0.7 3 3 ipv6=fd00:118::7 only=ipv6 later".parse().unwrap();
        assert_eq!(
            (only.family, only.to_string().as_str()),
            (Some(Family::V6), "10.118.0.7 3 3 ipv6=fd00:118::7 only=ipv6")
        );
        for none in ["ipv6=::1", "only=ipv7", "only=", "ipv6=fe80::1", "ipv6=10.118.0.7", "ipv6=", "ipv6=ff02::1"] {
            let share: Share = format!("10.118.0.7 3 3 {none}").parse().unwrap();
            assert_eq!(share.to_string(), "10.118.0.7 3 3", "{none}");
        }
        assert_eq!("10.118.0.7 3 3 ports=80/sctp=2".parse::<Share>().unwrap().served, None, "a later version's");
        for bad in
            ["", "10.118.0.7", "10.118.0.7 1", "10.118.0.7 1 0", "127.0.0.1 1 1", "2001:db8::1 1 1", "10.118.0.7 -1 1"]
        {
            assert!(bad.parse::<Share>().is_err(), "{bad:?}");
        }
        assert_eq!("10.118.0.7 4000000000 4000000000".parse::<Share>().unwrap().ready, MAX_REPLICAS);
    }

    /// Nodes are upgraded one after the other: none is lost to those that are older.
    #[test]
    fn what_a_later_version_says_is_read_as_far_as_it_is_known() {
        let word: Word = "n2 192.0.2.2 resting - 9.0.0+g0123456789ab zone=a".parse().unwrap();
        assert_eq!((word.phase, word.version.as_str()), (Phase::Up, "9.0.0+g0123456789ab"));
        let word: Word = "n2 192.0.2.2 up - 9.0.0 zone=a mac6=02:00:00:00:00:07".parse().unwrap();
        assert_eq!(word.mac6, Some(Mac([2, 0, 0, 0, 0, 7])));
        assert_eq!(word.to_string(), "n2 192.0.2.2 up - 9.0.0 mac6=02:00:00:00:00:07");
        let values = [
            ("node", "n2 192.0.2.2 up - 9"),
            ("zone", "a"),
            ("vip2/shop/web", "{}"),
            ("vip/shop/web", "10.118.0.7 2 3 weight=7 tcp"),
            ("vip/shop/six", "2001:db8::7 1 1"),
        ];
        let (vips, refused) = vips(values.into_iter());
        assert_eq!(refused, 1, "an address of IPv6");
        assert_eq!(
            vips.into_iter().collect::<Vec<_>>(),
            [("shop/web".parse().unwrap(), "10.118.0.7 2 3".parse().unwrap())]
        );
    }

    #[test]
    fn vips_are_counted() {
        let names: Vec<String> = (0..5000).map(|n| format!("vip/shop/web{n}")).collect();
        let values = names.iter().map(|name| (name.as_str(), "10.118.0.7 1 1"));
        let (vips, refused) = vips(values.chain([("node", "x"), ("vip/a_b/c", "10.118.0.7 1 1"), ("vip/a/c", "bad")]));
        assert_eq!((vips.len(), refused), (MAX_VIPS, 5000 - MAX_VIPS + 2));
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read_or_refused(text in "\\PC{0,60}") {
            if let Ok(word) = text.parse::<Word>() {
                prop_assert_eq!(word.to_string().parse(), Ok(word));
            }
            if let Ok(share) = text.parse::<Share>() {
                prop_assert_eq!(share.to_string().parse(), Ok(share));
            }
        }
    }
}
