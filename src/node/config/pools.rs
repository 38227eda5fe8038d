//! `[pool]`, or several `[[pool]]`: the addresses that viprouted gives out itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use toml::Value;

use super::table::Reader;
use super::{Error, ipv6, quoted};
use crate::lease::allow::Allow;
use crate::lease::beside::Prefix;
use crate::lease::pools::{DEFAULT_NAME, Labels, Pool, Pools, Range};
use crate::lease::settings::has_several;
use crate::model::VipKey;

/// More pools, or ranges of one, than that say nothing that fewer don't.
const MOST: usize = 64;

const CIDR: &str = "a network of unicast addresses such as 10.118.0.0/24, addresses such as 10.118.0.10-10.118.0.20, or an array of those";
const CIDR_BESIDE_CIDR6: &str = "a network of IPv4 such as 10.118.0.0/24: an IPv6 address of cidr6 ends in the VIP's IPv4 address, which a VIP has \
                                 also where its pods ask for IPv6 alone (viproute.io/families: ipv6)";
const NAME: &str = "a name of 1 to 63 lower-case letters, digits, '-' and '.', which no other pool has";
const NAMESPACE: &str = "the name of a namespace";
const LABELS: &str = "a table of labels and their values, all of which a Service must have";

/// All of them; none where the default range lies outside `allow`, which matters only if addresses come from pools. And the networks of
/// the IPv6 addresses that VIPs have beside. That of one `[pool]` is every VIP's, also of one that leases an address of no pool any more.
pub(super) fn pools(top: &mut Reader, allow: &Allow) -> Result<(Option<Pools>, Vec<Prefix>), Error> {
    let tables = top.table_or_tables("pool")?;
    let is_list = tables.is_list;
    if tables.all.len() > MOST {
        return Err(top.bad("pool", &format!("[{} tables]", tables.all.len()), "64 pools at most"));
    }
    let (mut pools, mut prefixes): (Vec<Pool>, _) = (Vec::new(), Vec::new());
    for mut table in tables.all {
        let cidr6 = ipv6::cidr6(&mut table, allow)?;
        // The default would be a surprise to who wants IPv6 alone.
        if cidr6.is_some() && !table.has("cidr") {
            return Err(table.missing("cidr", CIDR_BESIDE_CIDR6));
        }
        let next = pool(table, is_list, allow, &pools)?;
        let ranges = next.iter().filter(|_| is_list).flat_map(|pool| pool.ranges.clone()).collect();
        prefixes.extend(cidr6.map(|network| Prefix { ranges, network }));
        pools.extend(next);
    }
    Ok((Some(pools).filter(|pools| !pools.is_empty()).map(Pools::new), prefixes))
}

/// None: it is the only one, and leaves its range to the default, which lies outside `allow`.
fn pool(mut table: Reader, is_list: bool, allow: &Allow, others: &[Pool]) -> Result<Option<Pool>, Error> {
    let is_new = |name: &str| others.iter().all(|other| other.name != name);
    let name = table.text("name", NAME, |text| name(text).filter(|name| is_new(name)))?;
    let ranges = ranges(&mut table, allow, others)?;
    let exclude = table.list("exclude", "an IPv4 address", |text| text.parse().ok())?;
    let auto = table.take("auto", "true or false", Value::as_bool)?.unwrap_or(true);
    let namespaces: BTreeSet<String> = table.list("namespaces", NAMESPACE, namespace)?.into_iter().collect();
    let labels = table.take("labels", LABELS, labels)?.unwrap_or_default();
    if is_list && name.is_none() {
        return Err(table.missing("name", NAME));
    }
    if is_list && ranges.is_empty() {
        return Err(table.missing("cidr", CIDR));
    }
    table.finish()?;
    let default = Ipv4Network::new(Ipv4Addr::new(10, 118, 0, 0), 24).ok();
    let default = default.filter(|network| allow.permits_all((*network).into())).map(Range::Network);
    let ranges = if ranges.is_empty() { default.into_iter().collect() } else { ranges };
    let name = name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
    Ok((!ranges.is_empty()).then_some(Pool { name, ranges, exclude, auto, namespaces, labels }))
}

/// An address outside `allow` would be refused later, and one of two pools be given out twice.
fn ranges(table: &mut Reader, allow: &Allow, others: &[Pool]) -> Result<Vec<Range>, Error> {
    let mut ranges: Vec<Range> = Vec::new();
    for range in table.one_or_more("cidr", CIDR, |text| text.parse::<Range>().ok())? {
        if !range.networks().iter().all(|network| allow.permits_all((*network).into())) {
            return Err(table.bad("cidr", &quoted(range), format!("a network within: {allow}")));
        }
        if ranges.iter().any(|own| own.overlaps(range)) {
            return Err(table.bad("cidr", &quoted(range), "each address once"));
        }
        if let Some(other) = others.iter().find(|other| other.ranges.iter().any(|own| own.overlaps(range))) {
            return Err(table.bad("cidr", &quoted(range), format!("addresses that pool {other} doesn't have")));
        }
        ranges.push(range);
    }
    if ranges.len() > MOST {
        return Err(table.bad("cidr", &format!("[{} ranges]", ranges.len()), "64 ranges at most"));
    }
    Ok(ranges)
}

/// Where several nodes give out addresses of the same pool, each by itself, two probe one address at once and take it for taken.
pub(super) fn stand_alone(top: &Reader, peers: &[IpAddr], pins: bool) -> Result<(), Error> {
    if !has_several(peers) || pins {
        return Ok(());
    }
    let expected = "\"dhcp\" on several nodes (peers), or [membership] in place of peers, so that one node gives out the pool's addresses \
                    for all (or [kubernetes], or a [[pin]] for each VIP): each node would give them out by itself, in lock step with the others";
    Err(top.bad("backend", &"\"pool\"", expected))
}

fn name(text: &str) -> Option<String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fine =
        text.len() <= 63 && text.chars().all(inner) && is_end(text.chars().next()) && is_end(text.chars().last());
    fine.then(|| text.to_owned())
}

fn namespace(text: &str) -> Option<String> {
    VipKey::new(text, "x").ok().map(|_| text.to_owned())
}

fn labels(value: &Value) -> Option<Labels> {
    let table = value.as_table().filter(|table| table.len() <= MOST)?;
    table.iter().map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}
