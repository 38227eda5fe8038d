//! The devices by which packets of pods' own interfaces come in: the node's ends of their pairs, and where these are a
//! bridge's ports, the bridge. Never one by which other nodes' packets come.

use std::collections::BTreeSet;

use crate::net::link::Link;

/// More than a node has of them.
pub const MOST: u32 = 4096;

/// What the node's links are compared with.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The pods' network namespaces, as the node's ids.
    pub netns: BTreeSet<u32>,
    /// The indexes of the pods' VIP pairs.
    pub pairs: BTreeSet<u32>,
    /// The indexes of the links by which VIPs are answered for: that to the gateways, and perhaps another one for IPv6 addresses.
    pub uplinks: BTreeSet<u32>,
}

/// Their names. A bridge with a port that leads to no other namespace on this machine may take in other nodes' packets, and
/// is none of them; nor is a macvlan's parent.
pub fn of(links: &[Link], about: &About) -> BTreeSet<String> {
    let is_pods = |link: &&Link| {
        link.peer_netns.is_some_and(|id| about.netns.contains(&id)) && !about.pairs.contains(&link.index)
    };
    let found = links.iter().filter(is_pods).filter_map(|link| match link.master {
        None => Some(link),
        Some(master) => {
            let mut ports = links.iter().filter(|port| port.master == Some(master));
            links.iter().find(|bridge| bridge.index == master && ports.all(|port| port.peer_netns.is_some()))
        }
    });
    let found = found.filter(|link| !about.uplinks.contains(&link.index) && is_plain(&link.name));
    found.take(MOST as usize).map(|link| link.name.clone()).collect()
}

/// nft takes it literally: the kernel also lets a name have a quotation mark, or end in an asterisk.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, peer_netns: Option<u32>, master: Option<u32>) -> Link {
        Link { index, name: name.to_owned(), peer_netns, master, ..Link::default() }
    }

    fn about() -> About {
        About { netns: [3, 4].into(), pairs: [20].into(), uplinks: [2, 6].into() }
    }

    fn names(links: &[Link]) -> Vec<String> {
        of(links, &about()).into_iter().collect()
    }

    #[test]
    fn a_replicas_own_pair_or_its_bridge_and_no_other() {
        let mut links = vec![
            link(2, "eth0", Some(4), None),
            link(10, "veth-p3", Some(3), None),
            link(11, "veth-other", Some(5), None),
            link(12, "cni0", None, None),
            link(13, "veth-p4", Some(4), Some(12)),
            link(14, "veth-p5", Some(5), Some(12)),
            link(20, "vip123", Some(3), None),
            link(21, "odd*", Some(3), None),
        ];
        assert_eq!(names(&links), ["cni0", "veth-p3"]);
        // Other nodes' packets may come in by it.
        links.push(link(15, "eth1", None, Some(12)));
        assert_eq!(names(&links), ["veth-p3"]);
    }

    #[test]
    fn a_bridge_that_is_the_uplink_is_left_out() {
        let mut links = [link(2, "br0", None, None), link(13, "veth-p4", Some(4), Some(2))];
        assert_eq!(names(&links), Vec::<String>::new());
        // The second one, of IPv6 addresses.
        (links[0].index, links[1].master) = (6, Some(6));
        assert_eq!(names(&links), Vec::<String>::new());
    }
}
