//! Who answers ARP on a LAN that no router shares out.

use serde_json::Value;

use super::{Scene, WEB, web};
use crate::harness::{Netns, PATIENCE, SOON, attempt, serve_all, until};

impl Scene {
    /// The nodes whose kernel answers for the VIP.
    pub fn answering(&self, of: &[usize]) -> Vec<usize> {
        let answers = |at: &&usize| self.members[**at].node.ns.ip("neigh show proxy dev eth0").contains(WEB);
        of.iter().filter(answers).copied().collect()
    }

    pub fn answers(&self, when: &str, of: &[usize], expected: usize) {
        until(&format!("node {expected} alone answers {when}"), SOON, || {
            (self.answering(of) == [expected]).then_some(())
        });
    }

    /// Whose address the client has for the VIP.
    fn is_known_by(&self, client: &Netns, at: usize) -> bool {
        let address = |found: &[Value], key: &str| found.first().and_then(|one| Some(one[key].as_str()?.to_owned()));
        let own = address(&self.members[at].node.ns.ip_json("link show dev eth0"), "address");
        own.is_some() && address(&client.ip_json(&format!("neigh show {WEB}")), "lladdr") == own
    }
}

#[test]
fn one_node_with_ready_replicas_answers_and_another_takes_over() {
    let scene = Scene::new(3);
    let pods = [1, 2].map(|at: usize| scene.members[at].node.joined(&web()));
    let _servers = serve_all(&pods);
    let both = [1, 2];
    until("one of them answers", SOON, || {
        let all_know = both.iter().all(|at| scene.members[*at].legs().len() == 1);
        (all_know && scene.answering(&both).len() == 1).then_some(())
    });
    let first = scene.answering(&both)[0];
    let other = both[0] + both[1] - first;
    assert!(scene.answering(&[0]).is_empty(), "it has no replica");
    let pod = &pods[first - 1];
    scene.members[first].ctl(&["drain", &pod.id]).ok();
    scene.answers("while the other one drains", &both, other);
    scene.members[first].ctl(&["undrain", &pod.id]).ok();
    scene.answers("again", &both, first);

    let client = scene.lan.client(50, &["10.118.0.0/16 dev eth0"]);
    let reach = |what: &str| {
        until(what, PATIENCE, || (attempt(&client, pods[0].vip(), 20).failed == 0).then_some(()));
    };
    reach("the client reaches the VIP");
    assert!(scene.is_known_by(&client, first), "{}", client.ip("neigh"));
    // It dies, without a word.
    scene.link(first, "down");
    scene.answers("once that is suspected", &[other], other);
    until("the client hears of it", SOON, || scene.is_known_by(&client, other).then_some(()));
    reach("the client reaches the VIP by the other one");
}
