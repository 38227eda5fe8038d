//! Taking an attachment out: DEL's work, and GC's, and the way back of an ADD that failed. Works from the registry
//! alone; what isn't there is done already; every step is tried, whatever the others met with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::allocator::client;
use crate::cni::env::Attachment;
use crate::net::nexthop::Object;
use crate::net::route::{self, Filter, Kind};
use crate::net::{self, Netns, NodeNet, PROTOCOL, PodNet, Request, link, nexthop};
use crate::registry::record::Former;
use crate::registry::{LockedAttachment, Registry, VipKey, attachment_name};
use crate::vip::ids::{self, PairNames};
use crate::vip::{owner, pair, sync};

use super::error::Error;

/// The allocator is told, not asked: it finds out from the registry anyway.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// One removal.
pub struct Detach<'a> {
    /// The node.
    pub net: &'a NodeNet,
    /// Its registry.
    pub registry: &'a Registry,
    /// The allocator's socket, where it is to be told of a VIP's last replica.
    pub allocator: Option<&'a Path>,
    /// The pod's namespace as the runtime names it now.
    pub netns: Option<&'a Path>,
}

impl Detach<'_> {
    /// Out of the groups first, then the devices, then the record.
    pub fn run(&self, attachment: &Attachment, locked: LockedAttachment) -> Result<(), Error> {
        let name = attachment_name(attachment);
        let keys: Vec<VipKey> = match &locked.record {
            Ok(record) => record.keys().collect(),
            Err(_) => self.registry.vips()?, // damaged: it may be in any
        };
        let mut errors = Vec::new();
        let mut last_left = Vec::new();
        for key in &keys {
            match self.leave_vip(key, &name) {
                Ok(true) => last_left.push(key),
                Ok(false) => {}
                Err(e) => errors.push(e),
            }
        }
        self.tell_allocator(&last_left);
        errors.extend(self.leave_pod(attachment, &locked).err());
        errors.extend(pair::remove(self.net, &PairNames::of(attachment)).err().map(Error::from));
        if errors.is_empty() {
            locked.remove()?;
        }
        Error::several(errors)
    }

    /// True: that was the VIP's last replica here.
    fn leave_vip(&self, key: &VipKey, name: &str) -> Result<bool, Error> {
        let Some(mut vip) = self.registry.vip_if_present(key)? else {
            // Perhaps a DEL was killed while it removed the VIP: this is that DEL again.
            self.registry.sweep_removed_vips()?;
            return Ok(false);
        };
        vip.remove_endpoint(name)?;
        Ok(sync(self.net, vip)?.is_none())
    }

    /// One that doesn't answer isn't told of the others: a DEL has better things to wait for.
    fn tell_allocator(&self, keys: &[&VipKey]) {
        let Some(socket) = self.allocator else { return };
        for key in keys {
            if client::release(socket, &key.to_string(), RELEASE_TIMEOUT).is_err() {
                return;
            }
        }
    }

    /// A pod that lives on (podman disconnects it; a later plugin of the chain failed) gets back what it had.
    fn leave_pod(&self, attachment: &Attachment, locked: &LockedAttachment) -> Result<(), Error> {
        let (path, former) = match &locked.record {
            Ok(record) => (Some(record.netns.path.clone()), record.former),
            Err(_) => (self.netns.map(PathBuf::from), Former::default()),
        };
        let Some(netns) = path.map(|path| Netns::open_if_alive(&path)).transpose()?.flatten() else {
            return Ok(());
        };
        // Paths are used again: another pod's namespace may be there by now.
        let is_the_pods = match &locked.record {
            Ok(record) => netns.identity()? == (record.netns.device, record.netns.inode),
            Err(_) => !netns.is_own()?,
        };
        if !is_the_pods {
            return Ok(());
        }
        Ok(pair::leave(&PodNet::open(netns)?, &PairNames::of(attachment), &attachment.ifname, former)?)
    }
}

/// Removes what no record explains: endpoints without attachment, VIPs without endpoints, and kernel objects of
/// protocol 118, or named by us, that belong to nobody. Then brings every VIP in order.
pub fn sweep(net: &NodeNet, registry: &Registry, bpf_dir: &Path) -> Result<(), Error> {
    // The kernel is read first: who adds an object has recorded it before, so what is unexplained afterwards is stale.
    let seen = Seen::read(net)?;
    let mut errors = Vec::new();
    registry.sweep_removed_vips().unwrap_or_else(|e| errors.push(e.into()));
    for key in registry.vips()? {
        errors.extend(sweep_vip(net, registry, &key).err());
    }
    errors.extend(owner::sweep(net, registry, bpf_dir).err().map(Error::from));
    let requests = seen.unexplained(registry)?;
    errors.extend(net.apply(&requests).err().map(Error::from));
    Error::several(errors)
}

fn sweep_vip(net: &NodeNet, registry: &Registry, key: &VipKey) -> Result<(), Error> {
    let Some(mut vip) = registry.vip_if_present(key)? else { return Ok(()) };
    vip.remove_temporaries()?;
    // Looked at under the VIP's lock: an ADD records its attachment before its endpoint.
    for name in vip.names()?.into_iter().filter(|name| !registry.is_attached(name)) {
        vip.remove_endpoint(&name)?;
    }
    match sync(net, vip)? {
        Some(vip) => Error::several(vip.damage()?.into_iter().map(Error::from).collect()),
        None => Ok(()),
    }
}

/// Our objects as the kernel had them.
struct Seen {
    links: Vec<link::Link>,
    nexthops: Vec<Object>,
    routes: Vec<route::Route>,
}

impl Seen {
    fn read(net: &NodeNet) -> net::Result<Self> {
        let mut links = link::list(net)?;
        links.retain(|l| is_host_end(&l.name));
        let mut nexthops = nexthop::list(net)?;
        nexthops.retain(|n| ids::is_ours(n.id()));
        let filter = Filter { table: Some(route::MAIN), protocol: Some(PROTOCOL), prefix: None };
        Ok(Self { links, nexthops, routes: route::list(net, filter)? })
    }

    /// Requests that remove what the registry doesn't explain: routes before groups, groups before their members.
    fn unexplained(&self, registry: &Registry) -> Result<Vec<Request>, Error> {
        let names: Vec<String> = registry.attachments()?.iter().map(|a| PairNames::of(a).host).collect();
        let known_links = || self.links.iter().filter(|l| names.contains(&l.name));
        let mut ids: Vec<u32> = known_links().filter_map(|l| ids::nexthop(l.index)).collect();
        let mut addresses = Vec::new();
        let mut some_are_unknown = false;
        for key in registry.vips()? {
            match registry.vip_record(&key) {
                Ok(Some(record)) => {
                    ids.push(ids::group(record.slot));
                    addresses.extend(record.addresses());
                }
                Ok(None) => {}
                // Its error was reported with its VIP. It may be what explains the rest.
                Err(_) => some_are_unknown = true,
            }
        }
        let mut requests = Vec::new();
        let is_known = |address| some_are_unknown || addresses.contains(&address);
        for route in self.routes.iter().filter(|r| r.prefix.prefix() == 32 && !is_known(r.prefix.ip())) {
            requests.push(match route.kind {
                Kind::Unreachable => route::del_unreachable(route.prefix.ip(), route.metric),
                _ => route::del_nexthop(route.prefix.ip()),
            });
        }
        let is_known =
            |object: &Object| ids.contains(&object.id()) || (some_are_unknown && !matches!(object, Object::Single(_)));
        let mut stale: Vec<&Object> = self.nexthops.iter().filter(|object| !is_known(object)).collect();
        stale.sort_by_key(|object| matches!(object, Object::Single(_)));
        requests.extend(stale.iter().map(|object| nexthop::del(object.id())));
        requests.extend(self.links.iter().filter(|l| !names.contains(&l.name)).map(|l| link::del(&l.name)));
        Ok(requests)
    }
}

/// `vip` and 11 hex digits.
fn is_host_end(name: &str) -> bool {
    name.strip_prefix(ids::HOST_DEVICE_PREFIX)
        .is_some_and(|rest| rest.len() == 11 && rest.chars().all(|c| c.is_ascii_hexdigit()))
}
