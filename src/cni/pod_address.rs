//! Which address is the pod's own: one of IPv4, where it has some.

use std::net::IpAddr;

use crate::cni::protocol::PrevResult;
use crate::model::Family;
use crate::net::link::Link;
use crate::net::{PodNet, address};

use super::error::Error;

/// The one that prevResult gives its interface. Where that names no interface of the pod (Calico, Cilium: none; AWS, ovs-cni:
/// the host veth; Nomad: one without sandbox), the first that the interface has; what prevResult has without an interface
/// goes before, if it is one of them.
pub fn find(result: &PrevResult, pod: &PodNet, interface: &Link) -> Result<IpAddr, Error> {
    let said = result.addresses(&interface.name);
    if let Some(address) = said.of_interface {
        return Ok(address);
    }
    let own = address::list(pod, Family::V4, Some(interface.index))?;
    let is_own = |address: &&IpAddr| own.iter().any(|own| own.address == **address);
    let first = own.iter().find(|own| own.global).or(own.first()).map(|own| own.address);
    let found = said.loose.iter().find(is_own).copied().or(first).or(said.loose.first().copied());
    match found {
        Some(found) => Ok(found),
        None => of_ipv6(result, pod, interface)?.ok_or_else(|| Error::NoPodAddress(interface.name.clone())),
    }
}

/// Of a pod without any of IPv4: its end of the pair is all that its VIPs need, of either family.
fn of_ipv6(result: &PrevResult, pod: &PodNet, interface: &Link) -> Result<Option<IpAddr>, Error> {
    if let Some(said) = result.others(&interface.name).first() {
        return Ok(Some(*said));
    }
    let own = address::list(pod, Family::V6, Some(interface.index))?;
    Ok(own.iter().find(|own| own.global && own.index == interface.index).map(|own| own.address))
}
