//! What keeps a pod from serving a VIP that has an address of IPv6. It is refused, never served in part.

use std::net::IpAddr;

use crate::dataplane::attachment::HostVeth;
use crate::ebpf::{Hook, Programs};

use super::Error;

/// What every link of IPv6 takes (RFC 8200, 5). On a narrower one the kernel has none.
const LEAST_MTU: u32 = 1280;

/// Whether a pair of that MTU can carry what its gateway says it must.
pub(super) fn check_mtu(gateway: IpAddr, mtu: u32) -> Result<(), Error> {
    if gateway.is_ipv6() && mtu < LEAST_MTU { Err(Error::NarrowForIpv6(mtu)) } else { Ok(()) }
}

/// The same of the host veth itself.
pub(super) fn check_device(gateway: IpAddr, host_veth: &HostVeth) -> Result<(), Error> {
    if gateway.is_ipv6() && !host_veth.can_carry_ipv6() {
        return Err(Error::NoIpv6(host_veth.link.name.clone()));
    }
    Ok(())
}

/// The same of the programs on it: without theirs such packets would be dropped.
pub(super) fn check_programs(gateway: IpAddr, programs: &Programs) -> Result<(), Error> {
    let knows_ipv6 = programs.iter().any(|program| program.spec.hook == Hook::HostEgressIpv6);
    if gateway.is_ipv6() && !knows_ipv6 { Err(Error::NoIpv6Programs) } else { Ok(()) }
}
