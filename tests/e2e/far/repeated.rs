//! A SYN is repeated while its bucket moves between nodes: there is one half-open connection, and the client's answer reaches it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use viproute::internals::model::Family;

use crate::halfopen::{HANDSHAKES, all_complete, begin, complete_after, repeats_rarely};
use crate::harness::{Netns, Run};

use super::scene::Cluster;

/// What a pod answers to SYNs is lost.
const LOSE_ANSWERS: &str = "table inet hold { chain answers {
    type filter hook output priority 0; tcp sport 8080 tcp flags & (syn | ack) == syn | ack drop;
}
}
";

/// Of SYNs that are sent after 0, 1, 3 and 7 s, and their answers likewise: the third SYN has been sent, and the fourth has not.
const BETWEEN: Duration = Duration::from_secs(5);

#[test]
fn handshakes_complete_while_their_buckets_move_to_other_nodes_by_ipv4() {
    handshakes_complete_while_their_buckets_move_to_other_nodes(Family::V4);
}

#[test]
fn handshakes_complete_while_their_buckets_move_to_other_nodes_by_ipv6() {
    handshakes_complete_while_their_buckets_move_to_other_nodes(Family::V6);
}

/// The first replica's SYN-ACKs are lost, so that the client answers the other one's, if there is another one.
fn handshakes_complete_while_their_buckets_move_to_other_nodes(family: Family) {
    let mut cluster = Cluster::by(family, 1);
    let rules = |ns: &Netns, rules: &str| ns.cmd("nft").args(["-f", "-"]).finish(rules).ok();
    repeats_rarely(&cluster.client);
    rules(&cluster.node(1).pods[0].ns, LOSE_ANSWERS);
    let start = std::time::Instant::now();
    let mut streams: Vec<_> = (0..HANDSHAKES).map(|_| begin(&cluster.client, cluster.to, None)).collect();
    thread::sleep(Duration::from_millis(200));
    let held = streams.iter().filter(|stream| stream.peer_addr().is_err()).count();
    assert!(
        (1..HANDSHAKES).contains(&held),
        "{held} of {HANDSHAKES} handshakes are under way, those with node 1's pod"
    );
    cluster.drains(1);
    thread::sleep(BETWEEN.saturating_sub(start.elapsed()));
    rules(&cluster.node(1).pods[0].ns, "delete table inet hold");
    all_complete(&mut streams);
}

#[test]
fn handshakes_complete_while_their_buckets_move_from_another_node_by_ipv4() {
    handshakes_complete_while_their_buckets_move_from_another_node(Family::V4);
}

#[test]
fn handshakes_complete_while_their_buckets_move_from_another_node_by_ipv6() {
    handshakes_complete_while_their_buckets_move_from_another_node(Family::V6);
}

fn handshakes_complete_while_their_buckets_move_from_another_node(family: Family) {
    let mut cluster = Cluster::by(family, 1);
    let vip = cluster.to;
    let client = Netns::open(Path::new(&cluster.client.path()));
    // It gets no new connections, and keeps those that it has.
    complete_after(vip, &client, || cluster.suspects(2));
}
