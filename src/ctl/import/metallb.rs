//! `MetalLB`'s pools and announcements.
//!
//! What limits a pool and can't be said here makes it one that is given out only where it is named: nobody gets an address by the import
//! whom `MetalLB` wouldn't have given one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnetwork::Ipv6Network;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{AddressPool, Advertisement, Allocation, Object, Peer, Selector};
use super::{Error, Imported};
use crate::lease::beside::LONGEST;
use crate::lease::pools::Range;

const POOLS: &str = "IPAddressPool";
const ADDRESSES: &str = "an IPv4 network such as 192.0.2.0/24 or addresses such as 192.0.2.10-192.0.2.20";
/// Excluded addresses of a pool that are written one by one.
const MOST_EXCLUDED: usize = 512;
/// Keys of a `BGPPeer` that change nothing on the other side, or that routers are told otherwise.
const PEER_KEYS: [(&str, &str); 12] = [
    ("nodeSelectors", "each node speaks with the routers that `viproutectl announce` is called with there"),
    ("password", "write it into the routing daemon's configuration"),
    ("passwordSecret", "write it into the routing daemon's configuration"),
    ("bfdProfile", "set BFD in the routing daemon's configuration"),
    ("peerPort", "set the port in the routing daemon's configuration"),
    ("sourceAddress", "the daemon speaks from the node's address on the way to the router"),
    ("holdTime", "set it in the routing daemon's configuration"),
    ("keepaliveTime", "set it in the routing daemon's configuration"),
    ("routerID", "the daemon's is the node's address"),
    ("vrf", "sessions in a VRF aren't written"),
    ("enableGracefulRestart", "set it in the routing daemon's configuration"),
    ("connectTime", "set it in the routing daemon's configuration"),
];

/// All that is taken over.
#[derive(Debug, Default)]
struct Found {
    pools: Vec<Pool>,
    arp: Vec<(String, Advertisement)>,
    bgp: Vec<(String, Advertisement)>,
    peers: Vec<(String, Peer)>,
    left: Vec<String>,
}

#[derive(Debug)]
struct Pool {
    name: String,
    labels: BTreeMap<String, String>,
    ranges: Vec<Range>,
    exclude: Vec<Ipv4Addr>,
    cidr6: Option<Ipv6Network>,
    auto: bool,
    allocation: Allocation,
    /// Of those that its allocation asks for, what can be said here.
    service_labels: BTreeMap<String, String>,
}

/// `text`: one or several documents.
pub(super) fn import(file: &Path, text: &str) -> Result<Imported, Error> {
    let documents: Vec<Option<Object>> = serde_saphyr::from_multiple(text)
        .map_err(|source| Error::Yaml { file: file.to_owned(), source: Box::new(source) })?;
    let mut found = Found::default();
    for object in documents.into_iter().flatten() {
        found.take(file, object)?;
    }
    // Without any, viprouted would take a range of its own.
    if found.pools.is_empty() {
        return Err(Error::Nothing { file: file.to_owned(), expected: POOLS, left: found.left });
    }
    // Those with a priority come first; of one priority they stay as they were.
    found.pools.sort_by_key(|pool| (pool.allocation.priority == 0, pool.allocation.priority));
    found.announced();
    let toml = found.toml();
    Ok(Imported { toml, left: found.left })
}

fn spec<T: DeserializeOwned>(file: &Path, name: &str, spec: Value) -> Result<T, Error> {
    let value = if spec.is_null() { Value::Object(serde_json::Map::new()) } else { spec };
    serde_json::from_value(value).map_err(|error| Error::Value {
        file: file.to_owned(),
        object: name.to_owned(),
        key: "spec",
        value: error.to_string(),
        expected: "what MetalLB's API takes",
    })
}

impl Found {
    fn take(&mut self, file: &Path, object: Object) -> Result<(), Error> {
        let shown = format!("{} {}", object.kind, object.metadata.name);
        let name = object.metadata.name.clone();
        match object.kind.as_str() {
            "List" | "IPAddressPoolList" | "L2AdvertisementList" | "BGPAdvertisementList" | "BGPPeerList" => {
                object.items.into_iter().try_for_each(|item| self.take(file, item))?;
            }
            POOLS => {
                let pool = spec(file, &shown, object.spec)?;
                self.pool(file, &name, object.metadata.labels, pool)?;
            }
            "L2Advertisement" => self.arp.push((name, spec(file, &shown, object.spec)?)),
            "BGPAdvertisement" => self.bgp.push((name, spec(file, &shown, object.spec)?)),
            "BGPPeer" => self.peers.push((name, spec(file, &shown, object.spec)?)),
            "Community" => self.left.push(format!("{shown}: routers are told no communities of their own")),
            "BFDProfile" => self.left.push(format!("{shown}: set BFD in the routing daemon's configuration")),
            "ConfigMap" | "AddressPool" => self.left.push(format!(
                "{shown}: the form of before MetalLB 0.13 isn't read; MetalLB's own converter makes objects of it"
            )),
            "" => {} // an empty document
            _ => self.left.push(format!("{shown}: it is no pool or announcement of MetalLB's")),
        }
        Ok(())
    }

    fn pool(
        &mut self,
        file: &Path,
        name: &str,
        labels: BTreeMap<String, String>,
        pool: AddressPool,
    ) -> Result<(), Error> {
        let (mut ranges, mut exclude) = (Vec::new(), Vec::new());
        let (of_ipv6, of_ipv4): (Vec<&str>, Vec<&str>) =
            pool.addresses.iter().map(|text| text.trim()).partition(|text| text.contains(':'));
        for text in of_ipv4 {
            let range = read(text).ok_or_else(|| Error::Value {
                file: file.to_owned(),
                object: format!("{POOLS} {name}"),
                key: "addresses",
                value: text.to_owned(),
                expected: ADDRESSES,
            })?;
            if pool.avoid_buggy_ips {
                exclude.extend(buggy(range).take(MOST_EXCLUDED + 1));
            }
            ranges.push(range);
        }
        if exclude.len() > MOST_EXCLUDED {
            exclude.clear();
            self.left.push(format!("{POOLS} {name}: avoidBuggyIPs of so large a pool: exclude .0 and .255 by hand"));
        }
        let cidr6 = self.cidr6(name, &of_ipv6, !ranges.is_empty());
        if ranges.is_empty() {
            return Ok(());
        }
        let allocation = pool.service_allocation.unwrap_or_default();
        let (service_labels, is_whole) = self.selectors(name, &allocation);
        let auto = pool.auto_assign && is_whole;
        self.pools.push(Pool {
            name: name.to_owned(),
            labels,
            ranges,
            exclude,
            cidr6,
            auto,
            allocation,
            service_labels,
        });
        Ok(())
    }

    /// The network of a pool's IPv6 addresses: the first that has room for an IPv4 address, where the pool has such addresses.
    fn cidr6(&mut self, name: &str, of_ipv6: &[&str], has_ipv4: bool) -> Option<Ipv6Network> {
        let mut found = None;
        for text in of_ipv6 {
            let network: Option<Ipv6Network> =
                text.parse().ok().filter(|network: &Ipv6Network| network.prefix() <= LONGEST);
            let why = match network.filter(|_| text.contains('/')) {
                _ if !has_ipv4 => "a pool of IPv6 alone has no counterpart: cidr6 goes beside IPv4 addresses",
                None => "expected a network of /96 or shorter: an IPv6 address ends in the VIP's IPv4 address (cidr6)",
                Some(_) if found.is_some() => "a pool has one cidr6",
                Some(network) => {
                    found = Ipv6Network::new(network.network(), network.prefix()).ok();
                    continue;
                }
            };
            self.left.push(format!("{POOLS} {name}: {text}: {why}"));
        }
        found
    }

    /// Labels that a Service must have, and whether that is all that the pool asks for.
    fn selectors(&mut self, name: &str, allocation: &Allocation) -> (BTreeMap<String, String>, bool) {
        let mut is_whole = true;
        let mut leave = |what: &str| {
            is_whole = false;
            self.left.push(format!(
                "{POOLS} {name}: {what} can't be said here, so the pool is given out only where it is named (auto = false)"
            ));
        };
        if !allocation.namespace_selectors.is_empty() {
            leave("namespaceSelectors");
        }
        let labels = match &allocation.service_selectors[..] {
            [] => BTreeMap::new(),
            [Selector { match_labels, match_expressions }] if match_expressions.is_empty() => match_labels.clone(),
            [_] => {
                leave("matchExpressions of serviceSelectors");
                BTreeMap::new()
            }
            _ => {
                leave("more than one of serviceSelectors");
                BTreeMap::new()
            }
        };
        (labels, is_whole)
    }

    /// What there is to say of announcements.
    fn announced(&mut self) {
        let mut left = Vec::new();
        for (kind, (name, said)) in each(&self.arp, &self.bgp) {
            let mut leave = |what: &str| left.push(format!("{kind} {name}: {what}"));
            if !said.node_selectors.is_empty() {
                leave(
                    "nodeSelectors: give the other nodes the label node.kubernetes.io/exclude-from-external-load-balancers",
                );
            }
            if said.interfaces.len() > 1 {
                leave("interfaces: VIPs are announced on one link of a node (dhcp.interface)");
            }
            if said.aggregation_length.is_some_and(|length| length != 32) {
                leave("aggregationLength: each VIP is announced by itself");
            }
            if said.local_pref.is_some_and(|preference| preference != 0) {
                leave("localPref: set it in the routing daemon's configuration");
            }
            if !said.communities.is_empty() {
                leave("communities: set them in the routing daemon's configuration");
            }
            if !said.peers.is_empty() {
                leave("peers: each router is told all VIPs");
            }
        }
        for pool in &self.pools {
            let mut all = self.arp.iter().chain(&self.bgp);
            if !all.any(|(_, said)| selects(said, pool)) {
                left.push(format!("{POOLS} {}: nothing announces it there; here all pools are announced", pool.name));
            }
        }
        for (name, peer) in &self.peers {
            let has = |key: &&(&str, &str)| peer.others.get(key.0).is_some_and(|value| !is_default(key.0, value));
            left.extend(PEER_KEYS.iter().filter(has).map(|(key, instead)| format!("BGPPeer {name}: {key}: {instead}")));
            if !peer.dynamic_asn.is_empty() {
                left.push(format!("BGPPeer {name}: dynamicASN: name the router's AS number to `viproutectl announce`"));
            }
        }
        self.left.extend(left);
    }

    fn toml(&self) -> String {
        let mut text = "# Made by `viproutectl import metallb` for viprouted.toml.\nbackend = \"pool\"\n".to_owned();
        let announce = if self.arp.is_empty() { "none" } else { "arp" };
        let _ = writeln!(text, "announce = \"{announce}\"");
        let links: BTreeSet<&String> = self.arp.iter().flat_map(|(_, said)| &said.interfaces).collect();
        for (number, link) in links.iter().enumerate() {
            let comment = if number > 0 || links.len() > 1 { "# " } else { "" };
            let _ = writeln!(text, "{comment}dhcp.interface = {}", quoted(link));
        }
        for (name, peer) in &self.peers {
            let hops = if peer.ebgp_multi_hop { " --multihop 255" } else { "" };
            let _ = writeln!(
                text,
                "# BGPPeer {name}, on each node: viproutectl announce bird --asn {} --router {}:{}{hops}",
                peer.my_asn,
                if peer.address.contains(':') { format!("[{}]", peer.address) } else { peer.address.clone() },
                peer.asn
            );
        }
        for pool in &self.pools {
            pool.write(&mut text);
        }
        text
    }
}

impl Pool {
    fn write(&self, text: &mut String) {
        let _ = writeln!(text, "\n[[pool]]\nname = {}\ncidr = {}", quoted(&self.name), list(&self.ranges));
        if !self.exclude.is_empty() {
            let _ = writeln!(text, "exclude = {}", list(&self.exclude));
        }
        if let Some(cidr6) = self.cidr6 {
            let _ = writeln!(text, "cidr6 = {}", quoted(&cidr6.to_string()));
        }
        if !self.auto {
            text.push_str("auto = false\n");
        }
        if !self.allocation.namespaces.is_empty() {
            let _ = writeln!(text, "namespaces = {}", list(&self.allocation.namespaces));
        }
        if !self.service_labels.is_empty() {
            let labels =
                self.service_labels.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)));
            let _ = writeln!(text, "labels = {{ {} }}", labels.collect::<Vec<_>>().join(", "));
        }
    }
}

fn each<'a>(
    arp: &'a [(String, Advertisement)],
    bgp: &'a [(String, Advertisement)],
) -> impl Iterator<Item = (&'static str, &'a (String, Advertisement))> {
    let named = |kind| move |said| (kind, said);
    arp.iter().map(named("L2Advertisement")).chain(bgp.iter().map(named("BGPAdvertisement")))
}

/// One that names no pool means all.
fn selects(said: &Advertisement, pool: &Pool) -> bool {
    let is_open = said.pools.is_empty() && said.pool_selectors.is_empty();
    let has = |selector: &Selector| {
        // What can't be read may mean it.
        selector.match_labels.iter().all(|(name, value)| pool.labels.get(name) == Some(value))
    };
    is_open || said.pools.contains(&pool.name) || said.pool_selectors.iter().any(has)
}

/// `MetalLB` gives out each address of a network, also the first and the last one; host bits mean nothing.
fn read(text: &str) -> Option<Range> {
    if text.contains('-') {
        return text.parse().ok();
    }
    let network: ipnetwork::Ipv4Network = text.contains('/').then(|| text.parse().ok())??;
    Some(Range::Span(network.network(), network.broadcast()))
}

/// Addresses of it that end with 0 or 255.
fn buggy(range: Range) -> impl Iterator<Item = Ipv4Addr> {
    let pool = crate::lease::pools::Pool::open("", vec![range], Vec::new());
    let all: Vec<Ipv4Addr> =
        pool.addresses().filter(|address| matches!(address.octets()[3], 0 | 255)).take(MOST_EXCLUDED + 1).collect();
    all.into_iter()
}

/// What an object has where nobody has set anything.
fn is_default(key: &str, value: &Value) -> bool {
    let is_empty = value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    let is_nothing = value.is_null() || *value == false || value.as_object().is_some_and(serde_json::Map::is_empty);
    is_empty || is_nothing || key == "peerPort" && *value == 179
}

/// As TOML has it; a JSON string is one.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(values: &[impl ToString]) -> String {
    let values: Vec<String> = values.iter().map(|value| quoted(&value.to_string())).collect();
    format!("[{}]", values.join(", "))
}

#[cfg(test)]
mod tests;
