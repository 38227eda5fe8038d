//! Nodes that share the leases of their VIPs, and what they say.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::model::Family;
use crate::model::node::ClusterNode;

fn id(last: u8) -> NodeId {
    NodeId(Ipv4Addr::new(192, 0, 2, last))
}

fn web() -> LeaseKey {
    LeaseKey { vip: "shop/web".parse().unwrap(), family: Family::V4 }
}

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100));

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
}

fn lease(granted: u64) -> Lease {
    let after = |seconds| Some(at(granted + seconds));
    Lease { renew: after(300), rebind: after(525), expires: after(600), ..Lease::permanent(A, at(granted)) }
}

/// This node, 192.0.2.1, among others.
struct Scene {
    leases: Leases,
    heard: UnboundedReceiver<Heard>,
    others: BTreeMap<NodeId, Node>,
    now: Instant,
    seconds: u64,
}

impl Scene {
    fn new(others: &[u8]) -> Self {
        let (sender, heard) = unbounded_channel();
        let node = |last: &u8| {
            let mut node = Node::remembered(&ClusterNode::at(*last), BTreeMap::new());
            node.settled = true;
            node.word.cluster = "k".to_owned();
            (id(*last), node)
        };
        let others = others.iter().map(node).collect();
        Self { leases: Leases::new(Some(sender)), heard, others, now: Instant::now(), seconds: 0 }
    }

    fn says(&mut self, last: u8, holding: Option<Holding>) {
        let said = holding.map(|holding| (web(), holding)).into_iter().collect();
        self.others.get_mut(&id(last)).unwrap().leases = Arc::new(said);
        self.leases.on_change();
    }

    fn set(&mut self, own: Own) -> bool {
        self.leases.set(&web(), Some(own), self.now)
    }

    /// So many milliseconds pass; the questions it has then.
    fn look(&mut self, millis: u64) -> Vec<(NodeId, Note)> {
        self.now += Duration::from_millis(millis);
        let others = Members::of(&self.others, "k");
        let members = Members { own: id(1), name: "n1", others, settled: true };
        self.leases.look(&members, self.now, at(self.seconds))
    }

    /// Who renews, where that was said anew.
    fn renewer(&mut self) -> Option<String> {
        match self.heard.try_recv().ok()? {
            Heard::Renewer { name, is_own, .. } => {
                assert_eq!(is_own, name == "n1");
                Some(name)
            }
            Heard::Lease(..) | Heard::Members(_) | Heard::Pool(..) => self.renewer(),
        }
    }

    fn expected(among: &[u8]) -> String {
        let elected = election::renews(&web().vip, among.iter().map(|last| id(*last))).unwrap();
        format!("n{}", elected.0.octets()[3])
    }
}

#[test]
fn one_of_those_that_want_a_first_address_asks_once_all_can_have_said_so() {
    let mut scene = Scene::new(&[2, 3, 4]);
    assert!(scene.set(Own::Asks));
    scene.look(0);
    scene.look(250);
    assert_eq!(scene.renewer(), None, "others may want it too");
    scene.says(2, Some(Holding::Asks));
    scene.says(3, Some(Holding::Asks));
    scene.look(100);
    assert_eq!(scene.renewer(), Some(Scene::expected(&[1, 2, 3])), "not 4, which doesn't have it");
    // Alone it asks at once.
    let mut scene = Scene::new(&[]);
    scene.set(Own::Asks);
    scene.look(0);
    assert_eq!(scene.renewer(), Some("n1".to_owned()));
}

#[test]
fn who_has_an_address_renews_and_who_has_none_learns_it() {
    let mut scene = Scene::new(&[2, 3]);
    scene.says(2, Some(Holding::Granted(A, 7)));
    scene.says(3, Some(Holding::Knows(A)));
    scene.set(Own::Asks);
    let asked = scene.look(0);
    let [(to, Note::WhichLease { number, key })] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((*to, key), (id(2), &web()));
    assert_eq!(number, &1);
    let again = scene.look(300);
    let [(_, Note::WhichLease { number, .. })] = &again[..] else { panic!("{again:?}") };
    assert_eq!(scene.renewer(), Some(Scene::expected(&[2, 3])));
    // n2's clock differs by far.
    let told = Told::of(&lease(50_000), 7, at(50_100)).unwrap();
    let answer = |number| Note::Lease { number, key: web(), told };
    scene.leases.on_note(id(3), answer(*number), at(1));
    scene.leases.on_note(id(2), answer(number - 1), at(1));
    assert!(scene.heard.try_recv().is_err(), "of another node, or to another question");
    scene.leases.on_note(id(2), answer(*number), at(1));
    let Ok(Heard::Lease(_, learned)) = scene.heard.try_recv() else { panic!() };
    assert_eq!((learned.granted, learned.expires), (at(0) - Duration::from_secs(100), Some(at(500))));
    assert_eq!(scene.look(1000), [], "it is known");
    scene.says(2, Some(Holding::Granted(A, 8)));
    assert_eq!(scene.look(100).len(), 1, "renewed");
    assert_eq!(scene.look(100).len(), 0, "an answer takes its time");
    assert_eq!(scene.look(300).len(), 1, "it was lost");
}

#[test]
fn where_no_node_was_granted_it_one_that_has_none_asks() {
    let mut scene = Scene::new(&[2, 3]);
    scene.says(2, Some(Holding::Knows(A)));
    scene.set(Own::Asks);
    scene.look(400);
    assert_eq!(scene.renewer(), Some("n1".to_owned()), "n2 may have no reason to ask for long");
    assert!(scene.set(Own::Granted(lease(0))));
    scene.look(100);
    assert_eq!(scene.leases.holding(&web()), Some(Holding::Granted(A, 1)));
    // It is renewed: nobody waits for that.
    assert!(!scene.set(Own::Granted(lease(300))));
    assert_eq!(scene.leases.holding(&web()), Some(Holding::Granted(A, 2)));
}

#[test]
fn another_takes_over_from_a_node_that_is_gone_leaves_or_asks_as_another_client() {
    let gone: [fn(&mut Node); 4] = [
        |node| node.state = NodeState::Suspect,
        |node| node.word.phase = Phase::Left,
        |node| node.word.phase = Phase::Restarting,
        |node| node.word.cluster = "other".to_owned(),
    ];
    for change in gone {
        let mut scene = Scene::new(&[2, 3]);
        for last in [2, 3] {
            scene.says(last, Some(Holding::Knows(A)));
        }
        scene.set(Own::Knows(A));
        scene.look(400);
        let first = scene.renewer().unwrap();
        assert_eq!(first, Scene::expected(&[1, 2, 3]));
        let Some(last) = [2, 3].into_iter().find(|last| first == format!("n{last}")) else {
            panic!("n1 is elected: the test wants another VIP's name");
        };
        change(scene.others.get_mut(&id(last)).unwrap());
        scene.leases.on_change();
        scene.look(100);
        assert_eq!(scene.renewer(), Some(Scene::expected(&[1, 5 - last])));
    }
}

#[test]
fn only_what_was_granted_here_is_told() {
    let mut scene = Scene::new(&[2]);
    let question = || Note::WhichLease { number: 5, key: web() };
    assert_eq!(scene.leases.on_note(id(2), question(), at(0)), None);
    scene.set(Own::Knows(A));
    assert_eq!(scene.leases.on_note(id(2), question(), at(0)), None, "else leases would be told in circles");
    scene.set(Own::Granted(lease(0)));
    let Some(Note::Lease { number: 5, told, .. }) = scene.leases.on_note(id(2), question(), at(100)) else { panic!() };
    assert_eq!((told.age, told.grant), (Duration::from_secs(100), 1));
    assert_eq!(scene.leases.on_note(id(2), question(), at(600)), None, "it is over");
    scene.leases.set(&web(), None, scene.now);
    assert_eq!(scene.leases.on_note(id(2), question(), at(100)), None);
}
