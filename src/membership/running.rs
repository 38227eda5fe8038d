//! Finds the running pod of this node that a user names: one that is recorded, by its name, its container or its address; any
//! other by its address, which is looked for in the network namespaces that runtimes show.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use crate::dataplane::ids::POD_DEVICE;
use crate::model::{AttachmentId, Family, NetworkSpec};
use crate::net::{self, Netns, PodNet, address, link};
use crate::registry::{self, AttachmentRecord, Registry, attachment_name, record};

use super::Pod;

/// Where runtimes show their pods' namespaces: containerd, CRI-O, podman and Nomad in one of the first two, which are one
/// directory on most nodes; Docker, for Nomad too, in the last.
const NAMESPACES: [&str; 3] = ["/run/netns", "/var/run/netns", "/run/docker/netns"];

/// A running pod.
#[derive(Debug)]
pub struct Found {
    /// The pod.
    pub pod: Pod,
    /// Its network's settings, where they are recorded.
    pub network: Option<NetworkSpec>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not recorded.
    #[error(
        "no running pod is recorded on this node as {0}: expected the <namespace>/<name> of a pod that has a VIP or is \
         registered (\"register\": true in viproute's entry of the conflist), a container's ID, or any running pod's \
         address (kubectl get pod -o wide)"
    )]
    Unknown(String),
    /// Not on this node.
    #[error("no running pod of this node has the address {0}: searched the network namespaces in {places}", places = NAMESPACES.join(", "))]
    UnknownAddress(IpAddr),
    /// Several of them.
    #[error("{name} stands for {number} on this node: expected {expected}")]
    Ambiguous {
        /// As it was named.
        name: String,
        /// How many.
        number: usize,
        /// What tells them apart.
        expected: &'static str,
    },
    /// Neither recorded nor to be found out.
    #[error("no address of {0} is recorded or found on its interface: name the pod by its address")]
    NoAddress(String),
    /// The kernel's objects.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

/// The attachments whose pods live, as their records are named. Of a record of any version its namespace is read and nothing else; where that
/// can't be read, nobody knows, and it counts.
pub fn attached(registry: &Registry) -> Result<Vec<String>, Error> {
    let names = registry.attachments()?.into_iter().map(|attachment| attachment_name(&attachment));
    let lives = |name: &String| {
        let text = fs::read(registry.dir().join("attachments").join(format!("{name}.json"))).unwrap_or_default();
        let record: Option<Value> = serde_json::from_slice(&text).ok();
        let netns = record.and_then(|mut record| record.get_mut("netns").map(Value::take));
        let netns: Option<record::Netns> = netns.and_then(|netns| serde_json::from_value(netns).ok());
        netns.is_none_or(|netns| netns.is_still_there())
    };
    Ok(names.filter(lives).collect())
}

/// By `<namespace>/<name>`, by an address, or by a container's ID or the beginning of it.
pub fn find(registry: &Registry, name: &str) -> Result<Found, Error> {
    match name.parse() {
        Ok(address) => by_address(registry, address),
        Err(_) => by_name(registry, name),
    }
}

/// What is recorded of a pod that lives.
struct Recorded {
    attachment: AttachmentId,
    record: AttachmentRecord,
    address: Option<IpAddr>,
    name: record::Pod,
}

impl Recorded {
    /// All of them. A damaged record is skipped: doctor reports it.
    fn all(registry: &Registry) -> Result<Vec<Self>, Error> {
        let attachments = registry.attachments()?.into_iter();
        Ok(attachments.filter_map(|attachment| Self::read(registry, attachment)).collect())
    }

    fn read(registry: &Registry, attachment: AttachmentId) -> Option<Self> {
        let record = registry.attachment_record(&attachment).ok().flatten()?;
        if !record.netns.is_still_there() {
            return None;
        }
        let (mut address, mut name) = (record.address, record.pod.clone());
        // One that an earlier version wrote leaves that to its replicas.
        if address.is_none() {
            let file = attachment_name(&attachment);
            let endpoint = record.keys().find_map(|key| registry.endpoint(&key, &file).ok().flatten());
            if let Some(endpoint) = endpoint {
                (address, name) = (Some(endpoint.address()), endpoint.pod);
            }
        }
        Some(Self { attachment, record, address, name })
    }

    fn found(self, shown: &str) -> Result<Found, Error> {
        let network = self.record.network_spec();
        let own = own_addresses(&self.record.netns, &self.attachment.ifname)?;
        let address = self.address.or(own.first().copied()).ok_or_else(|| Error::NoAddress(shown.to_owned()))?;
        let others = of_ipv6(own);
        let pod = Pod { attachment: self.attachment, netns: self.record.netns, address, others, name: self.name };
        Ok(Found { pod, network })
    }
}

/// Container IDs have no `/`, names of pods always.
fn by_name(registry: &Registry, name: &str) -> Result<Found, Error> {
    let mut all = Recorded::all(registry)?;
    if name.contains('/') {
        all.retain(|recorded| recorded.name.label().is_some_and(|label| label == name));
    } else {
        all.retain(|recorded| recorded.attachment.container_id.starts_with(name));
    }
    match all.len() {
        0 => Err(Error::Unknown(name.to_owned())),
        1 => all.remove(0).found(name),
        number => {
            let expected = "the address of one";
            Err(Error::Ambiguous { name: name.to_owned(), number, expected })
        }
    }
}

/// The pod that has this address.
pub fn by_address(registry: &Registry, address: IpAddr) -> Result<Found, Error> {
    let ambiguous = |number| {
        let expected = "the <namespace>/<name> of a pod, or a container's ID";
        Error::Ambiguous { name: address.to_string(), number, expected }
    };
    let mut recorded = Recorded::all(registry)?;
    let (mut with_address, others): (Vec<_>, Vec<_>) =
        recorded.drain(..).partition(|recorded| recorded.address == Some(address));
    match with_address.len() {
        0 => {}
        1 => return with_address.remove(0).found(&address.to_string()),
        number => return Err(ambiguous(number)),
    }
    let mut shown = namespaces_with(address)?;
    let (netns, ifname) = match shown.len() {
        0 => return Err(Error::UnknownAddress(address)),
        1 => shown.remove(0),
        number => return Err(ambiguous(number)),
    };
    let is_same = |recorded: &Recorded| {
        recorded.record.netns.identity() == netns.identity() && recorded.attachment.ifname == ifname
    };
    if let Some(recorded) = others.into_iter().find(is_same) {
        return Recorded { address: recorded.address.or(Some(address)), ..recorded }.found(&address.to_string());
    }
    let own = own_addresses(&netns, &ifname)?;
    // A pod of both families is known by its address of IPv4, whichever it is named by.
    let address = own.first().copied().filter(|_| address.is_ipv6()).unwrap_or(address);
    let others = of_ipv6(own);
    let pod = Pod { attachment: netns.attachment(&ifname), netns, address, others, name: record::Pod::default() };
    Ok(Found { pod, network: None })
}

/// What a pod has on its own interface: an address of IPv4 first, if it has one, then those of IPv6 that are known beyond the link. None of
/// a pod that is gone.
pub fn own_addresses(netns: &registry::Netns, ifname: &str) -> net::Result<Vec<IpAddr>> {
    let Some(opened) = Netns::open_if_alive(&netns.path)? else { return Ok(Vec::new()) };
    let pod = PodNet::open(opened)?;
    let Some(link) = link::by_name(&pod, ifname)? else { return Ok(Vec::new()) };
    let list = |family| address::list(&pod, family, Some(link.index));
    let on_link = |found: &address::Address| found.index == link.index;
    let four: Vec<address::Address> = list(Family::V4)?.into_iter().filter(on_link).collect();
    let first = four.iter().find(|found| found.global).or(four.first()).map(|found| found.address);
    let six = list(Family::V6)?.into_iter().filter(|found| found.global && on_link(found));
    Ok(first.into_iter().chain(six.map(|found| found.address)).collect())
}

/// Those of IPv6 among them.
pub fn of_ipv6(own: Vec<IpAddr>) -> Vec<IpAddr> {
    own.into_iter().filter(IpAddr::is_ipv6).collect()
}

/// The namespaces of pods that have this address, and on which interface. One that can't be opened is going, or coming.
fn namespaces_with(address: IpAddr) -> Result<Vec<(registry::Netns, String)>, Error> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    let entries = NAMESPACES.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let Ok(Some(netns)) = Netns::open_if_alive(&path) else { continue };
        let (device, inode) = netns.identity()?;
        if netns.is_own()? || !seen.insert((device, inode)) {
            continue;
        }
        if let Ok(Some(ifname)) = interface_with(netns, address) {
            found.push((registry::Netns { path, device, inode }, ifname));
        }
    }
    Ok(found)
}

fn interface_with(netns: Netns, address: IpAddr) -> net::Result<Option<String>> {
    let pod = PodNet::open(netns)?;
    for found in address::list(&pod, Family::of(address), None)?.iter().filter(|found| found.address == address) {
        if let Some(link) = link::by_index(&pod, found.index)?.filter(|link| link.name != POD_DEVICE) {
            return Ok(Some(link.name));
        }
    }
    Ok(None)
}
