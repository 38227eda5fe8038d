//! No live connection breaks and no new one fails, whatever nodes do.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::live::Live;
use super::{Member, WEB};
use crate::harness::{PATIENCE, SOON, until};

/// A node that is cut off for so long is suspected to be dead, and not forgotten.
const PARTITION: Duration = Duration::from_secs(3);
/// What a viprouted has said holds for a minute while its kernel answers.
const WORD_HOLDS: Duration = Duration::from_secs(55);

#[test]
fn a_node_leaves_and_comes_back_and_another_joins() {
    let mut live = Live::new(50);
    live.scene.members[2].ctl(&["nodes", "leave"]).ok();
    let left: [(&str, &str, u64); 2] = [("192.0.2.2", "ready", 2), ("192.0.2.3", "draining", 1)];
    live.scene.members[0].has("node 3 leaves", &left);
    live.unbroken("node 3 has left");
    live.scene.members[2].stop();
    live.scene.members[2].start();
    live.scene.has_all("node 3 is back", 2);
    live.unbroken("node 3 is back");

    let fourth = Member::new(&live.scene.lan, 4, &live.scene.key);
    let served = [fourth.serves(), fourth.serves()];
    live.scene.members.push(fourth);
    live.scene.has_all("a fourth node has joined", 2);
    live.unbroken("a fourth node has joined");
    live.scene.members[3].ctl(&["nodes", "leave"]).ok();
    for member in &live.scene.members[..3] {
        until("the fourth node has left", SOON, || {
            member.legs().iter().any(|leg| (leg.0.as_str(), leg.1.as_str()) == ("192.0.2.4", "draining")).then_some(())
        });
    }
    live.unbroken("the fourth node has left");
    for served in &served {
        live.scene.members[3].node.del(&served.pod, &super::web()).ok();
    }
    live.scene.members.pop().expect("the fourth node").stop();
    for (member, others) in live.scene.members.iter().zip([["n2", "n3"], ["n1", "n3"], ["n1", "n2"]]) {
        member.sees("the fourth node is gone", PATIENCE, &others.map(|name| (name, "live")));
    }
    live.scene.has_all("the fourth node is gone", 2);
    live.unbroken("the fourth node is gone");
}

/// Each for three seconds, also the one to which all clients' packets go.
#[test]
fn a_node_is_cut_off_and_comes_back() {
    let mut live = Live::new(20);
    for at in 0..3 {
        let cut = Instant::now();
        live.scene.link(at, "down");
        let other = &live.scene.members[(at + 1) % 3];
        other.leads_to("while one is cut off", 1);
        live.ask();
        sleep(PARTITION.saturating_sub(cut.elapsed()));
        live.scene.link(at, "up");
        live.scene.has_all("all are there again", 2);
        live.unbroken_since(&format!("node {} was cut off", at + 1));
        live.ask();
        live.unbroken_since(&format!("node {} is back", at + 1));
        assert_eq!(live.refused(), [""; 0], "node {} was cut off", at + 1);
    }
}

#[test]
fn the_node_that_answers_arp_changes() {
    let mut live = Live::new(50);
    let scene = &live.scene;
    scene.answers("at first", &[0, 1, 2], 0);
    for served in &live.replicas[0] {
        scene.members[0].ctl(&["drain", &served.pod.id]).ok();
    }
    scene.answers("while node 1 has nothing ready", &[0, 1, 2], 2);
    live.unbroken("node 1 drains");
    for served in &live.replicas[0] {
        live.scene.members[0].ctl(&["undrain", &served.pod.id]).ok();
    }
    live.scene.answers("again", &[0, 1, 2], 0);
    live.unbroken("node 1 is back");
    for flip in 0..5 {
        live.scene.members[0].ctl(&["nodes", "leave"]).ok();
        live.scene.answers("once node 1 has left", &[0, 1, 2], 2);
        live.unbroken(&format!("node 1 has left, {flip}"));
        live.scene.members[0].stop();
        live.scene.members[0].start();
        live.scene.answers("once node 1 is back", &[0, 1, 2], 0);
        live.unbroken(&format!("node 1 is back, {flip}"));
    }
}

#[test]
fn viprouted_is_restarted_on_each_node() {
    let mut live = Live::new(50);
    for at in 0..3 {
        live.scene.members[at].stop();
        live.unbroken(&format!("the viprouted of node {} is away", at + 1));
        live.scene.members[at].start();
        live.scene.has_all("it is back", 2);
        live.unbroken(&format!("the viprouted of node {} is back", at + 1));
        assert!(!live.scene.members[at].daemon().log().contains("panicked"));
    }
}

/// A replica of that node stops to listen meanwhile: only its own connections end, and who would be refused there is answered by another.
#[test]
fn a_viprouted_is_away_for_a_minute() {
    let mut live = Live::new(20);
    live.scene.members[1].stop();
    let stopped = Instant::now();
    live.unbroken("the viprouted of node 2 is away");
    let served = &mut live.replicas[1][0];
    drop(served.server.take());
    live.gone.push(served.pod.name.clone());
    live.unbroken("and a replica there has stopped");
    while stopped.elapsed() < WORD_HOLDS {
        for at in [0, 2] {
            let legs = live.scene.members[at].legs();
            assert!(legs.iter().all(|leg| leg.1 == "ready"), "{legs:?} after {:?}", stopped.elapsed());
        }
        live.unbroken(&format!("it is away for {:?}", stopped.elapsed()));
        sleep(Duration::from_secs(5));
    }
    // What it has said doesn't hold for ever; its connections live on.
    for at in [0, 2] {
        live.scene.members[at].leads_to("a minute later", 1);
    }
    live.unbroken("node 2 gets nothing new");
    live.scene.members[1].start();
    live.scene.has_all("it is back", 2);
    live.unbroken("it is back");
    assert!(live.scene.members[0].routes().contains(WEB));
}
