//! What the files say. Fields that a later version adds survive a rewrite by this one (`other`).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{
    Addresses, AttachmentId, Backend, CheckSpec, DEFAULT_NAMESPACE, Egress, Family, FamilyChoice, GroupSpec, Mac,
    NetworkSpec, PortMap, Recorded, Served, Source, Transport, VipKey, VipPolicy,
};

use super::file::{Fields, Form};
use super::schema1::Names;

/// The version of every file's form.
pub const SCHEMA: u64 = 2;
/// The oldest one that is read, and written while the daemon of the node is one of before.
pub const OLDEST: u64 = 1;

fn schema() -> u64 {
    SCHEMA
}

fn yes() -> bool {
    true
}

/// `vip.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRecord {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// `<namespace>/<name>`.
    pub key: String,
    /// The VIP's addresses, at most one of a family.
    pub addresses: Addresses,
    /// The lower bits of its group's id.
    pub slot: u32,
    /// The node's own address: `src` of the VIP's route.
    pub node: IpAddr,
    /// How flows are spread.
    pub group: GroupSpec,
    /// Where the flow owner's maps are pinned that know this VIP; `null`: it does without.
    #[serde(default)]
    pub flow_owner: Option<PathBuf>,
    /// The address is no longer ours: nothing of it may be in the kernel's tables.
    #[serde(default)]
    pub withdrawn: bool,
    /// Addresses it had a moment ago, which live connections still use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous_addresses: Vec<PreviousAddress>,
    /// What Services ask of it.
    #[serde(default, skip_serializing_if = "VipPolicy::is_none")]
    pub policy: VipPolicy,
    /// The family that all of its replicas ask for, and beside which none asks for another (`viproute.io/families`); `None`: it is served by
    /// all addresses that it has. Services go before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Recorded<Family>>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// An address that a VIP had. It is no longer advertised, and what still comes for it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousAddress {
    /// The address.
    pub address: IpAddr,
    /// Unix seconds: it is removed then, even if connections still use it.
    pub until: u64,
}

impl VipRecord {
    /// The address to show where there is room for one.
    pub fn address(&self) -> IpAddr {
        self.addresses.first()
    }

    /// The first address by which it is served; where there is none, the first that it has.
    pub fn served_address(&self) -> IpAddr {
        self.served_addresses().next().unwrap_or_else(|| self.address())
    }

    /// Those of its addresses by which it is served.
    pub fn served_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|address| self.permits(Family::of(*address)))
    }

    /// Addresses of its that are kept for it, and by which it isn't served.
    pub fn unserved_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|address| !self.permits(Family::of(*address)))
    }

    /// Whether an address of that family is one by which it is served: what Services say goes before what replicas ask for.
    pub fn permits(&self, family: Family) -> bool {
        let of_services = self.policy.family.as_ref().and_then(Recorded::known);
        let only = of_services.or_else(|| self.family.as_ref().and_then(Recorded::known));
        only.is_none_or(|only| *only == family)
    }

    /// Its addresses, and those it had that are still delivered.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().chain(self.previous_addresses())
    }

    /// Whether it has an address of IPv6, or had one that is still delivered.
    pub fn has_ipv6(&self) -> bool {
        self.all_addresses().any(|address| address.is_ipv6())
    }

    /// Those it had that are still delivered.
    pub fn previous_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.previous_addresses.iter().map(|previous| previous.address)
    }
}

/// Whether a replica gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not yet.
    Pending,
    /// Yes.
    Ready,
    /// No new ones.
    Draining,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Ready, Self::Draining];

    /// As the files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// `endpoints/<containerID>@<ifname>.json`: a replica, and where it is (its *base information*: its address, its node's
/// address, that node's gateway).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // each is about something else, in every combination
pub struct Endpoint {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// The CNI network it is attached by.
    pub network: String,
    /// The pod's addresses.
    pub addresses: Addresses,
    /// The node's address.
    pub node: IpAddr,
    /// The node's gateway, where it has one.
    pub gateway: Option<IpAddr>,
    /// What the group's member leads to.
    #[serde(default, skip_serializing_if = "Backend::is_local")]
    pub backend: Backend,
    /// The pod.
    #[serde(default)]
    pub pod: Pod,
    /// The pod's network namespace.
    #[serde(default)]
    pub netns: PathBuf,
    /// The host veth of its pair.
    pub device: String,
    /// The host veth's index; `None` until the pair exists.
    pub ifindex: Option<u32>,
    /// The container veth's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Recorded<Mac>>,
    /// Its nexthop's id; `None` until the pair exists.
    pub nexthop: Option<u32>,
    /// Its network namespace, as an id of the node's (`link-netnsid` of the host veth); `None` until the pair exists.
    #[serde(default)]
    pub netns_id: Option<u32>,
    /// What it serves under this VIP: `80/tcp`, or `80:8080/tcp` where its sockets have another number. Empty: everything.
    #[serde(default)]
    pub ports: Vec<Recorded<PortMap>>,
    /// What made it a replica.
    #[serde(default, skip_serializing_if = "Source::is_annotation")]
    pub source: Source,
    /// Its unbound UDP sockets answer from this VIP.
    #[serde(default)]
    pub udp_reply: bool,
    /// Where that is so: which of the pod's reply tables is this VIP's; `None`: that of its place in the attachment's list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<u8>,
    /// Where that is so: the address the node itself asks the pod from, which is answered from the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_source_address: Option<IpAddr>,
    /// Its UDP flows keep their replica.
    #[serde(default)]
    pub udp_sticky: bool,
    /// What may leave it with this VIP as the source (`"vipEgress"`).
    #[serde(default, skip_serializing_if = "Recorded::<Egress>::is_default")]
    pub egress: Recorded<Egress>,
    /// Whether it gets connections.
    pub state: State,
    /// The check that says when it is ready, as `viproute.io/health` has it; `None`: it is ready from its ADD on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Recorded<CheckSpec>>,
    /// An operator has drained it (`viproutectl drain`): it is draining whatever its check says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// It may get new connections, as its source says (a Service: that its pod is ready). Without that it is draining, or pending still.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub admitted: bool,
    /// Its share beside the others', 1–255.
    pub weight: u8,
    /// By which families it wants the VIP to be served; `None`: by those of which that has an address. Of another node: what all of its replicas
    /// want.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub families: Option<Recorded<FamilyChoice>>,
    /// Of another node: which of its replicas' weight serves which port; `None`: all of them serve every port, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Recorded<Served>>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Endpoint {
    /// `<namespace>/<name>` of its pod where the runtime names it, else its attachment. Another node with all its replicas: `node` and
    /// its address.
    pub fn pod_name(&self, attachment: &str) -> String {
        match self.backend {
            Backend::Local => self.pod.label().unwrap_or_else(|| attachment.to_owned()),
            Backend::Remote(_) => format!("node {}", self.node),
        }
    }

    /// The pod's address to show where there is room for one.
    pub fn address(&self) -> IpAddr {
        self.addresses.first()
    }

    /// What it serves under this VIP, as far as this version knows it.
    pub fn known_ports(&self) -> impl Iterator<Item = PortMap> {
        self.ports.iter().filter_map(Recorded::known).copied()
    }

    /// The UDP ports that its sockets have for this VIP, as far as this version knows them.
    pub fn udp_ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.known_ports().map(PortMap::at_pod);
        ports.filter(|port| port.transport == Transport::Udp).map(|port| port.number)
    }

    /// What a later version wrote that this one doesn't understand.
    pub fn unknown(&self) -> Vec<Unknown> {
        unknown(self.mac.as_ref(), &self.ports, &self.egress, self.health.as_ref())
    }
}

/// A value of a record that this version doesn't understand: a later one wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unknown {
    /// What it would be: `port`, `check`, `Ethernet address`, `vipEgress`, `VIP`.
    pub what: &'static str,
    /// As it was written.
    pub text: String,
}

pub(super) fn unknown(
    mac: Option<&Recorded<Mac>>,
    ports: &[Recorded<PortMap>],
    egress: &Recorded<Egress>,
    health: Option<&Recorded<CheckSpec>>,
) -> Vec<Unknown> {
    let of = |what, text: &str| Unknown { what, text: text.to_owned() };
    let mac = mac.and_then(Recorded::other).map(|text| of("Ethernet address", text));
    let ports = ports.iter().filter_map(Recorded::other).map(|text| of("port", text));
    let egress = egress.other().map(|text| of("vipEgress", text));
    let health = health.and_then(Recorded::other).map(|text| of("check", text));
    mac.into_iter().chain(ports).chain(egress).chain(health).collect()
}

/// The pod, as the runtime names it. Empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Pod {
    /// The runtime says nothing of it.
    pub fn is_unnamed(&self) -> bool {
        *self == Self::default()
    }

    /// `<namespace>/<name>`; `None` where the runtime names it not. What can't be printed is escaped: names are the pod's
    /// own word, and go onto terminals and into logs.
    pub fn label(&self) -> Option<String> {
        let namespace = if self.namespace.is_empty() { DEFAULT_NAMESPACE } else { &self.namespace };
        let label = format!("{namespace}/{}", self.name);
        (!self.name.is_empty()).then(|| label.escape_debug().to_string())
    }
}

/// `attachments/<containerID>@<ifname>.json`: all that DEL needs, and all that the pod needs to join other VIPs. A pod that
/// is registered, or has left its last VIP, is in none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// The CNI network it is attached by; empty where none is known.
    pub network: String,
    /// The VIPs it joined, `<namespace>/<name>`.
    pub vips: Vec<Recorded<VipKey>>,
    /// VIPs that it is joining or leaving at this moment. A call that takes the free lock and finds some takes the
    /// pod out of them: the call that recorded them has died.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changing: Vec<Recorded<VipKey>>,
    /// The pod's network namespace.
    pub netns: Netns,
    /// What the pod's interface had before: to be put back.
    pub saved_sysctls: SavedSysctls,
    /// Of the veth pair, bytes; `None`: as the pod's interface has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Pod::is_unnamed")]
    pub pod: Pod,
    /// The pod's address; `None`: not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its network's settings; `None`: not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<NetworkSpec>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A network namespace, so that another one at the same path isn't taken for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Netns {
    /// Where the runtime showed it.
    pub path: PathBuf,
    /// Device number of its inode.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands over a reference
fn is_off(setting: &i32) -> bool {
    *setting == 0
}

/// `net.ipv4.conf.<ifname>.…` of the pod before the ADD; where that isn't known, the kernel's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSysctls {
    /// `arp_ignore`
    pub arp_ignore: i32,
    /// `arp_announce`
    pub arp_announce: i32,
    /// `rp_filter` of `net.ipv4.conf.all`, where it may be lowered; none where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_rp_filter: Option<i32>,
    /// `net.ipv4.ip_nonlocal_bind` of the pod.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nonlocal_bind: i32,
    /// `net.ipv6.conf.<ifname>.use_oif_addrs_only`
    #[serde(default, skip_serializing_if = "is_off")]
    pub use_oif_addrs_only: i32,
}

impl Netns {
    /// The namespace at that path. An error: nothing is there.
    pub fn at(path: &Path) -> std::io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// The attachment of its pod where no runtime has named one.
    pub fn attachment(&self, ifname: &str) -> AttachmentId {
        AttachmentId::by_netns(self.identity(), ifname)
    }

    /// Device and inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// The same namespace is still there: paths are used again. So is one that can't be looked at (`/proc/PID/ns/net` takes
    /// `CAP_SYS_PTRACE`, ptrace(2)): what lives must not be taken for dead.
    pub fn is_still_there(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()) == self.identity(),
            Err(e) => !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}

impl AttachmentRecord {
    /// Of a pod that is in no VIP.
    pub fn new(network: NetworkSpec, netns: Netns) -> Self {
        Self {
            schema: SCHEMA,
            network: network.name.clone(),
            vips: Vec::new(),
            changing: Vec::new(),
            netns,
            saved_sysctls: SavedSysctls::default(),
            mtu: network.mtu,
            pod: Pod::default(),
            address: None,
            spec: Some(network),
            other: BTreeMap::new(),
        }
    }

    /// The VIPs it joined; as far as this version knows such names.
    pub fn keys(&self) -> impl Iterator<Item = VipKey> {
        self.vips.iter().filter_map(Recorded::known).cloned()
    }

    /// The VIPs it is joining or leaving.
    pub fn changing(&self) -> impl Iterator<Item = VipKey> {
        self.changing.iter().filter_map(Recorded::known).cloned()
    }

    /// The pod is in no VIP, and on its way into none: nothing was made for it.
    pub fn is_idle(&self) -> bool {
        self.vips.is_empty() && self.changing.is_empty()
    }

    /// Its network's settings, as far as they are recorded.
    pub fn network_spec(&self) -> Option<NetworkSpec> {
        self.spec.clone().map(|spec| NetworkSpec { name: self.network.clone(), mtu: self.mtu, ..spec })
    }

    /// What a later version wrote that this one doesn't understand.
    pub fn unknown(&self) -> Vec<Unknown> {
        let others = self.vips.iter().filter_map(Recorded::other);
        others.map(|text| Unknown { what: "VIP", text: text.to_owned() }).collect()
    }
}

const VIP: Names = Names { renamed: &[("former", "previous_addresses")], has_address: true };
const ENDPOINT: Names = Names { renamed: &[("asked_from", "node_source_address")], has_address: true };
const ATTACHMENT: Names = Names { renamed: &[("former", "saved_sysctls")], has_address: false };

impl Form for VipRecord {
    const SCHEMA: u64 = SCHEMA;

    fn upgrade(fields: &mut Fields) {
        VIP.upgrade(fields);
    }

    fn downgrade(fields: &mut Fields) -> Result<(), &'static str> {
        VIP.downgrade(fields)
    }
}

impl Form for Endpoint {
    const SCHEMA: u64 = SCHEMA;

    fn upgrade(fields: &mut Fields) {
        ENDPOINT.upgrade(fields);
    }

    fn downgrade(fields: &mut Fields) -> Result<(), &'static str> {
        ENDPOINT.downgrade(fields)
    }
}

impl Form for AttachmentRecord {
    const SCHEMA: u64 = SCHEMA;

    fn upgrade(fields: &mut Fields) {
        ATTACHMENT.upgrade(fields);
    }

    fn downgrade(fields: &mut Fields) -> Result<(), &'static str> {
        ATTACHMENT.downgrade(fields)
    }
}
