//! Which VIPs a pod joins, and what else its annotations say.

use std::collections::BTreeSet;

use crate::bpf::PORTS as MAX_PORTS;
use crate::cni::{Call, Config};
use crate::health::{self, Check, Probe};
use crate::registry::{BadKey, Port, Transport, VipKey};
use crate::vip::ids::MAX_VIPS;

use super::error::Error;

/// Annotations of ours begin with this.
const PREFIX: &str = "viproute.io/";
const VIP: &str = "viproute.io/vip";
const PORTS: &str = "viproute.io/ports";
const WEIGHT: &str = "viproute.io/weight";
const HEALTH: &str = "viproute.io/health";
const UDP_REPLY: &str = "viproute.io/udp-reply";
const UDP_STICKY: &str = "viproute.io/udp-sticky";
/// The namespace of a container that has none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a pod asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership {
    /// The VIPs it joins, at least one.
    pub vips: Vec<VipKey>,
    /// What it serves under each of them, in their order; none: everything.
    pub ports: Vec<Vec<Port>>,
    /// Its share beside the other replicas'.
    pub weight: u8,
    /// What makes it ready; `None`: its ADD.
    pub health: Option<Check>,
    /// Its unbound UDP sockets answer from the VIP whose UDP port they have.
    pub udp_reply: bool,
    /// Its UDP flows keep their replica.
    pub udp_sticky: bool,
}

impl Membership {
    /// The VIPs and what is served under each.
    pub fn services(&self) -> impl Iterator<Item = (&VipKey, &[Port])> {
        self.vips.iter().zip(self.ports.iter().map(Vec::as_slice))
    }
}

/// Reads a pod's membership. `None`: it names no VIP, which is most pods.
pub fn read(call: &Call, config: &Config) -> Result<Option<Membership>, Error> {
    let annotated = config.annotations.get(VIP).map(|text| split(text));
    if annotated.is_none() && config.vips.is_empty() {
        return Ok(None);
    }
    let namespace = match call.pod.namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    let mut vips = Vec::new();
    for name in annotated.unwrap_or_default() {
        vips.push(key(VIP, namespace, name, false)?);
    }
    for name in &config.vips {
        vips.push(key("\"vips\"", namespace, name.trim(), true)?);
    }
    check_list(&vips)?;
    check_annotations(config)?;
    let annotation = |key| config.annotations.get(key).map(String::as_str);
    let ports = match annotation(PORTS) {
        Some(text) => PortList { namespace, vips: &vips }.read(text)?,
        None => vec![Vec::new(); vips.len()],
    };
    let weight = annotation(WEIGHT).map_or(Ok(1), weight)?;
    let health = annotation(HEALTH).map_or_else(|| Ok(config.health.clone()), health)?;
    let udp_reply = annotation(UDP_REPLY).map_or(Ok(false), udp_reply)?;
    let udp_sticky = annotation(UDP_STICKY).map_or(Ok(false), udp_sticky)?;
    let membership = Membership { vips, ports, weight, health, udp_reply, udp_sticky };
    check_health(&membership)?;
    if udp_reply {
        check_replies(&membership)?;
    }
    Ok(Some(membership))
}

/// A comma list; blanks around the commas don't matter.
fn split(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).collect()
}

/// Only the conflist may name another namespace's VIP: an annotation is the pod's own word.
fn key(what: &str, namespace: &str, name: &str, may_be_qualified: bool) -> Result<VipKey, Error> {
    if may_be_qualified && name.contains('/') {
        return name.parse().map_err(|bad: BadKey| invalid(what, &bad.value, bad.expected));
    }
    VipKey::new(namespace, name).map_err(|bad| {
        let what = if bad.value == name { what } else { "K8S_POD_NAMESPACE" };
        invalid(what, &bad.value, bad.expected)
    })
}

/// So much of a bad value is shown; an annotation may have a quarter of a megabyte, and errors go into logs.
const MAX_SHOWN: usize = 200;

fn invalid(what: &str, value: &str, expected: &'static str) -> Error {
    let mut shown: String = value.chars().take(MAX_SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    Error::Invalid { what: what.to_owned(), value: shown, expected }
}

fn check_list(vips: &[VipKey]) -> Result<(), Error> {
    if vips.len() > MAX_VIPS {
        let text = format!("{} VIPs are named: a pod can join {MAX_VIPS} ({VIP} and \"vips\" together)", vips.len());
        return Err(Error::Membership(text));
    }
    let mut seen = BTreeSet::new();
    match vips.iter().find(|vip| !seen.insert(*vip)) {
        Some(twice) => Err(Error::Membership(format!("VIP {twice} is named twice ({VIP} and \"vips\" together)"))),
        None => Ok(()),
    }
}

/// A misspelt annotation of ours must not be taken for none.
fn check_annotations(config: &Config) -> Result<(), Error> {
    let known = [VIP, PORTS, WEIGHT, HEALTH, UDP_REPLY, UDP_STICKY];
    match config.annotations.keys().find(|key| key.starts_with(PREFIX) && !known.contains(&key.as_str())) {
        Some(key) => {
            Err(Error::Membership(format!("annotation {key:?} is none of viproute's: expected {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// What the list of ports is read with.
struct PortList<'a> {
    namespace: &'a str,
    vips: &'a [VipKey],
}

impl PortList<'_> {
    /// `80/tcp,web=53/udp`: for all VIPs of the pod, or for one. The ports of each VIP, in their order.
    fn read(&self, text: &str) -> Result<Vec<Vec<Port>>, Error> {
        let mut ports = vec![Vec::new(); self.vips.len()];
        for item in split(text) {
            let (of, port) = match item.split_once('=') {
                Some((name, port)) => (Some(self.place(name)?), port),
                None => (None, item),
            };
            let port: Port = port.parse().map_err(|_| bad_port(item))?;
            for (place, ports) in ports.iter_mut().enumerate().filter(|(place, _)| of.is_none_or(|of| of == *place)) {
                self.add(place, ports, port)?;
            }
        }
        match self.vips.iter().zip(&ports).find(|(_, ports)| ports.is_empty()) {
            Some((vip, _)) => Err(Error::Membership(format!("{PORTS} names no port for VIP {vip}"))),
            None => Ok(ports),
        }
    }

    /// The place of the VIP of that name in the pod's list: as in the annotation, or `<namespace>/<name>`.
    fn place(&self, name: &str) -> Result<usize, Error> {
        let key = key(PORTS, self.namespace, name, true)?;
        let unknown = || Error::Membership(format!("{PORTS} names VIP {name:?}, which the pod doesn't join"));
        self.vips.iter().position(|vip| *vip == key).ok_or_else(unknown)
    }

    fn add(&self, place: usize, ports: &mut Vec<Port>, port: Port) -> Result<(), Error> {
        let vip = &self.vips[place];
        if ports.contains(&port) {
            return Err(Error::Membership(format!("{PORTS} names {port} twice for VIP {vip}")));
        }
        if ports.len() == MAX_PORTS {
            return Err(Error::Membership(format!("{PORTS} names more than {MAX_PORTS} ports for VIP {vip}")));
        }
        ports.push(port);
        Ok(())
    }
}

fn bad_port(item: &str) -> Error {
    let expected = "a list like 80/tcp,53/udp or web=80/tcp,dns=53/udp, ports from 1 to 65535";
    invalid(PORTS, item, expected)
}

/// `vip`.
fn udp_reply(text: &str) -> Result<bool, Error> {
    if text == "vip" { Ok(true) } else { Err(invalid(UDP_REPLY, text, "\"vip\"")) }
}

/// A socket that is bound to no address is known by its port alone: that must say which VIP it answers from.
fn check_replies(membership: &Membership) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for (vip, ports) in membership.services() {
        for port in ports.iter().filter(|port| port.transport == Transport::Udp) {
            if !seen.insert(port) {
                let text =
                    format!("{UDP_REPLY} can't be \"vip\": VIP {vip} and another one of the pod have {port} both");
                return Err(Error::Membership(text));
            }
        }
    }
    if seen.is_empty() {
        let text = format!("{UDP_REPLY} is \"vip\": expected UDP ports in {PORTS}, as 53/udp");
        return Err(Error::Membership(text));
    }
    Ok(())
}

fn health(text: &str) -> Result<Option<Check>, Error> {
    health::read(text).map_err(|_| invalid(HEALTH, text, health::EXPECTED))
}

/// A check of ports must have some to look at, under each VIP.
fn check_health(membership: &Membership) -> Result<(), Error> {
    let Some(check) = &membership.health else { return Ok(()) };
    let has_enough = |ports: &[Port]| match check.probe {
        Probe::Listen => !ports.is_empty(),
        Probe::Tcp => ports.iter().any(|port| port.transport == Transport::Tcp),
        Probe::Http { .. } => true,
    };
    match membership.services().find(|(_, ports)| !has_enough(ports)) {
        Some((vip, _)) => {
            let kind = if check.probe == Probe::Tcp { "a TCP port" } else { "a port" };
            let text = format!("{HEALTH} (or \"health\") is \"{check}\": expected {kind} for VIP {vip} in {PORTS}");
            Err(Error::Membership(text))
        }
        None => Ok(()),
    }
}

fn udp_sticky(text: &str) -> Result<bool, Error> {
    text.parse().map_err(|_| invalid(UDP_STICKY, text, "\"true\" or \"false\""))
}

fn weight(text: &str) -> Result<u8, Error> {
    text.parse().ok().filter(|weight| *weight > 0).ok_or_else(|| invalid(WEIGHT, text, "a number from 1 to 255"))
}

#[cfg(test)]
mod tests;
