//! An address lent to a VIP, and what a source of addresses reports about it.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::{Family, VipKey};

/// An address lent to a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// The DHCP server that granted it; none from a pool or a pin.
    pub server: Option<IpAddr>,
    /// The link it was last granted on; none: not by a link, or unknown.
    pub link: Option<String>,
    /// When.
    pub granted: SystemTime,
    /// When it is to be renewed; none: never.
    pub renew: Option<SystemTime>,
    /// When renewing becomes urgent; none: never.
    pub rebind: Option<SystemTime>,
    /// When it must no longer be used; none: never.
    pub expires: Option<SystemTime>,
}

impl Lease {
    /// A lease for ever.
    pub fn permanent(address: IpAddr, granted: SystemTime) -> Self {
        Self { address, server: None, link: None, granted, renew: None, rebind: None, expires: None }
    }

    /// A lease of which only the address is known (its file is lost, the VIP is in service): taken to run for a while
    /// yet, so that it is confirmed or refused by the server before anything is done to the VIP.
    pub fn presumed(address: IpAddr, now: SystemTime) -> Self {
        let after = |seconds| Some(now + Duration::from_secs(seconds));
        Self { renew: after(0), rebind: after(300), expires: after(600), ..Self::permanent(address, now) }
    }

    /// Whether it may be used at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// Seconds since 1970.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time of so many seconds since 1970; none if the clock can't show it.
pub fn from_unix(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// A report of a source of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Another address than before: to be checked before use.
    Bound(Lease),
    /// The address in use, for longer.
    Renewed(Lease),
    /// The address is gone; another is being asked for.
    Lost {
        /// Why, in a few words.
        reason: String,
    },
    /// A DHCP server other than the lease's refuses the address, which changes nothing.
    Refused {
        /// That server.
        server: IpAddr,
        /// What it says.
        why: String,
    },
    /// No address yet, or none for longer; the source tries again by itself.
    Trouble {
        /// One sentence.
        why: String,
        /// Whether it looks as if all addresses were taken.
        exhausted: bool,
    },
    /// No address is available; the source does not try again by itself.
    Failed {
        /// One sentence.
        why: String,
        /// Whether all addresses are taken.
        exhausted: bool,
    },
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, lease) = match self {
            Self::Bound(lease) => ("bound", lease),
            Self::Renewed(lease) => ("renewed", lease),
            Self::Lost { reason } => return write!(f, "lost: {reason}"),
            Self::Refused { server, why } => {
                return write!(f, "refused by {server}, which has not granted it: {why:?}");
            }
            Self::Trouble { why, .. } => return write!(f, "nothing yet: {why}"),
            Self::Failed { why, .. } => return write!(f, "failed: {why}"),
        };
        write!(f, "{what}: {}", lease.address)?;
        match lease.expires.and_then(|expires| expires.duration_since(lease.granted).ok()) {
            Some(time) => write!(f, " for {} s", time.as_secs()),
            None => f.write_str(" for ever"),
        }
    }
}

/// News, with its VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of the VIP's address of which family.
    pub family: Family,
    /// The VIP.
    pub vip: VipKey,
    /// The news.
    pub news: News,
    /// The link's routers and name servers, as the DHCP server has them: no addresses for VIPs.
    pub infrastructure: Vec<IpAddr>,
    /// The lease is another node's word, which its server granted it to.
    pub told: bool,
}

impl Report {
    /// Without anything beside the news.
    pub fn new(family: Family, vip: VipKey, news: News) -> Self {
        Self { family, vip, news, infrastructure: Vec::new(), told: false }
    }
}
