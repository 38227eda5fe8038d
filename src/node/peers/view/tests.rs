//! Time passes, nodes answer or don't.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const OWN: NodeId = NodeId(Ipv4Addr::new(192, 0, 2, 1));
const STEP: Duration = Duration::from_millis(100);

fn id(last: u8) -> NodeId {
    NodeId(Ipv4Addr::new(192, 0, 2, last))
}

fn incarnation(last: u8) -> Incarnation {
    let word = Word {
        name: format!("n{last}"),
        tunnel: id(last).0.into(),
        phase: Phase::Up,
        cluster: "-".to_owned(),
        version: "1".to_owned(),
        mac6: None,
    };
    let at = id(last).0.into();
    Incarnation {
        id: id(last),
        at,
        generation: 1,
        live: true,
        word,
        vips: Vips::default(),
        leases: Holdings::default(),
    }
}

/// A view, the gossip, and who answers an echo.
struct Scene {
    view: View,
    gossip: Vec<Incarnation>,
    echo: BTreeSet<NodeId>,
    /// Whose datagrams come through though echoes don't.
    direct: BTreeSet<NodeId>,
    now: Instant,
    events: Vec<String>,
}

impl Scene {
    /// Two others that live.
    fn new() -> Self {
        let now = Instant::now();
        let view = View::new(OWN, BTreeMap::new(), now);
        let (gossip, echo) = (vec![incarnation(2), incarnation(3)], BTreeSet::from([id(2), id(3)]));
        let mut scene = Self { view, gossip, echo, direct: BTreeSet::new(), now, events: Vec::new() };
        scene.pass(1000);
        assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
        scene
    }

    fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds / 100 {
            self.now += STEP;
            let live = self.gossip.iter().filter(|incarnation| incarnation.live).map(|incarnation| incarnation.id);
            let heard = live.filter(|id| self.echo.contains(id) || self.direct.contains(id)).collect();
            let answers = Answers { echoed: self.echo.clone(), heard };
            self.events.extend(self.view.step(self.now, &self.gossip, &answers));
        }
    }

    /// The node's viprouted is silent, its kernel isn't.
    fn silence(&mut self, last: u8) -> &mut Incarnation {
        let incarnation = self.gossip.iter_mut().find(|incarnation| incarnation.id == id(last)).unwrap();
        incarnation.live = false;
        incarnation
    }

    fn kill(&mut self, last: u8) {
        self.silence(last);
        self.echo.remove(&id(last));
    }

    fn states(&self) -> Vec<(u8, &'static str)> {
        self.view.nodes().iter().map(|(id, node)| (id.0.octets()[3], name_of(node.state))).collect()
    }
}

#[test]
fn a_dead_node_is_suspect_and_then_forgotten() {
    let mut scene = Scene::new();
    scene.kill(2);
    scene.pass(900);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
    scene.pass(300);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")]);
    scene.pass(8500);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")]);
    scene.pass(500);
    assert_eq!(scene.states(), [(3, "live")]);
    let sentences = ["node n2 (192.0.2.2) is suspect now", "node n2 (192.0.2.2) is forgotten"];
    assert_eq!(scene.events[2..], sentences);
}

#[test]
fn a_viprouted_that_is_away_changes_nothing_for_a_minute() {
    let mut scene = Scene::new();
    scene.silence(2).word.phase = Phase::Restarting;
    scene.pass(55_000);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
    scene.pass(10_000);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")], "its word is old by now");
    scene.pass(500_000);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")]);
    // It comes back as another process, with the same number.
    let number = scene.view.nodes()[&id(2)].number;
    scene.gossip.push(Incarnation { generation: 2, ..incarnation(2) });
    scene.pass(200);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
    assert_eq!(scene.view.nodes()[&id(2)].number, number);
    scene.gossip.pop();
    scene.pass(700_000);
    assert_eq!(scene.states(), [(3, "live")], "it never comes back");
}

#[test]
fn a_process_that_has_ended_has_no_say_over_the_next_one() {
    let mut scene = Scene::new();
    let share: Share = "10.118.0.7 1 1".parse().unwrap();
    let vip: VipKey = "shop/web".parse().unwrap();
    scene.silence(2).vips = Arc::new(BTreeMap::from([(vip, share)]));
    scene.pass(100);
    assert_eq!(scene.view.nodes()[&id(2)].vips.len(), 1, "the last word of a process that is silent by now");
    scene.gossip.push(Incarnation { generation: 2, ..incarnation(2) });
    scene.pass(100);
    assert_eq!(scene.view.nodes()[&id(2)].vips.len(), 0);
    scene.gossip.last_mut().unwrap().live = false;
    scene.pass(100);
    assert_eq!(scene.view.nodes()[&id(2)].vips.len(), 0);
}

#[test]
fn a_partition_of_three_seconds_breaks_nothing_for_good() {
    let mut scene = Scene::new();
    scene.kill(2);
    scene.kill(3);
    scene.pass(3000);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "suspect")]);
    scene.gossip.iter_mut().for_each(|incarnation| incarnation.live = true);
    scene.echo = BTreeSet::from([id(2), id(3)]);
    scene.pass(100);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
}

#[test]
fn a_node_that_was_stopped_itself_takes_nobody_for_dead() {
    let mut scene = Scene::new();
    scene.now += Duration::from_secs(3600);
    scene.pass(100);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
}

#[test]
fn a_node_that_others_hear_and_this_one_doesnt_is_suspect() {
    let mut scene = Scene::new();
    scene.echo.remove(&id(2));
    scene.pass(2000);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")]);
}

#[test]
fn where_no_echo_ever_came_through_the_gossip_has_to_do() {
    let mut scene = Scene::new();
    scene.gossip.push(incarnation(4));
    scene.pass(1000);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")], "it is only talked about");
    scene.direct.insert(id(4));
    scene.pass(100);
    scene.direct.clear();
    scene.pass(5000);
    assert_eq!(scene.states(), [(2, "live"), (3, "live"), (4, "live")]);
    scene.kill(4);
    scene.pass(1200);
    assert_eq!(scene.states(), [(2, "live"), (3, "live"), (4, "suspect")]);
}

#[test]
fn a_node_that_leaves_keeps_its_connections_for_as_long_as_another() {
    let mut scene = Scene::new();
    scene.gossip[0].word.phase = Phase::Left;
    scene.pass(5000);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")], "it still answers: its connections go on");
    scene.kill(2);
    scene.pass(1200);
    assert_eq!(scene.states(), [(2, "suspect"), (3, "live")], "it may be silent for a moment alone");
    scene.pass(10_000);
    assert_eq!(scene.states(), [(3, "live")]);
    assert!(scene.events.contains(&"node n2 (192.0.2.2) is left".to_owned()), "{:?}", scene.events);
}

#[test]
fn nodes_that_cant_be_told_apart_are_named_and_not_taken() {
    let mut scene = Scene::new();
    scene.gossip.push(Incarnation { generation: 9, ..incarnation(3) });
    let same = Incarnation { id: id(5), ..incarnation(2) };
    scene.gossip.push(same);
    scene.gossip.extend([incarnation(1), Incarnation { generation: 2, ..incarnation(1) }]);
    scene.pass(6000);
    assert_eq!(scene.states(), [(2, "live"), (3, "live")]);
    assert_eq!(scene.view.twins().collect::<Vec<_>>(), [OWN, id(3)]);
}

#[test]
fn the_nodes_of_the_run_before_stay_until_their_kernels_are_silent() {
    let share: Share = "10.118.0.7 1 1".parse().unwrap();
    let vips = BTreeMap::from([("shop/web".parse().unwrap(), share)]);
    let before = ClusterNode { number: 7, ..ClusterNode::at(2) };
    let remembered = BTreeMap::from([(id(2), Node::remembered(&before, vips))]);
    let now = Instant::now();
    let view = View::new(OWN, remembered, now);
    let mut scene =
        Scene { view, gossip: vec![], echo: BTreeSet::from([id(2)]), direct: BTreeSet::new(), now, events: vec![] };
    scene.pass(50_000);
    assert_eq!((scene.states(), scene.view.nodes()[&id(2)].vips.len()), (vec![(2, "live")], 1));
    scene.gossip = vec![incarnation(2), incarnation(3)];
    scene.direct.insert(id(3));
    scene.pass(100);
    let nodes = scene.view.nodes();
    assert_eq!((nodes[&id(2)].number, nodes[&id(3)].number, nodes[&id(2)].vips.len()), (7, 8, 0));
}

proptest! {
    /// Whatever happens: numbers are told apart and never change, and a node that answers is live.
    #[test]
    fn numbers_are_stable(steps in proptest::collection::vec((2u8..7, any::<bool>(), any::<bool>(), 1u64..30), 1..60)) {
        let mut scene = Scene::new();
        for last in 4..7 {
            scene.gossip.push(incarnation(last));
            scene.direct.insert(id(last));
        }
        scene.pass(100);
        scene.direct.clear();
        let mut numbers: BTreeMap<NodeId, u32> = BTreeMap::new();
        for (last, live, echo, time) in steps {
            scene.silence(last).live = live;
            if echo { scene.echo.insert(id(last)); } else { scene.echo.remove(&id(last)); }
            scene.pass(time * 100);
            let nodes = scene.view.nodes();
            let used: BTreeSet<u32> = nodes.values().map(|node| node.number).collect();
            prop_assert_eq!(used.len(), nodes.len());
            numbers.retain(|id, _| nodes.contains_key(id));
            for (id, node) in nodes {
                prop_assert_eq!(*numbers.entry(*id).or_insert(node.number), node.number);
            }
            for answering in &scene.echo {
                if let Some(node) = nodes.get(answering) && scene.view.silences(node).1 < WORD_HOLDS {
                    prop_assert_eq!(node.state, NodeState::Live);
                }
            }
        }
    }
}

/// Addresses of IPv6 that make the same id: the second one has no place, and is named.
#[test]
fn another_address_with_the_same_id_is_another_node() {
    let mut scene = Scene::new();
    let other = Incarnation { at: "2001:db8::2".parse().unwrap(), generation: 2, ..incarnation(2) };
    scene.gossip.push(other);
    scene.pass(6000);
    assert_eq!(scene.view.nodes()[&id(2)].at, IpAddr::V4(id(2).0));
    assert_eq!(scene.view.twins().collect::<Vec<_>>(), [id(2)]);
}
