//! Garbage collection of orphans: kernel objects of protocol 118, or with our names, that no record explains. A concurrent
//! ADD or DEL loses nothing: the kernel is read before the registry (a call records an object before it adds it), no call
//! makes a VIP between the last read of the registry and the removal, and devices are removed by their index, which no
//! other device will ever have.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::ebpf::Maps;
use crate::model::Family;
use crate::net::nexthop::{self, Object};
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, NodeNet, PROTOCOL, Request, link};
use crate::registry::{Registry, nodes};

use super::ids::{self, INWARD_TOS, VethNames};
use super::node::{discard, tunnel};
use super::owner::{self, Op};
use super::{Error, Result, member_id};

/// Removes orphans from the kernel, and from the maps pinned in these directories. Returns what was removed.
pub fn objects<'a>(
    node: &NodeNet,
    registry: &Registry,
    bpf_dirs: impl IntoIterator<Item = &'a Path>,
) -> Result<Vec<String>> {
    let mut errors: Vec<Error> = Vec::new();
    let mut entries = Vec::new();
    let bpf_dirs: Vec<&Path> = bpf_dirs.into_iter().collect();
    let mut found = Vec::new();
    if nodes::load_others(registry)?.is_none() {
        found = tunnel::remove(node, bpf_dirs.iter().copied())?;
    }
    for dir in bpf_dirs {
        match Entries::read(dir) {
            Ok(found) => entries.extend(found),
            Err(e) => errors.push(e),
        }
    }
    let mut seen = Seen::read(node, entries)?;
    seen.retain_orphans(registry)?;
    if seen.is_empty() {
        return Error::several(errors).map(|()| found);
    }
    // A call that was making a VIP has recorded it, and no call makes another one while this is held.
    let _held = registry.hold_slots()?;
    seen.retain_orphans(registry)?;
    found.extend(seen.findings());
    errors.extend(node.apply(&seen.requests()).err().map(Error::from));
    errors.extend(seen.entries.into_iter().filter_map(|entries| entries.remove().err()));
    Error::several(errors).map(|()| found)
}

/// Our objects as the kernel had them.
struct Seen {
    entries: Vec<Entries>,
    routes: Vec<route::Route>,
    nexthops: Vec<Object>,
    /// Host veths.
    links: Vec<link::Link>,
    /// Those of them that no attachment explains.
    orphans: Vec<link::Link>,
    /// Of all devices.
    indices: BTreeSet<u32>,
}

impl Seen {
    /// The devices last: what hangs on one is never seen without it.
    fn read(node: &NodeNet, entries: Vec<Entries>) -> net::Result<Self> {
        let mut routes = Vec::new();
        for family in Family::ALL {
            let filter = Filter { family, table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
            routes.extend(route::list(node, filter)?);
        }
        let filter = Filter { table: Some(route::LOCAL), protocol: Some(PROTOCOL), ..Filter::default() };
        routes.extend(route::list(node, filter)?.into_iter().filter(|route| route.tos == INWARD_TOS));
        // Discard routes are of the configuration, which no record tells of.
        routes.retain(|route| route::is_host(route.prefix) && !discard::is_one(route));
        let mut nexthops = nexthop::list(node)?;
        nexthops.retain(|n| ids::is_ours(n.id()));
        let mut links = link::list(node)?;
        let indices: BTreeSet<u32> = links.iter().map(|l| l.index).collect();
        // One whose device has gone since went with it.
        nexthops.retain(|object| !matches!(object, Object::Single(nexthop) if !indices.contains(&nexthop.index)));
        links.retain(|l| ids::is_host_veth(&l.name));
        Ok(Self { entries, routes, nexthops, links, orphans: Vec::new(), indices })
    }

    /// Keeps what the registry doesn't explain.
    fn retain_orphans(&mut self, registry: &Registry) -> Result<()> {
        let names: BTreeSet<String> = registry.attachments()?.iter().map(|a| VethNames::of(a).host).collect();
        let mut groups: BTreeSet<u32> = BTreeSet::new();
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        let mut peers: BTreeSet<u32> = BTreeSet::new();
        let mut some_are_unknown = false;
        let cluster = nodes::load_others(registry)?;
        peers.extend(
            cluster.iter().flat_map(|cluster| &cluster.nodes).filter_map(|node| ids::peer_nexthop(node.number)),
        );
        for key in registry.vips()? {
            match registry.vip_record(&key) {
                Ok(Some(record)) => {
                    groups.insert(ids::group(record.slot));
                    groups.extend(cluster.as_ref().map(|_| ids::local_group(record.slot)));
                    addresses.extend(record.all_addresses());
                    let replicas = registry.replicas(&key)?;
                    let remote = replicas.values().filter(|replica| !replica.backend.is_local());
                    peers.extend(remote.filter_map(member_id));
                }
                Ok(None) => {}
                // Its error was reported with its VIP. It may be what explains the rest.
                Err(_) => some_are_unknown = true,
            }
        }
        let is_known = |address: &IpAddr| some_are_unknown || addresses.contains(address);
        let is_wanted = |route: &route::Route| route.table != route::LOCAL || cluster.is_some();
        self.routes.retain(|route| !is_known(&route.prefix.ip()) || !is_wanted(route));
        let (known, orphans): (Vec<_>, Vec<_>) = self.links.iter().cloned().partition(|l| names.contains(&l.name));
        let hops: BTreeSet<u32> = known.iter().filter_map(|link| ids::nexthop(link.index)).collect();
        self.orphans = orphans;
        self.nexthops.retain(|object| match object {
            Object::Single(nexthop) if ids::is_peer(nexthop.id) => !some_are_unknown && !peers.contains(&nexthop.id),
            Object::Single(nexthop) => !hops.contains(&nexthop.id),
            group => !some_are_unknown && !groups.contains(&group.id()),
        });
        for entries in &mut self.entries {
            entries.retain_unknown(is_known, &self.indices)?;
            if cluster.is_some() {
                entries.leave_lingering()?;
            }
        }
        self.entries.retain(|entries| !entries.findings().is_empty());
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.nexthops.is_empty() && self.orphans.is_empty() && self.entries.is_empty()
    }

    fn findings(&self) -> Vec<String> {
        let routes = self.routes.iter().map(|route| format!("route {} is an orphan", route.prefix));
        let nexthops = self.nexthops.iter().map(|object| format!("nexthop {} is an orphan", object.id()));
        let links = self.orphans.iter().map(|link| format!("link {} is an orphan", link.name));
        let entries = self.entries.iter().flat_map(Entries::findings);
        routes.chain(nexthops).chain(links).chain(entries).collect()
    }

    /// Routes before groups, groups before their members, devices last.
    fn requests(&mut self) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        requests.extend(self.routes.iter().filter_map(|route| match route.kind {
            _ if route.table == route::LOCAL => route.of_ours().map(route::del),
            Kind::Unreachable => Some(route::del_unreachable(route.prefix, route.metric)),
            _ => Some(route::del_nexthop(route.prefix.ip())),
        }));
        self.nexthops.sort_by_key(|object| matches!(object, Object::Single(_)));
        requests.extend(self.nexthops.iter().map(|object| nexthop::del(object.id())));
        requests.extend(self.orphans.iter().map(|link| link::del_index(link.index)));
        requests
    }
}

/// What a flow owner's maps have of VIPs and host veths.
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
        let (mut vips, mut attached) = (maps.all_served()?, maps.all_translated()?);
        vips.extend(maps.all_policed()?);
        vips.extend(maps.vips()?);
        vips.extend(maps.all_numbers()?);
        attached.extend(maps.all_answering()?);
        attached.extend(maps.all_sharing()?);
        attached.extend(maps.all_attached()?);
        attached.extend(maps.all_own()?);
        Ok(Some(Self { maps, vips: vips.into_iter().collect(), attached: attached.into_iter().collect() }))
    }

    /// Keeps the orphans: entries of a VIP that isn't known, or of a host veth that is missing.
    fn retain_unknown(&mut self, is_known: impl Fn(&IpAddr) -> bool, links: &BTreeSet<u32>) -> Result<()> {
        let mut known = BTreeSet::new();
        for vip in self.vips.iter().chain(self.attached.iter().map(|(_, vip)| vip)) {
            // A number that is nobody's is known to nobody.
            if !known.contains(vip) && self.maps.address(*vip)?.is_some_and(|address| is_known(&address)) {
                known.insert(*vip);
            }
        }
        self.vips.retain(|vip| !known.contains(vip));
        self.attached.retain(|(ifindex, vip)| !known.contains(vip) || !links.contains(ifindex));
        Ok(())
    }

    /// Those of VIPs whose last replica has just left are no orphans yet.
    fn leave_lingering(&mut self) -> Result<()> {
        let mut orphans = Vec::with_capacity(self.vips.len());
        for vip in self.vips.drain(..) {
            if !owner::lingers(&self.maps, vip)? {
                orphans.push(vip);
            }
        }
        self.vips = orphans;
        Ok(())
    }

    fn findings(&self) -> Vec<String> {
        let shown = |vip: &Ipv4Addr| self.maps.address(*vip).ok().flatten().unwrap_or(IpAddr::V4(*vip));
        let vips = self.vips.iter().map(|vip| Op::Forget.finding(shown(vip)));
        vips.chain(self.attached.iter().map(|(ifindex, vip)| Op::Detach(*ifindex).finding(shown(vip)))).collect()
    }

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
