//! What of a pair and its pod is IPv6's own: the settings of its two devices, none of which is written by netlink.
//!
//! Nothing is generated, asked for or announced on a pair: neighbours are permanent, addresses are the VIPs' alone. The host veth needs no
//! address to forward.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::model::Family;
use crate::net::{self, NodeNet, PodNet, route, sysctl};

use super::settings::OWN_SOURCES_ONLY;

/// Of `vip0`. The order counts: a pod may have IPv6 switched off for new devices (`default.disable_ipv6`), which refuse all else then.
/// `keep_addr_on_down`: a device that goes down and up again would lose its VIPs, as it doesn't in IPv4.
const OF_POD: [(&str, i64); 6] = [
    ("disable_ipv6", 0),
    ("accept_ra", 0),
    ("autoconf", 0),
    ("accept_dad", 0),
    ("accept_redirects", 0),
    ("keep_addr_on_down", 1),
];

/// Of the host veth, and of the tunnel's device. Forwarding it has from the node's (`all.forwarding`): a write of its own would make the kernel forget the default
/// routes that it has by router advertisements, of every device (`addrconf_fixup_forwarding`).
const OF_HOST: [(&str, i64); 3] = [("disable_ipv6", 0), ("accept_ra", 0), ("accept_redirects", 0)];

/// A namespace in which steps are taken.
pub trait Namespace {
    /// Sends netlink's requests.
    fn ask(&self, requests: &[net::Request]) -> net::Result<()>;
    /// Gives settings these values.
    fn set(&self, settings: &[(String, i64)]) -> net::Result<()>;
    /// Waits until the table `local` has a device's address, not longer than [`MOMENT`].
    fn await_local(&self, index: u32, address: IpAddr) -> net::Result<()>;
}

/// The kernel makes that route by a task of its own, which waits for a lock at most.
const MOMENT: Duration = Duration::from_millis(500);

fn await_local(socket: &net::Socket, index: u32, address: IpAddr) -> net::Result<()> {
    let end = Instant::now() + MOMENT;
    while !route::locals(socket, Family::of(address), index)?.contains(&address) && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Namespace for NodeNet {
    fn ask(&self, requests: &[net::Request]) -> net::Result<()> {
        self.apply(requests)
    }

    fn set(&self, settings: &[(String, i64)]) -> net::Result<()> {
        set_all(settings)
    }

    fn await_local(&self, index: u32, address: IpAddr) -> net::Result<()> {
        await_local(self, index, address)
    }
}

impl Namespace for PodNet {
    fn ask(&self, requests: &[net::Request]) -> net::Result<()> {
        self.apply(requests)
    }

    fn set(&self, settings: &[(String, i64)]) -> net::Result<()> {
        self.netns().run(|| set_all(settings))?
    }

    fn await_local(&self, index: u32, address: IpAddr) -> net::Result<()> {
        await_local(self, index, address)
    }
}

fn set_all(settings: &[(String, i64)]) -> net::Result<()> {
    settings.iter().try_for_each(|(name, value)| sysctl::ensure(name, *value))
}

/// A device's settings that differ.
pub(in crate::dataplane) type Wrong = Vec<(String, i64)>;

/// By which [`sysctl`] has it.
pub(super) fn name(device: &str, setting: &str) -> String {
    sysctl::of_device(Family::V6, "conf", device, setting)
}

/// All of them, of a device that has none yet.
fn all(device: &str, wanted: &[(&str, i64)]) -> Wrong {
    wanted.iter().map(|(setting, value)| (name(device, setting), *value)).collect()
}

/// Those that have another value, or can't be read.
fn wrong(device: &str, wanted: &[(&str, i64)]) -> Wrong {
    all(device, wanted).into_iter().filter(|(name, value)| sysctl::get(name).ok() != Some(*value)).collect()
}

/// A host veth's, or the tunnel's.
pub(in crate::dataplane) fn of_host(device: &str) -> Wrong {
    wrong(device, &OF_HOST)
}

/// Of a host veth that was just made.
pub(super) fn of_new_host(device: &str) -> Wrong {
    all(device, &OF_HOST)
}

/// `vip0`'s.
pub(super) fn of_pod(pod: &PodNet, device: &str) -> net::Result<Wrong> {
    pod.netns().run(|| wrong(device, &OF_POD))
}

/// Those of a pod's own interface.
pub(super) fn of_interface(pod: &PodNet, device: &str) -> net::Result<Wrong> {
    pod.netns().run(|| wrong(device, &[OWN_SOURCES_ONLY]))
}

/// Of a `vip0` that was just made.
pub(super) fn of_new_pod(device: &str) -> Wrong {
    all(device, &OF_POD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_have_a_dot_in_its_name() {
        assert_eq!(name("eth0.100", "use_oif_addrs_only"), "net.ipv6.conf.eth0/100.use_oif_addrs_only");
        assert_eq!(of_new_host("vip0")[0], ("net.ipv6.conf.vip0.disable_ipv6".to_owned(), 0));
    }
}
