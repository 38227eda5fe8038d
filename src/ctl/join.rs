//! `viproutectl join` and `leave`: changes the VIPs of a running pod, whatever its annotations say.

use std::net::IpAddr;
use std::path::Path;

use crate::cni::protocol::Config;
use crate::membership::running::{self, Found};
use crate::membership::{self, Change, Host, Want, set_vips};
use crate::model::{CheckSpec, FamilyChoice, NetworkSpec, PortMap, Recorded, Source, VipKey};
use crate::net::sockets::Sockets;
use crate::net::{self, Netns};
use crate::registry::{self, Registry, State, attachment_name};

use super::networks::Network;

/// Where things are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The registry.
    pub registry: &'a Registry,
    /// viprouted's socket.
    pub allocator: &'a Path,
}

/// What a pod is to be in a VIP. `None`: as it is already; where it isn't, as a pod without that annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What it serves there.
    pub ports: Option<Vec<PortMap>>,
    /// What makes it ready; `Some(None)`: nothing has to.
    pub health: Option<Option<CheckSpec>>,
    /// Its share.
    pub weight: Option<u8>,
    /// Its unbound UDP sockets answer from the VIP.
    pub udp_reply: Option<bool>,
    /// Its UDP flows keep their replica.
    pub udp_sticky: Option<bool>,
    /// By which families it wants the VIP to be served.
    pub families: Option<FamilyChoice>,
}

/// Why it couldn't be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such pod.
    #[error(transparent)]
    Pod(#[from] running::Error),
    /// Its VIPs are as they were.
    #[error(transparent)]
    Membership(#[from] membership::Error),
    /// The kernel's objects.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

/// A pod that has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What it is called.
    pub name: String,
    /// The VIP's address.
    pub address: IpAddr,
    /// Whether it gets connections.
    pub state: State,
}

/// Makes a running pod a replica of a VIP, or another kind of replica.
pub fn join(
    places: Places<'_>,
    conf_dir: &Path,
    (name, vip): (&str, &VipKey),
    options: &Options,
) -> Result<Joined, Error> {
    let found = find(places.registry, name)?;
    let network = found.network.clone().unwrap_or_else(|| configured(conf_dir, places.registry));
    let want = want(places.registry, (&found, &network), vip, options)?;
    let host = Host::open(network, places.registry.clone(), places.allocator.to_owned())?;
    let changed = set_vips(&host, &found.pod, &Change { join: &[want], leave: &[] })?;
    let (_, address, state) =
        changed.joined.into_iter().next().ok_or_else(|| membership::Error::Renumbered(vip.to_string()))?;
    Ok(Joined { name: shown(&found, name), address, state })
}

/// A pod that is no replica of a VIP any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// What it is called.
    pub name: String,
    /// It was one.
    pub was_replica: bool,
    /// So many connections have ended with that.
    pub connections: usize,
}

/// Takes a running pod out of a VIP, whatever made it join.
pub fn leave(places: Places<'_>, name: &str, vip: &VipKey) -> Result<Left, Error> {
    let found = find(places.registry, name)?;
    let connections = connections(places.registry, &found, vip).unwrap_or_default();
    let network = found.network.clone().unwrap_or_default();
    let host = Host::open(network, places.registry.clone(), places.allocator.to_owned())?;
    let changed = set_vips(&host, &found.pod, &Change { join: &[], leave: std::slice::from_ref(vip) })?;
    let was_replica = !changed.left.is_empty();
    Ok(Left { name: shown(&found, name), was_replica, connections: if was_replica { connections } else { 0 } })
}

/// Of another boot's pods nothing is left but the records.
fn find(registry: &Registry, name: &str) -> Result<Found, Error> {
    if registry.exists() {
        registry.begin()?;
    }
    Ok(running::find(registry, name)?)
}

fn shown(found: &Found, name: &str) -> String {
    found.pod.name.label().unwrap_or_else(|| name.to_owned())
}

/// The settings of the network that a pod has joined which the plugin doesn't know: those of the first one that uses this
/// registry, as the runtime takes it; without any, the defaults.
fn configured(conf_dir: &Path, registry: &Registry) -> NetworkSpec {
    let networks = Network::read_all(conf_dir);
    let mut configs = networks.iter().filter_map(|network| network.entry()?.config.as_ref().ok());
    configs.find(|config| config.data_dir == registry.dir()).map(Config::network).unwrap_or_default()
}

fn want(
    registry: &Registry,
    (found, network): (&Found, &NetworkSpec),
    vip: &VipKey,
    options: &Options,
) -> Result<Want, Error> {
    let before = registry.endpoint(vip, &attachment_name(&found.pod.attachment))?;
    let mut want = if let Some(endpoint) = before {
        Want { source: Source::Person, admitted: true, ..Want::of(vip.clone(), &endpoint) }
    } else {
        let health = network.health.as_ref().and_then(Recorded::known).cloned();
        Want { health, ..Want::new(vip.clone(), Source::Person) }
    };
    let Options { ports, health, weight, udp_reply, udp_sticky, families } = options.clone();
    want.ports = ports.unwrap_or(want.ports);
    want.health = health.unwrap_or(want.health);
    want.weight = weight.unwrap_or(want.weight);
    want.udp_reply = udp_reply.unwrap_or(want.udp_reply);
    want.udp_sticky = udp_sticky.unwrap_or(want.udp_sticky);
    want.families = families.or(want.families);
    Ok(want)
}

/// The pod's connections to the VIP.
fn connections(registry: &Registry, found: &Found, vip: &VipKey) -> Result<usize, Error> {
    let Some(record) = registry.vip_record(vip)? else { return Ok(0) };
    let Some(netns) = Netns::open_if_alive(&found.pod.netns.path)? else { return Ok(0) };
    let sockets = Sockets::open(&netns)?;
    let mut number = 0;
    for address in record.all_addresses() {
        number += sockets.connections(address)?.len();
    }
    Ok(number)
}
