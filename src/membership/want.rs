//! What a pod is to be in a VIP.

use std::collections::BTreeSet;

use crate::dataplane::ids::MAX_VIPS;
use crate::ebpf::PORTS as MAX_PORTS;
use crate::model::{CheckSpec, FamilyChoice, Port, PortMap, Probe, Recorded, Source, Transport, VipKey, VipPolicy};
use crate::registry::Endpoint;

/// A pod as a replica of one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The VIP.
    pub vip: VipKey,
    /// Who wants it.
    pub source: Source,
    /// What it serves there; none: everything.
    pub ports: Vec<PortMap>,
    /// Its share beside the other replicas'.
    pub weight: u8,
    /// What makes it ready; `None`: it is ready at once.
    pub health: Option<CheckSpec>,
    /// Its unbound UDP sockets answer from the VIP whose UDP port they have.
    pub udp_reply: bool,
    /// Its UDP flows keep their replica.
    pub udp_sticky: bool,
    /// By which families the VIP is to be served; `None`: by those of which it has an address.
    pub families: Option<FamilyChoice>,
    /// It may get new connections.
    pub admitted: bool,
    /// What is asked of the VIP, should this be its first replica here.
    pub policy: Option<VipPolicy>,
}

/// Wants that don't go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantError {
    /// More than a pod can be in.
    #[error("{0} VIPs are named: a pod can join {MAX_VIPS}")]
    TooMany(usize),
    /// The same VIP again.
    #[error("VIP {0} is named twice")]
    Twice(VipKey),
    /// More ports than the programs take.
    #[error("VIP {0} has more than {MAX_PORTS} ports")]
    TooManyPorts(VipKey),
    /// The same port again.
    #[error("{1} is named twice for VIP {0}")]
    PortTwice(VipKey, Port),
    /// A check that has no port to probe.
    #[error("the check \"{check}\" needs {needed} of VIP {vip}")]
    NoPort {
        /// The check.
        check: Box<CheckSpec>,
        /// The kind of port it probes.
        needed: &'static str,
        /// Where there is none.
        vip: VipKey,
    },
    /// Nothing says which VIP a socket answers from.
    #[error("to answer from a VIP takes UDP ports, as 53/udp")]
    NoReplyPort,
    /// Two VIPs say it.
    #[error("VIP {0} and another one of the pod have {1} both: its answers can't be told apart")]
    SharedReplyPort(VipKey, Port),
}

impl Want {
    /// Every port, no check, weight 1.
    pub fn new(vip: VipKey, source: Source) -> Self {
        Self {
            vip,
            source,
            ports: Vec::new(),
            weight: 1,
            health: None,
            udp_reply: false,
            udp_sticky: false,
            families: None,
            admitted: true,
            policy: None,
        }
    }

    /// What a replica is now. Ports and checks of a later version's are left out.
    pub fn of(vip: VipKey, endpoint: &Endpoint) -> Self {
        let Endpoint { source, weight, health, udp_reply, udp_sticky, families, admitted, .. } = endpoint;
        Self {
            vip,
            source: source.clone(),
            ports: endpoint.known_ports().collect(),
            weight: *weight,
            health: health.as_ref().and_then(Recorded::known).cloned(),
            udp_reply: *udp_reply,
            udp_sticky: *udp_sticky,
            families: families.as_ref().and_then(Recorded::known).copied(),
            admitted: *admitted,
            policy: None,
        }
    }

    /// The ports of its UDP sockets, each once.
    pub fn udp_ports(&self) -> impl Iterator<Item = Port> {
        let ports = self.ports.iter().map(|port| port.at_pod());
        ports.filter(|port| port.transport == Transport::Udp).collect::<BTreeSet<_>>().into_iter()
    }

    fn check(&self) -> Result<(), WantError> {
        self.check_ports()?;
        if self.ports.len() > MAX_PORTS {
            return Err(WantError::TooManyPorts(self.vip.clone()));
        }
        match (&self.health, self.port_lacking()) {
            (Some(check), Some(needed)) => {
                Err(WantError::NoPort { check: Box::new(check.clone()), needed, vip: self.vip.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Each port of the VIP's leads to one of the pod's.
    fn check_ports(&self) -> Result<(), WantError> {
        let mut seen = BTreeSet::new();
        match self.ports.iter().find(|listed| !seen.insert(listed.port)) {
            Some(twice) => Err(WantError::PortTwice(self.vip.clone(), twice.port)),
            None => Ok(()),
        }
    }

    /// A check of ports must have some to probe: what kind of port is missing.
    fn port_lacking(&self) -> Option<&'static str> {
        let is_tcp = |listed: &PortMap| listed.port.transport == Transport::Tcp;
        match self.health.as_ref()?.probe {
            Probe::Listen => self.ports.is_empty().then_some("a port"),
            Probe::Tcp => (!self.ports.iter().any(is_tcp)).then_some("a TCP port"),
            Probe::Http { .. } => None,
        }
    }
}

/// Whether one pod can be all this.
pub fn check(wants: &[Want]) -> Result<(), WantError> {
    if wants.len() > MAX_VIPS {
        return Err(WantError::TooMany(wants.len()));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = wants.iter().find(|want| !seen.insert(&want.vip)) {
        return Err(WantError::Twice(twice.vip.clone()));
    }
    wants.iter().try_for_each(Want::check)?;
    check_replies(wants)
}

/// A socket that is bound to no address is known by its port alone: that must say which VIP it answers from.
fn check_replies(wants: &[Want]) -> Result<(), WantError> {
    let replies = || wants.iter().filter(|want| want.udp_reply);
    let mut seen = BTreeSet::new();
    for want in replies() {
        if let Some(port) = want.udp_ports().find(|port| !seen.insert(*port)) {
            return Err(WantError::SharedReplyPort(want.vip.clone(), port));
        }
    }
    if seen.is_empty() && replies().next().is_some() { Err(WantError::NoReplyPort) } else { Ok(()) }
}
