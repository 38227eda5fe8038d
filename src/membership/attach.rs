//! A new pod becomes a replica of its VIPs, as a whole or not at all; or is recorded, so that it can become one later.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::dataplane::attachment::{self, ContainerVeth, HostVeth, PodDevices, PodWant, Served};
use crate::dataplane::ids::POD_DEVICE;
use crate::dataplane::node::tunnel;
use crate::dataplane::{gateway, settings};
use crate::ebpf::Programs;
use crate::model::{AttachmentId, NetworkSpec, VipKey};
use crate::net::link::{self, Link};
use crate::net::{self, NodeNet, PodNet};
use crate::registry::record::SavedSysctls;
use crate::registry::{self, AttachmentRecord, Attempt, Boot, Endpoint, Netns, Registry, VipRecord, record};

use super::detach::detach;
use super::join::{Joining, Known, Pair};
use super::{Error, Host, Pod, Want, ipv6};

/// Makes a pod that is in no VIP a replica of all these; where that fails nothing of it is left. Returns the addresses by
/// which they are served.
pub fn attach(
    host: &Host,
    pod: &Pod,
    (net, before): (&PodNet, PodDevices),
    wants: &[Want],
) -> Result<Vec<IpAddr>, Error> {
    let joining = Joining::new(host, pod)?;
    let vips = wants.iter().map(|want| want.vip.clone().into()).collect();
    let saved = before.saved_sysctls(net)?;
    let record = AttachmentRecord { vips, saved_sysctls: saved, ..pod.record(&host.network) };
    // Claimed first: a second ADD must find the claim before it checks the pod for a vip0, which would be the first one's.
    let locked = match host.registry.attach(&pod.attachment, record.clone()) {
        Err(registry::Error::AlreadyAttached { .. }) if remove_dead(host, &pod.attachment)? => {
            host.registry.attach(&pod.attachment, record)?
        }
        attached => attached?,
    };
    if before.vip0.is_some() {
        locked.remove()?;
        return Err(Error::DeviceInTheWay);
    }
    join(&Attaching { joining, net, saved, interface: before.interface }, wants)
        .map_err(|error| error.and(detach(&host.way_back(), &pod.attachment, locked)))
}

/// Removes an attachment whose namespace is no more: its DEL was lost, and the container has started anew. False: it is
/// alive, or a call about it is under way.
fn remove_dead(host: &Host, attachment: &AttachmentId) -> Result<bool, Error> {
    let Attempt::Taken(locked) = host.registry.try_attachment(attachment)? else { return Ok(false) };
    if !locked.record.as_ref().is_ok_and(|record| !record.netns.is_still_there()) {
        return Ok(false);
    }
    detach(&host.way_back(), attachment, locked)?;
    Ok(true)
}

/// How many times a pod is made as it must be while viprouted changes it.
const TRIES: u32 = 4;

struct Attaching<'a> {
    joining: Joining<'a>,
    net: &'a PodNet,
    saved: SavedSysctls,
    /// The pod's own.
    interface: Link,
}

fn join(attaching: &Attaching<'_>, wants: &[Want]) -> Result<Vec<IpAddr>, Error> {
    let joining = &attaching.joining;
    settings::configure()?;
    let mut endpoints = joining.endpoints(wants, 0..)?;
    joining.insert_pending(wants, &endpoints)?;
    let programs = joining.programs(wants.iter().map(|want| &want.vip))?;
    let known = |vip: &VipKey| {
        let record = joining.host.registry.vip_record(vip)?;
        record.as_ref().map(Known::of).ok_or_else(|| Error::Renumbered(vip.to_string()))
    };
    let known = wants.iter().map(|want| known(&want.vip)).collect::<Result<Vec<_>, Error>>()?;
    if known.iter().any(Known::has_ipv6) {
        settings::configure_ipv6(&joining.host.net)?;
    }
    let pair = attaching.make_pair(&known, &endpoints, programs.as_deref())?;
    for ((want, known), endpoint) in wants.iter().zip(&known).zip(&mut endpoints) {
        joining.finish(&want.vip, known, endpoint, pair)?;
    }
    served(&joining.host.registry, wants)
}

/// The addresses by which the VIPs are served now.
fn served(registry: &Registry, wants: &[Want]) -> Result<Vec<IpAddr>, Error> {
    let records = wants.iter().filter_map(|want| registry.vip_record(&want.vip).transpose());
    let records = records.collect::<registry::Result<Vec<_>>>()?;
    Ok(records.iter().flat_map(VipRecord::served_addresses).collect())
}

impl Attaching<'_> {
    /// Makes the veth pair and all around it, its nexthop last.
    fn make_pair(&self, known: &[Known], endpoints: &[Endpoint], programs: Option<&Programs>) -> Result<Pair, Error> {
        let Joining { host, pod, .. } = self.joining;
        let names = pod.veth_names();
        let mtu = host.network.mtu.unwrap_or(self.interface.mtu);
        let gateway = gateway(pod.address, known.iter().any(Known::has_ipv6));
        ipv6::check_mtu(gateway, mtu)?;
        attachment::create(&host.net, &names, mtu, self.net.netns()).map_err(|e| match e.errno {
            Errno::EEXIST => Error::DeviceInTheWay,
            _ => e.into(),
        })?;
        let vanished = |name: &str| net::Error::new("get link", name, Errno::ENODEV);
        let host_veth = HostVeth::new(&host.net, &names, gateway)?.ok_or_else(|| vanished(&names.host))?;
        ipv6::check_device(gateway, &host_veth)?;
        let served = known.iter().zip(endpoints).enumerate();
        let served = served.map(|(index, (known, endpoint))| {
            let place = endpoint.place.map_or(index, usize::from);
            Served { place, addresses: &known.current, endpoint }
        });
        let previous = known.iter().flat_map(|known| known.previous.iter().copied());
        let want = PodWant::new(&names, &pod.attachment.ifname, served).keeping(previous);
        let container_veth = ContainerVeth::new(self.net, self.interface.clone(), want.families())?;
        let container_veth = container_veth.ok_or_else(|| vanished(POD_DEVICE))?;
        // Nothing can come before they are on the pair: its nexthop is made last.
        let underlay = tunnel::Underlay::of(&host.net, &host.registry)?.map(tunnel::Underlay::whole);
        let calls_leave = programs.is_some() && attachment::allow_binding(self.net)?;
        let want = want.source_checked(Some(programs.is_some())).calls_leave(Some(calls_leave)).tunnel_mtu(underlay);
        self.fix_pod(&container_veth, &want)?;
        if let Some(programs) = programs {
            attachment::apply(self.net, container_veth.filter_fixes(&want, programs)?)?;
        }
        if programs.is_some() {
            attachment::relax_all(self.net, self.saved)?;
        }
        let mut fixes = host_veth.fixes(&names, gateway);
        if let Some(programs) = programs {
            ipv6::check_programs(gateway, programs)?;
            fixes.extend(host_veth.filter_fixes(programs)?);
        }
        attachment::apply(&host.net, fixes)?;
        // The end that came up first could not send yet, and would wait up to a second for the kernel's next check of
        // carriers (net/core/link_watch.c). When the link is requested, the kernel checks at once (since Linux 6.8).
        link::by_index(self.net, container_veth.index())?;
        let pair = Pair::of(&host_veth, gateway)?;
        host.net.apply(&[net::nexthop::add(pair.nexthop)])?;
        Ok(pair)
    }

    /// All that the pod must have. viprouted may be giving it a new address of its VIP: what either finds missing, one of them adds, and the
    /// other one looks again.
    fn fix_pod(&self, container_veth: &ContainerVeth, want: &PodWant<'_>) -> net::Result<()> {
        let mut applied = attachment::apply(self.net, container_veth.fixes(want));
        for _ in 1..TRIES {
            if !applied.as_ref().is_err_and(|error| error.errno == Errno::EEXIST) {
                break;
            }
            let Some(found) = ContainerVeth::read(self.net, want.ifname, want.families())? else { break };
            applied = attachment::apply(self.net, found.fixes(want));
        }
        applied
    }
}

/// A pod that names no VIP, for the record.
#[derive(Debug)]
pub struct Registration {
    /// Its attachment.
    pub attachment: AttachmentId,
    /// Its network namespace.
    pub netns: Netns,
    /// Its address, if the runtime says one: of IPv4 where it has some.
    pub address: Option<IpAddr>,
    /// What it is called.
    pub name: record::Pod,
    /// Its network.
    pub network: NetworkSpec,
}

/// Records a pod that is in no VIP: one file, by which it can join VIPs by its name later. One that is recorded already
/// stays as it is.
pub fn register(registry: &Registry, pod: Registration) -> Result<(), Error> {
    let Registration { attachment, netns, address, name, network } = pod;
    if registry.begin()? == Boot::Discarded {
        super::gc::everything(&NodeNet::open()?, registry, &network.bpf_dir)?;
    }
    let record = AttachmentRecord { pod: name, address, ..AttachmentRecord::new(network, netns) };
    match registry.attach(&attachment, record) {
        Err(registry::Error::AlreadyAttached { .. }) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
