//! Who would get what begins a flow, where replicas serve different ports: the same lots as the programs draw (`serving.h`).

use std::net::{IpAddr, SocketAddr};

use crate::model::node::NodeId;

use super::servers::{ByPort, Server};

/// A flow to a VIP, and its protocol's number.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Who asks.
    pub client: SocketAddr,
    /// The VIP's port.
    pub port: u16,
    /// Of the IP header.
    pub protocol: u8,
}

impl Asked {
    /// The flow's hash with one of those that may have it. The addresses and ports as they are in the packet.
    fn lot(&self, with: u32) -> u32 {
        let client = client_of(self.client.ip());
        let ports = u32::from(self.client.port().to_be()) << 16 | u32::from(self.port.to_be());
        let hash = client.wrapping_mul(0x9e37_79b1) ^ ports ^ with.wrapping_mul(0xcc9e_2d51);
        let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^ hash >> 16
    }

    /// At which of so many replicas a search for it begins (`begin_at` in openings.h).
    pub fn begins_at(&self, replicas: usize) -> usize {
        let place = (u64::from(self.lot(0)) * u64::try_from(replicas).unwrap_or(u64::MAX)) >> 32;
        usize::try_from(place).unwrap_or_default()
    }

    fn cost(&self, server: &Server) -> u64 {
        let scaled = rarity(self.lot(server.ifindex ^ u32::from_ne_bytes(server.node))) << 16;
        scaled / u64::from(server.weight.max(1))
    }
}

/// What stands for the client in a flow's hash (`client_of` in ipv4.h and ipv6.h).
fn client_of(client: IpAddr) -> u32 {
    match client {
        IpAddr::V4(client) => u32::from_ne_bytes(client.octets()),
        IpAddr::V6(client) => {
            let octets = client.octets();
            let mut words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            let mut next = || words.next().unwrap_or_default();
            let mut hash = next();
            for factor in [0x9e37_79b1_u32, 0x85eb_ca6b, 0xc2b2_ae35] {
                hash = hash.wrapping_mul(factor) ^ next();
            }
            hash
        }
    }
}

/// -log2(lot / 2^32), 32 bits behind the point.
fn rarity(lot: u32) -> u64 {
    let value = lot | 1;
    let zeros = value.leading_zeros();
    let f = u64::from(value << zeros << 1);
    let curve = (f * ((1 << 32) - f)) >> 32;
    let slope = 1_901_361_172 - ((704_374_637 * f) >> 32);
    (u64::from(zeros + 1) << 32) - f - ((curve * slope) >> 32)
}

/// Who gets a packet that begins a flow, of those that serve its port; `None`: nobody does. `via`: the node that the VIP's group has
/// chosen; `None`: a replica here, which doesn't serve the port.
pub fn appointed(by_port: &ByPort, asked: &Asked, via: Option<NodeId>) -> Option<Server> {
    let number = u32::from(asked.protocol) << 16 | u32::from(asked.port);
    let servers = by_port.get(&number).or_else(|| by_port.get(&0))?;
    let stays = |server: &&Server| {
        let lot = asked.lot(!u32::from_ne_bytes(server.node));
        (u64::from(lot) * u64::from(server.of)) >> 32 < u64::from(server.weight)
    };
    let chosen = via.and_then(|id| servers.iter().find(|server| server.node == id.0.octets()));
    let best = || servers.iter().min_by_key(|server| asked.cost(server));
    chosen.filter(stays).or_else(best).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const MANY: u32 = 100_000;
    /// 80/tcp
    const HTTP: u32 = 0x0006_0050;

    fn server(ifindex: u32, weight: u32) -> Server {
        Server { ifindex, weight, of: weight, ..Server::default() }
    }

    fn asked(number: u32) -> Asked {
        let port = u16::try_from(1024 + number % 60_000).unwrap();
        let last = u8::try_from(number / 60_000).unwrap();
        Asked { client: (Ipv4Addr::new(192, 0, 2, last), port).into(), port: 80, protocol: 6 }
    }

    fn winners(servers: &[Server]) -> Vec<u32> {
        let by_port = ByPort::from([(HTTP, servers.to_vec())]);
        (0..MANY).map(|number| appointed(&by_port, &asked(number), None).unwrap().ifindex).collect()
    }

    fn count(winners: &[u32]) -> BTreeMap<u32, i64> {
        winners.iter().fold(BTreeMap::new(), |mut counts, winner| {
            *counts.entry(*winner).or_default() += 1;
            counts
        })
    }

    #[test]
    fn each_wins_as_often_as_it_weighs() {
        for weights in [&[1, 1][..], &[1, 1, 1, 1, 1, 1, 1], &[1, 3], &[255, 1, 64], &[2, 5, 5, 100]] {
            let servers: Vec<Server> = (7..).zip(weights).map(|(ifindex, weight)| server(ifindex, *weight)).collect();
            let counts = count(&winners(&servers));
            let sum: u32 = weights.iter().sum();
            for (ifindex, weight) in (7..).zip(weights) {
                let expected = i64::from(MANY * (*weight)) / i64::from(sum);
                let off = (counts.get(&ifindex).copied().unwrap_or_default() - expected).abs();
                // Half a percent of all: four times what chance makes of a half.
                assert!(off < i64::from(MANY) / 150, "{ifindex} of {weights:?}: {counts:?}");
            }
        }
    }

    /// Each word of an address counts, as in the programs; the highest bits of two may stand for each other.
    #[test]
    fn clients_of_ipv6_differ_by_all_of_their_address() {
        let base: Ipv6Addr = "2001:db8::32".parse().unwrap();
        let lots: std::collections::BTreeSet<u32> = (0..128)
            .map(|bit| Ipv6Addr::from_bits(base.to_bits() ^ 1 << bit))
            .chain([base])
            .map(|client| Asked { client: (client, 20_000).into(), port: 80, protocol: 6 }.lot(7))
            .collect();
        assert!(lots.len() > 120, "{}", lots.len());
    }

    #[test]
    fn who_comes_takes_its_share_and_who_goes_leaves_it() {
        let four: Vec<Server> = (7..11).map(|ifindex| server(ifindex, 1)).collect();
        let (before, after) = (winners(&four[..3]), winners(&four));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(one, other)| one != other).collect();
        assert!(moved.iter().all(|(_, to)| **to == 10), "nothing moves but to the new one");
        let share = moved.len() * 4;
        assert!((95_000..105_000).contains(&share), "{share}");
    }

    #[test]
    fn a_node_keeps_what_its_replicas_serve() {
        let id = Ipv4Addr::new(192, 0, 2, 2);
        let far = Server { ifindex: 0, node: id.octets(), weight: 1, of: 4 };
        let by_port = ByPort::from([(HTTP, vec![far, server(7, 3)])]);
        let kept = |number| {
            let lots = asked(number);
            let via = appointed(&by_port, &lots, Some(NodeId(id))).unwrap().ifindex == 0;
            i64::from(via)
        };
        // A quarter stays; of the rest it wins a quarter again.
        let found: i64 = (0..MANY).map(kept).sum();
        assert!((found - i64::from(MANY) * 7 / 16).abs() < i64::from(MANY) / 150, "{found}");
        let nobody = Asked { port: 81, ..asked(1) };
        assert_eq!(appointed(&by_port, &nobody, None), None);
    }
}
