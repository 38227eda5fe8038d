//! The node: what its kernel can do, its own address and gateway.

use std::net::IpAddr;

use nix::sys::utsname;

use crate::dataplane::node::source;
use crate::model::NetworkSpec;
use crate::net::{NodeNet, route};

use super::Error;

/// Resilient groups and hash policy 3 came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// Where a replica is: with the pod's own address, a VIP's *base information*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's address.
    pub address: IpAddr,
    /// Its gateway, where it has one.
    pub gateway: Option<IpAddr>,
}

impl Node {
    /// From the configuration; what that leaves open, from the default route; failing that, the node's first address.
    pub fn find(net: &NodeNet, config: &NetworkSpec) -> Result<Self, Error> {
        if let Some(address) = config.node_ip
            && !route::is_local(net, address)?
        {
            return Err(Error::NotOurAddress(address));
        }
        if let (Some(address), gateway @ Some(_)) = (config.node_ip, config.gateway) {
            return Ok(Self { address, gateway });
        }
        let way = route::default_way_by_packet(net)?;
        let address = match config.node_ip {
            Some(address) => address,
            None => source::best(net, way.as_ref())?.ok_or(Error::NoNodeAddress)?,
        };
        Ok(Self { address, gateway: config.gateway.or(way.and_then(|way| way.hop.gateway)) })
    }
}

/// Refuses kernels that lack what VIPs need.
pub fn check_kernel() -> Result<(), Error> {
    let release = utsname::uname().map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into_owned());
    if is_recent(&release) { Ok(()) } else { Err(Error::KernelTooOld(release)) }
}

/// `6.1.0-13-amd64` and the like. What has no number to read is let through: the kernel will say what it lacks.
fn is_recent(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_KERNEL,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::is_recent;

    #[test]
    fn kernels_are_told_apart() {
        for good in ["5.14.0", "6.1.0-13-amd64", "5.14", "10.0", "strange"] {
            assert!(is_recent(good), "{good}");
        }
        for old in ["5.13.19", "4.18.0-553.el8.x86_64"] {
            assert!(!is_recent(old), "{old}");
        }
    }
}
