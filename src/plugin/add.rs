//! ADD: a pod joins its VIPs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;

use crate::allocator::client;
use crate::allocator::protocol::AcquireRequest;
use crate::bpf::Programs;
use crate::cni::env::Attachment;
use crate::cni::result::Interface;
use crate::cni::{Call, Config, PrevResult};
use crate::net::link::{self, Link};
use crate::net::nexthop::Nexthop;
use crate::net::route::{self, Packet};
use crate::net::{self, Netns, NodeNet, PodNet};
use crate::registry::record::{self, SCHEMA};
use crate::registry::{
    self, AttachmentRecord, Boot, Endpoint, LockedAttachment, Port, Registry, State, Transport, VipKey, VipRecord,
    attachment_name,
};
use crate::vip::ids::{POD_DEVICE, PairNames, mac_text};
use crate::vip::pair::{self, HostEnd, PodDevices, PodEnd, PodWant, Served};
use crate::vip::{owner, settings, sweep, sync};
use crate::with_causes;

use super::detach::Detach;
use super::error::Error;
use super::membership::{self, Membership};
use super::node::{self, Node};
use super::report::Report;

/// How long an ADD waits for an address. The allocator goes on after that and keeps what it gets for the next ADD.
const ALLOCATOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Attaches the pod; returns the result for stdout.
pub fn run(call: &Call, config: Config, report: &mut Report) -> Result<String, Error> {
    let membership = membership::read(call, &config).inspect_err(|_| report.is_ours(&config, []))?;
    let Some(membership) = membership else {
        return Ok(pass_through(config));
    };
    report.is_ours(&config, membership.vips.iter().cloned());
    let request = Request::check(call, &config, membership)?;
    let node = Opened::open(&config)?;
    let vips = attach(&request, &node)?;
    request.result(&vips)
}

/// A pod that names no VIP is none of our business: what came in goes out, to the letter.
fn pass_through(config: Config) -> String {
    let Config { prev_result, cni_version, .. } = config;
    prev_result.map_or_else(|| format!("{{\"cniVersion\":\"{cni_version}\"}}"), |raw| raw.get().to_owned())
}

/// An ADD whose input is in order. Nothing has been changed so far.
struct Request<'a> {
    config: &'a Config,
    call: &'a Call,
    attachment: &'a Attachment,
    membership: Membership,
    result: PrevResult,
    pod_address: Ipv4Addr,
    names: PairNames,
    pod: PodNet,
    before: PodDevices,
}

impl<'a> Request<'a> {
    fn check(call: &'a Call, config: &'a Config, membership: Membership) -> Result<Self, Error> {
        node::check_kernel()?;
        let missing = |what| Error::Env(crate::cni::env::EnvError::Missing(what));
        let attachment = call.attachment.as_ref().ok_or(missing("CNI_CONTAINERID"))?;
        let netns = call.netns.as_ref().ok_or(missing("CNI_NETNS"))?;
        let prev_result = config.prev_result.as_ref().ok_or(crate::cni::config::ConfigError::Missing("prevResult"))?;
        let result = PrevResult::parse(prev_result)?;
        let no_address = || Error::NoPodAddress(attachment.ifname.clone());
        let pod_address = result.pod_address(&attachment.ifname).ok_or_else(no_address)?;
        let pod = open_pod(netns)?;
        let before =
            PodDevices::read(&pod, &attachment.ifname)?.ok_or_else(|| Error::NoInterface(attachment.ifname.clone()))?;
        let names = PairNames::of(attachment);
        Ok(Self { config, call, attachment, membership, result, pod_address, names, pod, before })
    }

    fn netns(&self) -> &Path {
        self.pod.netns().path()
    }

    fn record(&self) -> Result<AttachmentRecord, Error> {
        let path = self.netns().to_owned();
        let (device, inode) = self.pod.netns().identity()?;
        Ok(AttachmentRecord {
            schema: SCHEMA,
            network: self.config.name.clone(),
            vips: self.membership.vips.iter().map(ToString::to_string).collect(),
            netns: registry::Netns { path, device, inode },
            former: self.before.former(),
            mtu: self.config.mtu,
            other: std::collections::BTreeMap::new(),
        })
    }

    /// The pod as a replica of each VIP, in their order.
    fn endpoints(&self, opened: &Opened) -> Result<Vec<Endpoint>, Error> {
        let membership = &self.membership;
        let way = if membership.udp_reply { route::lookup(&opened.net, Packet::to(self.pod_address))? } else { None };
        let asked_from = way.and_then(|way| way.source);
        let endpoint = |ports: &[Port]| self.endpoint(opened.node, ports, asked_from);
        Ok(membership.services().map(|(_, ports)| endpoint(ports)).collect())
    }

    fn endpoint(&self, node: Node, ports: &[Port], asked_from: Option<Ipv4Addr>) -> Endpoint {
        let crate::cni::env::Pod { namespace, name, uid } = self.call.pod.clone();
        let udp_reply = self.membership.udp_reply && ports.iter().any(|port| port.transport == Transport::Udp);
        Endpoint {
            schema: SCHEMA,
            network: self.config.name.clone(),
            address: self.pod_address,
            node: node.address,
            gateway: node.gateway,
            pod: record::Pod { namespace, name, uid },
            netns: self.netns().to_owned(),
            device: self.names.host.clone(),
            ifindex: None,
            mac: mac_text(self.names.pod_mac),
            nexthop: None,
            netns_id: None,
            ports: ports.iter().map(ToString::to_string).collect(),
            udp_reply,
            asked_from: asked_from.filter(|_| udp_reply),
            udp_sticky: self.membership.udp_sticky,
            state: State::Pending,
            health: self.membership.health.as_ref().map(ToString::to_string),
            drained: false,
            weight: self.membership.weight,
            other: std::collections::BTreeMap::new(),
        }
    }

    /// prevResult and our two devices.
    fn result(mut self, vips: &[Ipv4Addr]) -> Result<String, Error> {
        let host =
            Interface { name: self.names.host.clone(), mac: mac_text(self.names.host_mac), sandbox: String::new() };
        let sandbox = self.netns().display().to_string();
        let pod = Interface { name: POD_DEVICE.to_owned(), mac: mac_text(self.names.pod_mac), sandbox };
        self.result.add_interface(&host);
        let index = self.result.add_interface(&pod);
        // Not by default: kubelet would show them as the pod's own.
        if self.config.report_ips {
            for vip in vips {
                self.result.add_address(&self.config.cni_version, *vip, index);
            }
        }
        self.result.to_json().map_err(|e| Error::Io("encode the result", e.into()))
    }
}

fn open_pod(netns: &Path) -> Result<PodNet, Error> {
    let not_one = |source: net::Error| match source.errno {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EINVAL
        | Errno::ENOTTY
        | Errno::ELOOP
        | Errno::ENXIO => Error::NotANetns { path: netns.display().to_string(), source },
        _ => Error::Net(source),
    };
    let netns = Netns::open(netns).map_err(not_one)?;
    // Whoever set that up would find the node's own interfaces changed as a pod's are.
    if netns.is_own()? {
        return Err(Error::NodesOwnNetns(netns.path().display().to_string()));
    }
    Ok(PodNet::open(netns)?)
}

/// The node, ready for changes.
struct Opened {
    net: NodeNet,
    node: Node,
    registry: Registry,
    /// The flow owner's, if the configuration wants it.
    programs: Option<Rc<Programs>>,
}

impl Opened {
    fn open(config: &Config) -> Result<Self, Error> {
        let net = NodeNet::open()?;
        let node = Node::find(&net, config)?;
        let registry = Registry::new(&config.data_dir);
        if registry.begin()? == Boot::Discarded {
            sweep::everything(&net, &registry, &config.bpf_dir)?;
        }
        let programs = config.flow_owner.then(|| owner::ensure(&net, &registry, &config.bpf_dir)).transpose()?;
        Ok(Self { net, node, registry, programs: programs.map(Rc::new) })
    }
}

/// All that changes anything; undone as a whole where it fails. Returns the VIPs' addresses.
fn attach(request: &Request<'_>, opened: &Opened) -> Result<Vec<Ipv4Addr>, Error> {
    // Claimed first: a second ADD must find out before it looks at the pod, where it would find the first one's vip0.
    let locked = opened.registry.attach(request.attachment, request.record()?)?;
    if request.before.vip0.is_some() {
        locked.remove()?;
        return Err(Error::DeviceInTheWay);
    }
    let undo = Undo { request, opened, locked: Some(locked) };
    match join(request, opened) {
        Ok(vips) => {
            undo.commit();
            Ok(vips)
        }
        Err(error) => Err(undo.failed(error)),
    }
}

/// Takes everything back that an ADD has done, unless told that it succeeded.
struct Undo<'a> {
    request: &'a Request<'a>,
    opened: &'a Opened,
    locked: Option<LockedAttachment>,
}

impl Undo<'_> {
    fn commit(mut self) {
        self.locked = None;
    }

    /// The first error counts; what the way back met with is added to it.
    fn failed(mut self, error: Error) -> Error {
        match self.take_back() {
            Ok(()) => error,
            Err(further) => Error::Several { first: Box::new(error), others: vec![with_causes(&further)] },
        }
    }

    fn take_back(&mut self) -> Result<(), Error> {
        let Some(locked) = self.locked.take() else { return Ok(()) };
        let Opened { net, registry, .. } = self.opened;
        Detach { net, registry, allocator: None, netns: None }.run(self.request.attachment, locked)
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let _ = self.take_back();
    }
}

fn join(request: &Request<'_>, opened: &Opened) -> Result<Vec<Ipv4Addr>, Error> {
    settings::configure()?;
    let name = attachment_name(request.attachment);
    let mut endpoints = request.endpoints(opened)?;
    let mut addresses = Vec::new();
    for (key, endpoint) in request.membership.vips.iter().zip(&endpoints) {
        addresses.push(enrol(request, opened, key, endpoint)?);
    }
    let programs = programs(request, opened)?;
    let former = former(request, opened)?;
    let pair = make_pair(request, opened, (&addresses, &endpoints), programs.as_deref(), former.concat())?;
    let known = addresses.iter().zip(&former);
    for ((key, (address, former)), endpoint) in request.membership.vips.iter().zip(known).zip(&mut endpoints) {
        endpoint.ifindex = Some(pair.nexthop.index);
        endpoint.nexthop = Some(pair.nexthop.id);
        endpoint.netns_id = pair.netns_id;
        // With a check the agent says when.
        endpoint.state = if endpoint.health.is_none() { State::Ready } else { State::Pending };
        let mut vip = opened.registry.vip(key)?;
        let is_as_known =
            |record: &VipRecord| record.address == *address && record.former_addresses().eq(former.iter().copied());
        if !vip.record.as_ref().is_some_and(is_as_known) {
            return Err(Error::Renumbered(key.to_string()));
        }
        vip.write_endpoint(&name, endpoint)?;
        sync(&opened.net, vip)?;
    }
    Ok(addresses)
}

/// The addresses that each VIP had a moment ago: a connection by one may be brought to any replica.
fn former(request: &Request<'_>, opened: &Opened) -> Result<Vec<Vec<Ipv4Addr>>, Error> {
    let of_one = |key| Ok(opened.registry.vip_record(key)?.iter().flat_map(VipRecord::former_addresses).collect());
    request.membership.vips.iter().map(of_one).collect()
}

/// Records the replica, still pending, under its VIP; returns the VIP's address.
fn enrol(request: &Request<'_>, opened: &Opened, key: &VipKey, endpoint: &Endpoint) -> Result<Ipv4Addr, Error> {
    let name = attachment_name(request.attachment);
    if let Some(mut vip) = opened.registry.vip_if_present(key)?
        && !vip.is_unused()?
        && let Some(record) = &vip.record
    {
        let address = record.address;
        vip.enrol(&name, endpoint)?;
        return Ok(address);
    }
    // Nobody serves it here: the address is the allocator's to say. It may take seconds, so no lock is held.
    let address = acquire(request, opened.node, key)?;
    let mut vip = opened.registry.vip(key)?;
    if !vip.is_unused()?
        && let Some(record) = &vip.record
    {
        let address = record.address; // another ADD was faster
        vip.enrol(&name, endpoint)?;
        return Ok(address);
    }
    let record = new_vip(request, opened.node, key, address, vip.slot()?);
    vip.write_record(record)?;
    vip.enrol(&name, endpoint)?;
    Ok(address)
}

fn new_vip(request: &Request<'_>, node: Node, key: &VipKey, address: Ipv4Addr, slot: u32) -> VipRecord {
    VipRecord {
        schema: SCHEMA,
        key: key.to_string(),
        address,
        slot,
        node: node.address,
        group: request.config.group,
        flow_owner: request.config.flow_owner.then(|| request.config.bpf_dir.clone()),
        withdrawn: false,
        former: Vec::new(),
        other: std::collections::BTreeMap::new(),
    }
}

fn acquire(request: &Request<'_>, node: Node, key: &VipKey) -> Result<Ipv4Addr, Error> {
    let ask =
        AcquireRequest { vip: key.to_string(), pod: request.pod_address, node: node.address, gateway: node.gateway };
    client::acquire(&request.config.allocator, &ask, ALLOCATOR_TIMEOUT)
        .map(|grant| grant.address)
        .map_err(|source| Error::Allocator { vip: key.to_string(), source })
}

/// The flow owner's programs, as the VIPs' records want them: those that have replicas decided when the first one came.
fn programs(request: &Request<'_>, opened: &Opened) -> Result<Option<Rc<Programs>>, Error> {
    let mut agreed: Option<(&VipKey, Option<PathBuf>)> = None;
    for key in &request.membership.vips {
        let record = opened.registry.vip_record(key)?;
        let dir = record.and_then(|record| record.flow_owner);
        match &agreed {
            Some((other, agreed)) if *agreed != dir => {
                return Err(Error::MixedOwners(other.to_string(), key.to_string()));
            }
            Some(_) => {}
            None => agreed = Some((key, dir)),
        }
    }
    match (agreed, &opened.programs) {
        (Some((_, Some(dir))), Some(programs)) if dir == request.config.bpf_dir => Ok(Some(Rc::clone(programs))),
        (Some((_, Some(dir))), _) => Ok(Some(Rc::new(owner::ensure(&opened.net, &opened.registry, &dir)?))),
        _ => Ok(None),
    }
}

/// What an endpoint records of its pair.
struct Pair {
    nexthop: Nexthop,
    netns_id: Option<u32>,
}

/// Makes the veth pair and all around it, its nexthop last.
fn make_pair(
    request: &Request<'_>,
    opened: &Opened,
    (vips, endpoints): (&[Ipv4Addr], &[Endpoint]),
    programs: Option<&Programs>,
    former: Vec<Ipv4Addr>,
) -> Result<Pair, Error> {
    let Request { names, pod, attachment, .. } = request;
    let interface: &Link = &request.before.interface;
    let mtu = request.config.mtu.unwrap_or(interface.mtu);
    pair::create(&opened.net, names, mtu, pod.netns()).map_err(|e| match e.errno {
        Errno::EEXIST => Error::DeviceInTheWay,
        _ => e.into(),
    })?;
    let vanished = |name: &str| net::Error::new("get link", name, Errno::ENODEV);
    let pod_end = PodEnd::new(pod, interface.clone())?.ok_or_else(|| vanished(POD_DEVICE))?;
    let host_end = HostEnd::new(&opened.net, names)?.ok_or_else(|| vanished(&names.host))?;
    let served = vips.iter().zip(endpoints).enumerate();
    let served = served.map(|(place, (address, endpoint))| Served { place, address: *address, endpoint });
    let want = PodWant::new(names, &attachment.ifname, served).keeping(former);
    pair::apply(pod, pod_end.fixes(&want))?;
    let mut fixes = host_end.fixes(names, request.pod_address);
    if let Some(programs) = programs {
        fixes.extend(host_end.filter_fixes(programs)?);
    }
    pair::apply(&opened.net, fixes)?;
    // The end that came up first could not send yet, and would wait for the kernel's next look at carriers, up to a second
    // (net/core/link_watch.c). Being asked for it, the kernel looks at once (since Linux 6.8).
    link::by_index(pod, pod_end.index())?;
    let nexthop = host_end.nexthop(request.pod_address)?;
    opened.net.apply(&[net::nexthop::add(nexthop)])?;
    Ok(Pair { nexthop, netns_id: host_end.link.peer_netns })
}
