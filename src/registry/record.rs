//! What the files say. Fields that a later version adds survive a rewrite by this one (`other`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Port, Transport, VipKey};
use crate::cni::config::Group;

/// The version of every file's form.
pub const SCHEMA: u64 = 1;

fn schema() -> u64 {
    SCHEMA
}

/// `vip.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRecord {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// `<namespace>/<name>`.
    pub key: String,
    /// The VIP's address.
    pub address: Ipv4Addr,
    /// The lower bits of its group's id.
    pub slot: u32,
    /// The node's own address: `src` of the VIP's route.
    pub node: Ipv4Addr,
    /// How flows are spread.
    pub group: Group,
    /// Where the flow owner's maps are pinned that know this VIP; `null`: it does without.
    #[serde(default)]
    pub flow_owner: Option<PathBuf>,
    /// The address is no longer ours: nothing of it may be in the kernel's tables.
    #[serde(default)]
    pub withdrawn: bool,
    /// Addresses it had a moment ago, which live connections still use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<FormerAddress>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// An address that a VIP had. Nobody is told of it any more, and what still comes for it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Unix seconds: it goes then, whoever still uses it.
    pub until: u64,
}

impl VipRecord {
    /// Its address, and those it had that are still delivered.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.address).chain(self.former_addresses())
    }

    /// Those it had that are still delivered.
    pub fn former_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.former.iter().map(|former| former.address)
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
pub struct Endpoint {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// The CNI network it is attached by.
    pub network: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The node's address.
    pub node: Ipv4Addr,
    /// The node's gateway, where it has one.
    pub gateway: Option<Ipv4Addr>,
    /// The pod.
    pub pod: Pod,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The host end of its pair.
    pub device: String,
    /// The host end's index; `None` until the pair exists.
    pub ifindex: Option<u32>,
    /// The pod end's Ethernet address.
    pub mac: String,
    /// Its nexthop's id; `None` until the pair exists.
    pub nexthop: Option<u32>,
    /// Its network namespace, as an id of the node's (`link-netnsid` of the host end); `None` until the pair exists.
    #[serde(default)]
    pub netns_id: Option<u32>,
    /// What it serves under this VIP: `80/tcp`. Empty: everything.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Its unbound UDP sockets answer from this VIP.
    #[serde(default)]
    pub udp_reply: bool,
    /// Where that is so: the address the node itself asks the pod from, which is answered from the pod's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_from: Option<Ipv4Addr>,
    /// Its UDP flows keep their replica.
    #[serde(default)]
    pub udp_sticky: bool,
    /// Whether it gets connections.
    pub state: State,
    /// The check that says when it is ready, as `viproute.io/health` has it; `None`: it is ready from its ADD on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Somebody has taken it out by hand (`viproutectl drain`): it is draining whatever its check says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Its share beside the others', 1–255.
    pub weight: u8,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Endpoint {
    /// `<namespace>/<name>` of its pod where the runtime names it, else its attachment.
    pub fn pod_name(&self, attachment: &str) -> String {
        self.pod.label().unwrap_or_else(|| attachment.to_owned())
    }

    /// The UDP ports it serves under this VIP. What a later version may have written besides is left out.
    pub fn udp_ports(&self) -> impl Iterator<Item = u16> {
        let ports = self.ports.iter().filter_map(|text| text.parse::<Port>().ok());
        ports.filter(|port| port.transport == Transport::Udp).map(|port| port.number)
    }
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
    /// `<namespace>/<name>`; `None` where the runtime names it not.
    pub fn label(&self) -> Option<String> {
        (!self.name.is_empty()).then(|| format!("{}/{}", self.namespace, self.name))
    }
}

/// `attachments/<containerID>@<ifname>.json`: all that DEL needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// [`SCHEMA`].
    #[serde(default = "schema")]
    pub schema: u64,
    /// The CNI network it is attached by.
    pub network: String,
    /// The VIPs it joined, `<namespace>/<name>`.
    pub vips: Vec<String>,
    /// The pod's network namespace.
    pub netns: Netns,
    /// What the pod's interface had before: to be put back.
    pub former: Former,
    /// Of the veth pair, bytes; `None`: as the pod's interface has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
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

/// `net.ipv4.conf.<ifname>.…` of the pod before the ADD; where that isn't known, the kernel's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// `arp_ignore`
    pub arp_ignore: i32,
    /// `arp_announce`
    pub arp_announce: i32,
}

impl Netns {
    /// Device and inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// The same namespace is still there: paths are used again.
    pub fn is_still_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity())
    }
}

impl AttachmentRecord {
    /// The VIPs it joined; a name that is none is left out.
    pub fn keys(&self) -> impl Iterator<Item = VipKey> {
        self.vips.iter().filter_map(|text| text.parse().ok())
    }
}
