//! `viproutectl drain` and `undrain`: takes a pod out of its VIPs' groups and brings it back, by the registry and
//! `membership::admission` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use crate::dataplane;
use crate::membership::admission;
use crate::model::VipKey;
use crate::model::node::ClusterNode;
use crate::net::sockets::Sockets;
use crate::net::{self, Netns, NodeNet};
use crate::registry::{self, Endpoint, Registry, State, attachment_of, nodes};

/// How often a pod's sockets are listed.
const PACE: Duration = Duration::from_millis(200);

/// A pod that was taken out or brought back.
#[derive(Debug)]
pub struct Replica {
    /// The name that the caller gave.
    pub name: String,
    /// It gets connections once its check finds that it can answer.
    pub waits: bool,
    /// Its endpoints: VIP and attachment.
    endpoints: Vec<(VipKey, String)>,
}

/// Why it couldn't be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No replica has that name.
    #[error(
        "no replica on this node is {name}: expected the <namespace>/<name> of a pod, or a container's ID, as \
         `viproutectl status` shows them{}",
        on_others(nodes)
    )]
    Unknown {
        /// The name that the caller gave.
        name: String,
        /// The other nodes that have replicas of this node's VIPs.
        nodes: Vec<String>,
    },
    /// It is another node with its replicas.
    #[error(
        "{name} is another node ({node}), whose replicas are drained and brought back there: run the command on that \
         node, with the <namespace>/<name> of each pod, as `viproutectl status` shows them there"
    )]
    OtherNode {
        /// The name that the caller gave.
        name: String,
        /// The node.
        node: String,
    },
    /// Several of that name.
    #[error("{name} stands for {number} containers on this node: expected more digits of the ID")]
    Ambiguous {
        /// The beginning of an ID.
        name: String,
        /// How many begin so.
        number: usize,
    },
    /// Its ADD isn't finished, or its DEL is under way.
    #[error("{0} is being attached or removed at this moment: try again")]
    Fleeting(String),
    /// Another caller has undrained it.
    #[error("{0} was brought back meanwhile")]
    BroughtBack(String),
    /// The kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The VIP's tables.
    #[error(transparent)]
    Vip(#[from] dataplane::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

fn on_others(nodes: &[String]) -> String {
    match nodes {
        [] => String::new(),
        nodes => {
            format!("; if it is on another node, run the command there. Nodes that have replicas: {}", nodes.join(", "))
        }
    }
}

/// Takes a pod (`<namespace>/<name>`, or a container by its ID or the beginning of it) out of the groups of all its VIPs on
/// this node, or brings it back. A second call changes nothing.
pub fn set(registry: &Registry, name: &str, drained: bool) -> Result<Replica, Error> {
    let node = NodeNet::open()?;
    // Of another boot's replicas nothing is left but the record.
    if !registry.vips()?.is_empty() {
        registry.begin()?;
    }
    let mut found = find(registry, name)?;
    let mut changed = Vec::new();
    for (key, attachment) in found.endpoints {
        if let Some((_, state)) = admission::drain(&node, registry, (&key, &attachment), drained)? {
            found.waits |= state == State::Pending;
            changed.push((key, attachment));
        }
    }
    if changed.is_empty() {
        return Err(Error::Fleeting(found.name));
    }
    found.endpoints = changed;
    Ok(found)
}

fn find(registry: &Registry, name: &str) -> Result<Replica, Error> {
    let mut found = Replica { name: name.to_owned(), waits: false, endpoints: Vec::new() };
    let (mut containers, mut damage) = (BTreeSet::new(), None);
    let cluster = nodes::or_alone(nodes::load_others(registry));
    let mut others = BTreeMap::new();
    for key in registry.vips()? {
        for (attachment, endpoint) in registry.endpoints(&key)? {
            match endpoint {
                Ok(endpoint) if !endpoint.backend.is_local() => {
                    let known = cluster.as_ref().and_then(|cluster| cluster.by_address(endpoint.node));
                    let node =
                        known.map_or_else(|| endpoint.node.to_string(), |node| format!("{} ({})", node.name, node.id));
                    if name == attachment || is_node(name, &endpoint, known) {
                        return Err(Error::OtherNode { name: found.name, node });
                    }
                    others.insert(endpoint.node, node);
                }
                Ok(endpoint) if is_named(name, &attachment, &endpoint) => {
                    containers.extend(attachment_of(&attachment).map(|attachment| attachment.container_id));
                    found.endpoints.push((key.clone(), attachment));
                }
                Ok(_) => {}
                Err(e) => damage = Some(e),
            }
        }
    }
    // A pod whose sandbox was made anew may have two containers for a moment.
    match (found.endpoints.is_empty(), damage) {
        (false, _) if containers.len() > 1 && !name.contains('/') => {
            Err(Error::Ambiguous { name: found.name, number: containers.len() })
        }
        (false, _) => Ok(found),
        (true, Some(damage)) => Err(damage.into()),
        (true, None) => Err(Error::Unknown { name: found.name, nodes: others.into_values().collect() }),
    }
}

/// As status shows it, by its id or by its name.
fn is_node(name: &str, endpoint: &Endpoint, known: Option<&ClusterNode>) -> bool {
    let address = endpoint.node.to_string();
    name.strip_prefix("node ").unwrap_or(name) == address || known.is_some_and(|node| node.name == name)
}

/// Container IDs have no `/`, names of pods always.
fn is_named(name: &str, attachment: &str, endpoint: &Endpoint) -> bool {
    if name.contains('/') {
        return endpoint.pod.label().is_some_and(|label| label == name);
    }
    attachment.starts_with(name)
}

impl Replica {
    /// The VIPs it is a replica of, in a list.
    pub fn vips(&self) -> String {
        let names: BTreeSet<String> = self.endpoints.iter().map(|(key, _)| key.to_string()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Waits until none of its connections to its VIPs is left, or the time is over. Returns how many are left.
    pub fn wait(&self, registry: &Registry, limit: Option<Duration>) -> Result<usize, Error> {
        let start = Instant::now();
        loop {
            let left = self.connections(registry)?;
            let over = limit.is_some_and(|limit| start.elapsed() >= limit);
            if left == 0 || over {
                return Ok(left);
            }
            thread::sleep(PACE);
        }
    }

    /// Its connections to its VIPs. A pod that is gone has none.
    fn connections(&self, registry: &Registry) -> Result<usize, Error> {
        let mut number = 0;
        for (key, attachment) in &self.endpoints {
            let Some(endpoint) = registry.endpoint(key, attachment)? else { continue };
            if !endpoint.drained {
                return Err(Error::BroughtBack(self.name.clone()));
            }
            let Some(record) = registry.vip_record(key)? else { continue };
            let Some(netns) = Netns::open_if_alive(&endpoint.netns)? else { continue };
            let sockets = Sockets::open(&netns)?;
            for address in record.all_addresses() {
                number += sockets.connections(address)?.len();
            }
        }
        Ok(number)
    }
}
