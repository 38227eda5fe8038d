//! What is kept of the API's objects: what Services take, some hundred bytes each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::lease::pools::{self, Labels};
use crate::model::{Family, Port, Transport, VipKey};

use super::asked::{self, Ask, Permitted};
use super::families::Families;
use super::policies::Policy;
use super::policy::{self, Clients};
use super::zones::Hints;
use super::{ports, sharing};

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The annotation of a pod that kubelet runs from a file of its own: the API's object mirrors it.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The label of a node that load balancers are to pass by, whatever its value.
pub const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The label of a node that says its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// What a kubelet says of its node while it ends its pods, because systemd is about to shut the machine down (`nodeshutdown` in its source).
const SHUTTING_DOWN: &str = "node is shutting down";
/// Taints of nodes that are down, or about to be.
const SHUT_DOWN: [&str; 2] = ["node.cloudprovider.kubernetes.io/shutdown", "node.kubernetes.io/out-of-service"];
/// The field of a status whose writer is of interest.
const INGRESS_FIELD: &str = "f:loadBalancer";
/// Ports of a Service that are kept: the API refuses more than this in a Service of any use.
const MAX_PORTS: usize = 128;
/// Labels of a pod that are kept.
const MAX_LABELS: usize = 256;

/// `<namespace>/<name>`, or a name alone where the kind has no namespace.
pub type Key = String;

/// Everything that is known of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// The Services of this load balancer's class.
    pub services: BTreeMap<Key, Service>,
    /// All slices.
    pub slices: BTreeMap<Key, Slice>,
    /// The pods of this node.
    pub pods: BTreeMap<Key, Pod>,
    /// The nodes.
    pub nodes: BTreeMap<Key, Node>,
    /// The ranges of Services' own addresses, by `ServiceCIDR`.
    #[serde(default)]
    pub ranges: BTreeMap<Key, Vec<String>>,
    /// The policies that say who may reach pods.
    #[serde(default)]
    pub policies: BTreeMap<Key, Policy>,
}

/// Which Services are this load balancer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// `spec.loadBalancerClass`.
    pub name: String,
    /// Those without a class too.
    pub is_default: bool,
    /// Which addresses they may ask for.
    pub permitted: Permitted,
    /// Labels of theirs that pools ask for.
    pub labels: BTreeSet<String>,
}

/// A Service of type `LoadBalancer`, of this load balancer's class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // as the API has them, in every combination
pub struct Service {
    /// Its identity: one that is made again under the same name is another.
    pub uid: String,
    /// When it was made, Unix seconds.
    pub created: i64,
    /// Its ports, by name.
    pub ports: Vec<ServicePort>,
    /// Endpoints count as ready whatever their state.
    pub publish_not_ready: bool,
    /// `externalTrafficPolicy: Local`.
    pub is_local: bool,
    /// Who its clients may be.
    #[serde(default)]
    pub clients: Clients,
    /// `trafficDistribution: PreferSameNode`.
    #[serde(default)]
    pub prefers_node: bool,
    /// For so many seconds a client's connections go to the same pod.
    #[serde(default)]
    pub affinity: Option<u32>,
    /// It is being deleted.
    pub is_ending: bool,
    /// The VIP that it names ([`sharing::VIP`]); empty: that of its own name.
    #[serde(default)]
    pub vip: String,
    /// Who of other namespaces may join its VIP ([`sharing::SHARED_WITH`]).
    #[serde(default)]
    pub shared_with: String,
    /// The address that it asks for.
    #[serde(default)]
    pub ask: Ask,
    /// The pool that it names ([`pools::ANNOTATION`]); empty: none.
    #[serde(default)]
    pub pool: String,
    /// Its labels, as far as pools ask for them.
    #[serde(default)]
    pub labels: Labels,
    /// The families that it is to have addresses of, and whether it needs them all.
    #[serde(default)]
    pub families: Families,
    /// What its status says.
    pub ingress: Vec<Ingress>,
    /// Who wrote that last.
    pub status_by: Option<String>,
    /// What its condition says of ports that aren't served.
    #[serde(default)]
    pub ports_error: Option<PortsError>,
}

/// A Service's condition about its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsError {
    /// What it says to people.
    pub message: String,
    /// When it began, Unix seconds.
    pub since: i64,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Empty where there is only one.
    pub name: String,
    /// Its number and protocol, as it is written; one of a protocol that VIPs don't have can't be read as a [`Port`].
    pub number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

impl ServicePort {
    /// As VIPs have it; `None`: SCTP.
    pub fn port(&self) -> Option<Port> {
        Some(Port { number: self.number, transport: transport(&self.protocol)? })
    }
}

/// An address in a Service's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// The address; empty for a name.
    pub ip: String,
    /// `Proxy` or `VIP`; empty where the API doesn't know it.
    pub mode: String,
    /// What it says of the Service's ports.
    #[serde(default)]
    pub ports: Vec<PortError>,
}

/// What a Service's status says of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortError {
    /// Its number.
    pub number: u16,
    /// Its protocol, as the Service has it.
    pub protocol: String,
    /// Why it isn't served, in a word; `None`: it is.
    pub error: Option<String>,
}

/// An `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // as the API has them, in every combination
pub struct Slice {
    /// Its endpoints' addresses are of IPv6.
    #[serde(default)]
    pub is_ipv6: bool,
    /// Its Service, `<namespace>/<name>`.
    pub service: Key,
    /// What the pods listen on, by the names of the Service's ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints on this node.
    pub here: Vec<Endpoint>,
    /// An endpoint elsewhere is ready.
    pub ready_elsewhere: bool,
    /// An endpoint elsewhere is serving, ready or not.
    pub serving_elsewhere: bool,
    /// For which zones its ready endpoints are.
    #[serde(default, skip_serializing_if = "Hints::is_none")]
    pub hints: Hints,
    /// An endpoint is no pod of any node: an address that somebody wrote there.
    pub has_foreign: bool,
    /// Where the API server is: of its own Service alone.
    pub api_servers: Vec<SocketAddr>,
}

/// A port that a slice's pods listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// The Service's port.
    pub name: String,
    /// `None`: any number, or a protocol that VIPs don't have.
    pub target: Option<(u16, Protocol)>,
}

/// A protocol that VIPs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// An endpoint of a slice on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its pod, `<namespace>/<name>`; empty: it is none.
    pub pod: Key,
    /// The pod's identity.
    pub uid: String,
    /// It takes new connections.
    pub is_ready: bool,
    /// It answers, ending or not.
    pub is_serving: bool,
    /// It is about to end.
    pub is_terminating: bool,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // as the API has them, in every combination
pub struct Pod {
    /// Its identity.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its deletion has begun.
    pub is_ending: bool,
    /// Its phase is `Failed` or `Succeeded`.
    pub is_over: bool,
    /// It is in the node's own network.
    pub is_in_host_network: bool,
    /// The runtime knows it by another identity.
    pub is_mirror: bool,
    /// Its labels; none: there are too many to keep.
    #[serde(default)]
    pub labels: Option<Labels>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Load balancers are to pass it by.
    pub is_excluded: bool,
    /// It is being shut down.
    #[serde(default)]
    pub is_shutting_down: bool,
    /// The zone that it is in; empty: none is known.
    #[serde(default)]
    pub zone: String,
    /// Where its pods' addresses are from, as far as the cluster gives them out.
    #[serde(default)]
    pub pod_ranges: Vec<String>,
}

fn transport(protocol: &str) -> Option<Transport> {
    match protocol {
        "TCP" => Some(Transport::Tcp),
        "UDP" => Some(Transport::Udp),
        _ => None,
    }
}

/// `<namespace>/<name>`.
pub fn key(meta: &ObjectMeta) -> Key {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl Class {
    /// Nobody serves the Service: it has no class, and no address after all.
    pub fn is_unclaimed(&self, service: &core::Service) -> bool {
        let Some(spec) = &service.spec else { return false };
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let has_address = status.is_some_and(|status| status.ingress.as_ref().is_some_and(|found| !found.is_empty()));
        let is_wanted = spec.type_.as_deref() == Some("LoadBalancer") && service.metadata.deletion_timestamp.is_none();
        !self.is_default && is_wanted && spec.load_balancer_class.is_none() && !has_address
    }

    fn kept(&self, labels: Option<&Labels>) -> Labels {
        let is_asked_for = |(name, _): &(&String, &String)| self.labels.contains(*name);
        let kept = labels.into_iter().flatten().filter(is_asked_for);
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The Service, if it is this load balancer's.
    pub fn service(&self, service: core::Service) -> Option<Service> {
        let spec = service.spec?;
        let is_ours = match spec.load_balancer_class.as_deref() {
            Some(class) => class == self.name,
            None => self.is_default,
        };
        if spec.type_.as_deref() != Some("LoadBalancer") || !is_ours {
            return None;
        }
        // What has no VIP's name can't be one: names of Services are shorter than that.
        let own = key(&service.metadata).parse::<VipKey>().ok()?;
        let port = |port: core::ServicePort| {
            Some(ServicePort {
                name: port.name.unwrap_or_default(),
                number: number(port.port)?,
                protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
            })
        };
        let annotation = |name: &str| {
            let all = service.metadata.annotations.as_ref();
            all.and_then(|all| all.get(name)).cloned().unwrap_or_default()
        };
        let status = service.status.unwrap_or_default();
        let ports_error = status.conditions.into_iter().flatten().find(|condition| condition.type_ == ports::CONDITION);
        let ports_error = ports_error.filter(|condition| condition.status == "True");
        let ingress = status.load_balancer.and_then(|status| status.ingress);
        let vip = annotation(sharing::VIP);
        let field = spec.load_balancer_ip.as_deref().unwrap_or_default();
        let of_vip = sharing::named(&own, &vip).ok();
        Some(Service {
            ask: self.permitted.ask(of_vip.as_ref(), field, &annotation(asked::ADDRESS)),
            vip,
            clients: policy::clients(&spec, service.metadata.annotations.as_ref()),
            affinity: policy::affinity(&spec),
            families: Families::of(&spec),
            prefers_node: spec.traffic_distribution.as_deref() == Some("PreferSameNode"),
            shared_with: annotation(sharing::SHARED_WITH),
            pool: annotation(pools::ANNOTATION).trim().to_owned(),
            labels: self.kept(service.metadata.labels.as_ref()),
            status_by: status_by(&service.metadata),
            uid: service.metadata.uid.unwrap_or_default(),
            created: service.metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            ports: spec.ports.unwrap_or_default().into_iter().filter_map(port).take(MAX_PORTS).collect(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            is_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            is_ending: service.metadata.deletion_timestamp.is_some(),
            ingress: ingress.unwrap_or_default().into_iter().map(Ingress::of).collect(),
            ports_error: ports_error.map(|condition| PortsError {
                message: condition.message,
                since: condition.last_transition_time.0.as_second(),
            }),
        })
    }
}

impl Service {
    /// The address that its status says: that of IPv4, by which the other one goes.
    pub fn stated(&self) -> Option<IpAddr> {
        Family::ALL.into_iter().find_map(|family| self.stated_of(family))
    }

    /// The address of that family that its status says.
    pub fn stated_of(&self, family: Family) -> Option<IpAddr> {
        let mut all = self.ingress.iter().filter_map(|ingress| ingress.ip.parse::<IpAddr>().ok());
        all.find(|address| Family::of(*address) == family)
    }
}

impl Ingress {
    fn of(ingress: core::LoadBalancerIngress) -> Self {
        let of = |port: core::PortStatus| {
            Some(PortError { number: number(port.port)?, protocol: port.protocol, error: port.error })
        };
        let ports = ingress.ports.into_iter().flatten().filter_map(of).take(MAX_PORTS).collect();
        Self { ip: ingress.ip.unwrap_or_default(), mode: ingress.ip_mode.unwrap_or_default(), ports }
    }
}

/// The field manager that has written the load balancer's status last.
fn status_by(meta: &ObjectMeta) -> Option<String> {
    let fields = meta.managed_fields.iter().flatten();
    let of_status = fields.filter(|entry| {
        entry.subresource.as_deref() == Some("status")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.to_string().contains(INGRESS_FIELD))
    });
    of_status.max_by_key(|entry| entry.time.as_ref().map(|time| time.0)).and_then(|entry| entry.manager.clone())
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

impl Slice {
    /// Of a slice of addresses that names its Service. `node`: this one.
    pub fn of(slice: discovery::EndpointSlice, node: &str) -> Option<Self> {
        let is_ipv6 = slice.address_type.parse::<Family>().ok()? == Family::V6;
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let service = format!("{}/{service}", slice.metadata.namespace.as_deref()?);
        let ports = slice.ports.unwrap_or_default();
        let api_port = ports.first().and_then(|port| number(port.port?)).filter(|_| service == super::API_SERVICE);
        let mut found = Self {
            is_ipv6,
            service,
            ports: ports.into_iter().take(MAX_PORTS).map(SlicePort::of).collect(),
            here: Vec::new(),
            ready_elsewhere: false,
            serving_elsewhere: false,
            hints: Hints::default(),
            has_foreign: false,
            api_servers: Vec::new(),
        };
        for endpoint in slice.endpoints.into_iter().flatten() {
            if let Some(port) = api_port {
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
                found.api_servers.extend(addresses.map(|address: IpAddr| SocketAddr::new(address, port)));
            }
            found.add(endpoint, node);
        }
        Some(found)
    }

    fn add(&mut self, endpoint: discovery::Endpoint, node: &str) {
        let conditions = endpoint.conditions.unwrap_or_default();
        // What isn't said is as good as true (discovery/v1).
        let is_ready = conditions.ready.unwrap_or(true);
        let is_serving = conditions.serving.unwrap_or(is_ready);
        let target = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        self.has_foreign |= target.is_none() || endpoint.node_name.is_none();
        if is_ready {
            self.hints.add(endpoint.node_name.as_deref(), endpoint.hints.as_ref());
        }
        if endpoint.node_name.as_deref() != Some(node) {
            self.ready_elsewhere |= is_ready;
            self.serving_elsewhere |= is_serving;
            return;
        }
        // The first address is the one that counts; others are its aliases.
        let Some(address) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { return };
        let target = target.unwrap_or_default();
        let pod = match (target.namespace, target.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => String::new(),
        };
        self.here.push(Endpoint {
            address,
            pod,
            uid: target.uid.unwrap_or_default(),
            is_ready,
            is_serving,
            is_terminating: conditions.terminating.unwrap_or_default(),
        });
    }
}

impl SlicePort {
    fn of(port: discovery::EndpointPort) -> Self {
        let transport = transport(port.protocol.as_deref().unwrap_or("TCP"));
        let target = port.port.and_then(number).zip(transport.map(Protocol::from));
        Self { name: port.name.unwrap_or_default(), target }
    }
}

impl Pod {
    /// Of a pod of this node.
    pub fn of(pod: core::Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        let addresses = status.pod_ips.into_iter().flatten().map(|address| address.ip);
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let labels = pod.metadata.labels.unwrap_or_default();
        Self {
            labels: Some(labels).filter(|labels| labels.len() <= MAX_LABELS),
            uid: pod.metadata.uid.unwrap_or_default(),
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
            is_ending: pod.metadata.deletion_timestamp.is_some(),
            is_over: matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")),
            is_in_host_network: pod.spec.and_then(|spec| spec.host_network).unwrap_or_default(),
            is_mirror: annotations.contains_key(MIRROR),
        }
    }
}

impl Node {
    /// Of any node. `ignores_label`: none is excluded.
    pub fn of(node: core::Node, ignores_label: bool) -> Self {
        let is_shutting_down = is_shutting_down(&node);
        let pod_ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let addresses = node.status.and_then(|status| status.addresses).into_iter().flatten();
        let labels = node.metadata.labels.unwrap_or_default();
        Self {
            addresses: addresses.filter_map(|address| address.address.parse().ok()).collect(),
            is_excluded: !ignores_label && labels.contains_key(EXCLUDED),
            is_shutting_down,
            zone: labels.get(ZONE).cloned().unwrap_or_default(),
            pod_ranges,
        }
    }
}

/// As its kubelet says it while it ends the pods, or the cloud's controller.
fn is_shutting_down(node: &core::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready" && condition.status != "True");
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    ready.any(|condition| condition.message.as_ref().is_some_and(|message| message.contains(SHUTTING_DOWN)))
        || taints.any(|taint| SHUT_DOWN.contains(&taint.key.as_str()))
}

#[cfg(test)]
pub mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    /// One of that Service without endpoints.
    pub fn slice(service: &str) -> Slice {
        let slice = discovery::EndpointSlice {
            address_type: "IPv4".into(),
            metadata: ObjectMeta {
                namespace: service.split_once('/').map(|(namespace, _)| namespace.to_owned()),
                labels: service.split_once('/').map(|(_, name)| [(SERVICE_NAME.to_owned(), name.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..discovery::EndpointSlice::default()
        };
        Slice::of(slice, "n1").unwrap()
    }

    #[test]
    fn the_label_that_load_balancers_pass_by_may_mean_nothing() {
        for (label, ignores_label, is_excluded) in
            [(EXCLUDED, false, true), (EXCLUDED, true, false), ("other", false, false)]
        {
            let labels = Some([(label.to_owned(), String::new())].into());
            let node = core::Node { metadata: ObjectMeta { labels, ..ObjectMeta::default() }, ..core::Node::default() };
            assert_eq!(Node::of(node, ignores_label).is_excluded, is_excluded, "{label}, {ignores_label}");
        }
    }
}
