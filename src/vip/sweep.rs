//! Removing what no record explains: endpoints without attachment, VIPs without endpoints, and kernel objects of protocol
//! 118, or named by us, that belong to nobody. Whatever is under way beside it, an ADD or a DEL, loses nothing: the kernel
//! is read before the registry (who adds an object has recorded it before), nobody makes a VIP between the last look at
//! the registry and the removal, and devices go by their index, which no other will ever have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::bpf::Maps;
use crate::net::nexthop::Object;
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, NodeNet, PROTOCOL, Request, link, nexthop};
use crate::registry::{Registry, VipKey};

use super::ids::{self, PairNames};
use super::owner::Op;
use super::{Error, Result, Tables, put_right_by};

/// Removes what nobody explains, and brings every VIP in order. Goes on behind a failure and reports all of them.
pub fn everything(node: &NodeNet, registry: &Registry, bpf_dir: &Path) -> Result<()> {
    let mut errors = Vec::new();
    registry.sweep_removed_vips().unwrap_or_else(|e| errors.push(e.into()));
    errors.extend(vips(node, registry).err());
    errors.extend(objects(node, registry, [bpf_dir]).err());
    Error::several(errors)
}

fn vips(node: &NodeNet, registry: &Registry) -> Result<()> {
    let tables = Tables::read(node)?;
    let keys = registry.vips()?;
    Error::several(keys.iter().filter_map(|key| vip(node, registry, key, &tables).err()).collect())
}

/// Removes a VIP's endpoints without attachment, and brings the VIP in order, `tables` having been read a moment ago. Returns
/// what was amiss.
pub fn vip(node: &NodeNet, registry: &Registry, key: &VipKey, tables: &Tables) -> Result<Vec<String>> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(Vec::new()) };
    vip.remove_temporaries()?;
    // Looked at under the VIP's lock: an ADD records its attachment before its endpoint.
    let orphans: Vec<String> = vip.names()?.into_iter().filter(|name| !registry.is_attached(name)).collect();
    for name in &orphans {
        vip.remove_endpoint(name)?;
    }
    let mut found: Vec<String> = orphans.iter().map(|name| format!("endpoint {name} has no attachment")).collect();
    let synced = put_right_by(node, vip, tables)?;
    found.extend(synced.found);
    if let Some(vip) = synced.vip {
        Error::several(vip.damage()?.into_iter().map(Error::from).collect())?;
    }
    Ok(found)
}

/// Removes what nobody explains from the kernel, and from the maps pinned in these directories. Returns what was removed.
pub fn objects<'a>(
    node: &NodeNet,
    registry: &Registry,
    bpf_dirs: impl IntoIterator<Item = &'a Path>,
) -> Result<Vec<String>> {
    let mut errors: Vec<Error> = Vec::new();
    let mut entries = Vec::new();
    for dir in bpf_dirs {
        match Entries::read(dir) {
            Ok(found) => entries.extend(found),
            Err(e) => errors.push(e),
        }
    }
    let mut seen = Seen::read(node, entries)?;
    seen.retain_unexplained(registry)?;
    if seen.is_empty() {
        return Error::several(errors).map(|()| Vec::new());
    }
    // Who was making a VIP has recorded it, and nobody makes another one now.
    let _held = registry.hold_slots()?;
    seen.retain_unexplained(registry)?;
    let found = seen.findings();
    errors.extend(node.apply(&seen.requests()).err().map(Error::from));
    errors.extend(seen.entries.into_iter().filter_map(|entries| entries.remove().err()));
    Error::several(errors).map(|()| found)
}

/// Our objects as the kernel had them.
struct Seen {
    entries: Vec<Entries>,
    routes: Vec<route::Route>,
    nexthops: Vec<Object>,
    /// Host ends.
    links: Vec<link::Link>,
    /// Those of them that are nobody's.
    strays: Vec<link::Link>,
    /// The indices of all devices.
    indices: BTreeSet<u32>,
}

impl Seen {
    /// The devices last: what hangs on one is never seen without it.
    fn read(node: &NodeNet, entries: Vec<Entries>) -> net::Result<Self> {
        let filter = Filter { table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
        let mut routes = route::list(node, filter)?;
        routes.retain(|route| route.prefix.prefix() == 32);
        let mut nexthops = nexthop::list(node)?;
        nexthops.retain(|n| ids::is_ours(n.id()));
        let mut links = link::list(node)?;
        let indices: BTreeSet<u32> = links.iter().map(|l| l.index).collect();
        // One whose device has gone since went with it.
        nexthops.retain(|object| !matches!(object, Object::Single(nexthop) if !indices.contains(&nexthop.index)));
        links.retain(|l| ids::is_host_end(&l.name));
        Ok(Self { entries, routes, nexthops, links, strays: Vec::new(), indices })
    }

    /// Leaves what the registry doesn't explain.
    fn retain_unexplained(&mut self, registry: &Registry) -> Result<()> {
        let names: BTreeSet<String> = registry.attachments()?.iter().map(|a| PairNames::of(a).host).collect();
        let mut groups: BTreeSet<u32> = BTreeSet::new();
        let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
        let mut some_are_unknown = false;
        for key in registry.vips()? {
            match registry.vip_record(&key) {
                Ok(Some(record)) => {
                    groups.insert(ids::group(record.slot));
                    addresses.extend(record.addresses());
                }
                Ok(None) => {}
                // Its error was reported with its VIP. It may be what explains the rest.
                Err(_) => some_are_unknown = true,
            }
        }
        let is_known = |address: &Ipv4Addr| some_are_unknown || addresses.contains(address);
        self.routes.retain(|route| !is_known(&route.prefix.ip()));
        let (known, strays): (Vec<_>, Vec<_>) = self.links.iter().cloned().partition(|l| names.contains(&l.name));
        let hops: BTreeSet<u32> = known.iter().filter_map(|link| ids::nexthop(link.index)).collect();
        self.strays = strays;
        self.nexthops.retain(|object| match object {
            Object::Single(nexthop) => !hops.contains(&nexthop.id),
            group => !some_are_unknown && !groups.contains(&group.id()),
        });
        for entries in &mut self.entries {
            entries.retain_unknown(is_known, &self.indices);
        }
        self.entries.retain(|entries| !entries.findings().is_empty());
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.nexthops.is_empty() && self.strays.is_empty() && self.entries.is_empty()
    }

    fn findings(&self) -> Vec<String> {
        let routes = self.routes.iter().map(|route| format!("route {} is nobody's", route.prefix));
        let nexthops = self.nexthops.iter().map(|object| format!("nexthop {} is nobody's", object.id()));
        let links = self.strays.iter().map(|link| format!("link {} is nobody's", link.name));
        let entries = self.entries.iter().flat_map(Entries::findings);
        routes.chain(nexthops).chain(links).chain(entries).collect()
    }

    /// Routes before groups, groups before their members, devices last.
    fn requests(&mut self) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        requests.extend(self.routes.iter().map(|route| match route.kind {
            Kind::Unreachable => route::del_unreachable(route.prefix.ip(), route.metric),
            _ => route::del_nexthop(route.prefix.ip()),
        }));
        self.nexthops.sort_by_key(|object| matches!(object, Object::Single(_)));
        requests.extend(self.nexthops.iter().map(|object| nexthop::del(object.id())));
        requests.extend(self.strays.iter().map(|link| link::del_index(link.index)));
        requests
    }
}

/// What a flow owner's maps have of VIPs and host ends.
#[derive(Debug)]
struct Entries {
    maps: Maps,
    vips: Vec<Ipv4Addr>,
    attached: Vec<(u32, Ipv4Addr)>,
}

impl Entries {
    /// Reads them. `None`: no maps are pinned.
    fn read(dir: &Path) -> Result<Option<Self>> {
        let Some(maps) = Maps::open(dir)? else { return Ok(None) };
        let (vips, attached) = (maps.vips()?, maps.all_attached()?);
        Ok(Some(Self { maps, vips, attached }))
    }

    /// Leaves those that nobody knows.
    fn retain_unknown(&mut self, is_known: impl Fn(&Ipv4Addr) -> bool, links: &BTreeSet<u32>) {
        self.vips.retain(|vip| !is_known(vip));
        self.attached.retain(|(ifindex, vip)| !is_known(vip) || !links.contains(ifindex));
    }

    /// A sentence for each.
    fn findings(&self) -> Vec<String> {
        let vips = self.vips.iter().map(|vip| Op::Forget.finding(*vip));
        vips.chain(self.attached.iter().map(|(ifindex, vip)| Op::Detach(*ifindex).finding(*vip))).collect()
    }

    /// Removes them.
    fn remove(mut self) -> Result<()> {
        for (ifindex, vip) in self.attached {
            self.maps.detach(ifindex, vip)?;
        }
        for vip in self.vips {
            self.maps.forget(vip)?;
        }
        Ok(())
    }
}
