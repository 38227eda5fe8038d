//! The way to VIPs: the kernel is asked what it would do with a packet to each, made here and come in by the uplink. Rules
//! before the one of table main, and an address of the node's own, go before a VIP's route.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::dataplane::{self, ids};
use crate::model::Family;
use crate::net::route::{self, Answer, MAIN, Packet};
use crate::net::{NodeNet, address, link, rule, sysctl};
use crate::registry::{Endpoint, State, VipRecord};

/// What goes before a VIP's route. One of it may be in the way of many VIPs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The VIP is an address of that device.
    Device(String),
    /// A rule before the one of table main.
    Rule {
        /// Its priority.
        priority: u32,
        /// The table it leads to.
        table: u32,
    },
    /// The kernel refuses it.
    Refused(&'static str),
    /// A route of table main by that device.
    Route(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "an address of the node's own, on {device}"),
            Self::Rule { priority, table } => {
                write!(f, "rule {priority} takes their packets to table {table} before table main is asked")
            }
            Self::Refused(why) => write!(f, "a rule of the node's refuses their packets ({why})"),
            Self::Route(device) => write!(f, "another route of table main sends their packets out by {device}"),
        }
    }
}

/// Causes, each with the VIPs it is in the way of.
#[derive(Debug, Default)]
pub struct Causes(pub BTreeMap<Cause, Vec<IpAddr>>);

impl Causes {
    /// Adds what is in the way of that VIP; whether anything is. Where it has no replica, or no address, there is no route.
    pub fn add(&mut self, query: &RouteQuery<'_>, vip: &VipRecord, served: bool) -> dataplane::Result<bool> {
        if vip.withdrawn || !served {
            return Ok(false);
        }
        let mut any = false;
        for address in vip.served_addresses() {
            for cause in query.causes(address)? {
                any = true;
                let vips = self.0.entry(cause).or_default();
                vips.push(address);
                vips.dedup();
            }
        }
        Ok(any)
    }
}

/// A few VIPs by their addresses, and how many more.
pub fn shown(vips: &[IpAddr]) -> String {
    let first = vips.iter().take(3).map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    if vips.len() > 3 { format!("{first} and {} more VIPs", vips.len() - 3) } else { first }
}

/// Whether a replica is ready.
pub fn is_served<'a>(mut endpoints: impl Iterator<Item = &'a Endpoint>) -> bool {
    endpoints.any(|endpoint| endpoint.state == State::Ready)
}

/// What the kernel is asked with.
#[derive(Debug)]
pub struct RouteQuery<'a> {
    net: &'a NodeNet,
    /// Where requests come in, and from whom; none where the node forwards nothing, which doctor reports.
    uplink: Option<(u32, IpAddr)>,
}

impl<'a> RouteQuery<'a> {
    /// With the uplink as it is now.
    pub fn new(net: &'a NodeNet) -> dataplane::Result<Self> {
        let forwards = sysctl::get("net.ipv4.ip_forward").is_ok_and(|value| value != 0);
        let way = route::default_way(net)?.filter(|_| forwards);
        let uplink = way.and_then(|way| Some((way.hop.index?, way.hop.gateway?)));
        let forwarding = match uplink {
            Some((index, _)) => link::by_index(net, index)?.is_some_and(|link| link.settings.forwarding != 0),
            None => false,
        };
        Ok(Self { net, uplink: uplink.filter(|_| forwarding) })
    }

    /// What goes before that VIP's route, for packets made here and for those that come in.
    fn causes(&self, vip: IpAddr) -> dataplane::Result<Vec<Cause>> {
        let to = Packet::to(vip);
        let uplink = self.uplink.filter(|(_, from)| Family::of(*from) == Family::of(vip));
        let from_outside = uplink.map(|(index, from)| Packet { input: Some(index), from: Some(from), ..to });
        let causes = [Some(to), from_outside].into_iter().flatten().map(|packet| self.cause(packet));
        causes.filter_map(Result::transpose).collect()
    }

    fn cause(&self, packet: Packet) -> dataplane::Result<Option<Cause>> {
        let name = |index| Ok::<_, dataplane::Error>(link::by_index(self.net, index)?.map(|link| link.name));
        Ok(match route::ask(self.net, packet)? {
            Answer::Local => {
                let addresses = address::list(self.net, Family::of(packet.to), None)?;
                let found = addresses.iter().find(|found| found.address == packet.to);
                let device = found.map(|found| name(found.index)).transpose()?.flatten();
                Some(Cause::Device(device.unwrap_or_else(|| "lo".to_owned())))
            }
            Answer::Out { index, table } => match name(index)? {
                Some(device) if ids::is_host_veth(&device) => None,
                // To another node's replicas: nothing but VIPs' groups leads there.
                Some(device) if table == MAIN && device == ids::TUNNEL_DEVICE => None,
                _ if table != MAIN => {
                    let rules = rule::list_all(self.net)?;
                    let rule = rules.iter().find(|rule| rule.table == Some(table));
                    rule.map(|rule| Cause::Rule { priority: rule.priority, table })
                }
                device => Some(Cause::Route(device.unwrap_or_else(|| format!("link {index}")))),
            },
            // The rp_filter of an uplink is another finding's.
            Answer::Refused(nix::errno::Errno::EXDEV) => None,
            // Its own route is missing, or a rule refuses it; the first is another finding's.
            Answer::Refused(errno) => {
                let refuses = rule::list_all(self.net)?.into_iter().any(|rule| rule.table.is_none());
                refuses.then(|| Cause::Refused(errno.desc()))
            }
        })
    }
}
