//! What a network's configuration says of the VIPs of its pods.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{CheckSpec, Egress, GroupSpec, Recorded};

/// Where programs and maps are pinned unless `bpfDir` says otherwise.
pub const DEFAULT_BPF_DIR: &str = "/sys/fs/bpf/viproute";

/// The conflist entry's keys that a pod's VIPs are made by; recorded with the pod, so that it can join others later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network; the records that hold this have its name and `mtu` in fields of their own.
    #[serde(skip)]
    pub name: String,
    /// Of the veth pair, bytes; `None`: as the pod's interface has it.
    #[serde(skip)]
    pub mtu: Option<u32>,
    /// The node's address, where configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ip: Option<IpAddr>,
    /// The node's gateway, where configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// How a VIP's flows are spread.
    pub group: GroupSpec,
    /// Where programs and maps are pinned.
    pub bpf_dir: PathBuf,
    /// Whether packets follow the socket that holds their flow.
    pub flow_owner: bool,
    /// What may leave a pod with a VIP as the source.
    #[serde(default, skip_serializing_if = "Recorded::<Egress>::is_default")]
    pub egress: Recorded<Egress>,
    /// The check of pods whose annotations name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Recorded<CheckSpec>>,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            mtu: None,
            node_ip: None,
            gateway: None,
            group: GroupSpec::default(),
            bpf_dir: DEFAULT_BPF_DIR.into(),
            flow_owner: true,
            egress: Egress::Answer.into(),
            health: None,
        }
    }
}
