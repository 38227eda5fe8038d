//! Three nodes, the lowest of which decides, and a network that loses, delays and is cut.

use proptest::prelude::*;

use super::*;
use crate::lease::pools::Pool;

fn id(last: u8) -> NodeId {
    NodeId(Ipv4Addr::new(192, 0, 2, last))
}

fn vip(number: u8) -> VipKey {
    VipKey::new("shop", &format!("web{number}")).unwrap()
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 118, 0, last)
}

/// What a node's VIPs have, on its disk.
#[derive(Debug, Default)]
struct Has(BTreeMap<VipKey, Ipv4Addr>);

impl Uses for Has {
    fn holder(&self, address: IpAddr, vip: &VipKey) -> Option<VipKey> {
        self.0.iter().find(|(other, has)| *other != vip && IpAddr::V4(**has) == address).map(|(other, _)| other.clone())
    }

    fn has(&self, vip: &VipKey) -> bool {
        self.0.contains_key(vip)
    }
}

struct Node {
    claims: PoolClaims,
    has: Has,
    disk: Register,
    saves: Vec<(u64, Register)>,
    is_cut: bool,
    troubles: Vec<String>,
}

struct Scene {
    nodes: BTreeMap<NodeId, Node>,
    wire: Vec<(NodeId, NodeId, Message)>,
    now: Instant,
}

fn claims(register: Register) -> PoolClaims {
    let pool = Pool::open("default", vec!["10.118.0.0/29".parse().unwrap()], vec![address(6)]);
    let pins = BTreeSet::from([IpAddr::V4(address(5))]);
    PoolClaims::new(Setup {
        pools: Some(Pools::new(vec![pool])),
        pins,
        decides: Some(id(1).0.into()),
        register: Ok(register),
    })
}

impl Scene {
    fn new() -> Self {
        let node = |last| {
            let (has, disk, saves) = (Has::default(), Register::default(), Vec::new());
            let claims = claims(Register::default());
            (id(last), Node { claims, has, disk, saves, is_cut: false, troubles: Vec::new() })
        };
        let mut scene = Self { nodes: (1..=3).map(node).collect(), wire: Vec::new(), now: Instant::now() };
        scene.meet();
        scene
    }

    /// Each hears those that aren't cut off.
    fn meet(&mut self) {
        let heard: Vec<NodeId> = self.nodes.iter().filter(|(_, node)| !node.is_cut).map(|(id, _)| *id).collect();
        for (own, node) in &mut self.nodes {
            let others = heard.iter().copied().filter(|other| other != own && !node.is_cut).collect();
            node.claims.on_members(Members { own: Some(*own), others }, self.now);
        }
    }

    fn node(&mut self, last: u8) -> &mut Node {
        self.nodes.get_mut(&id(last)).unwrap()
    }

    fn act(&mut self, on: NodeId, act: impl FnOnce(&mut PoolClaims, &Has, Instant) -> Vec<Out>) {
        let now = self.now;
        let node = self.nodes.get_mut(&on).unwrap();
        for out in act(&mut node.claims, &node.has, now) {
            match out {
                Out::Send(to, message) => {
                    let text = message.to_string();
                    self.wire.push((on, to, text.parse().unwrap()));
                }
                Out::Save(number, register) => node.saves.push((number, register)),
                Out::Report(vip, News::Bound(lease)) => drop(node.has.0.insert(vip, ipv4(lease.address).unwrap())),
                Out::Report(_, News::Trouble { why, .. }) => node.troubles.push(why),
                Out::Report(_, other) => panic!("{other:?}"),
            }
        }
    }

    fn ask(&mut self, last: u8, number: u8) {
        let remembered = self.node(last).has.0.get(&vip(number)).copied().map(IpAddr::V4);
        self.act(id(last), |claims, has, now| claims.order(Order::Ask(vip(number), remembered), has, now));
    }

    fn stop(&mut self, last: u8, number: u8) {
        self.node(last).has.0.remove(&vip(number));
        self.act(id(last), |claims, has, now| claims.order(Order::Stop(vip(number)), has, now));
    }

    fn cut(&mut self, last: u8, is_cut: bool) {
        self.node(last).is_cut = is_cut;
        self.meet();
    }

    /// With what is on its disk.
    fn restart(&mut self, last: u8) {
        let node = self.node(last);
        node.saves.clear();
        node.claims = claims(node.disk.clone());
        let vips: Vec<VipKey> = node.has.0.keys().cloned().collect();
        self.meet();
        for vip in vips {
            let remembered = self.node(last).has.0.get(&vip).copied().map(IpAddr::V4);
            self.act(id(last), |claims, has, now| claims.order(Order::Ask(vip, remembered), has, now));
        }
    }

    /// Of what is under way one message arrives, unless it can't.
    fn deliver(&mut self, at: usize) {
        if self.wire.is_empty() {
            return;
        }
        let (from, to, message) = self.wire.swap_remove(at % self.wire.len());
        if !self.nodes[&from].is_cut && !self.nodes[&to].is_cut {
            self.act(to, |claims, has, now| claims.on_message(from, message, has, now));
        }
    }

    fn write(&mut self, last: u8, succeeds: bool) {
        let node = self.node(last);
        if node.saves.is_empty() {
            return;
        }
        let (number, register) = node.saves.remove(0);
        let result = if succeeds { Ok(()) } else { Err("no space".to_owned()) };
        if succeeds {
            node.disk = register;
        }
        self.act(id(last), |claims, has, now| claims.saved(number, &result, has, now));
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        for on in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.act(on, |claims, has, now| claims.tick(has, now));
        }
    }

    /// Until nothing is left to do for a while.
    fn rest(&mut self) {
        for _ in 0..40 {
            self.pass(100);
            while !self.wire.is_empty() || self.nodes.values().any(|node| !node.saves.is_empty()) {
                self.deliver(0);
                (1..=3).for_each(|last| self.write(last, true));
            }
        }
    }

    /// No address is two VIPs', and no VIP has two.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut by_address: BTreeMap<Ipv4Addr, &VipKey> = BTreeMap::new();
        let mut by_vip: BTreeMap<&VipKey, Ipv4Addr> = BTreeMap::new();
        for (vip, address) in self.nodes.values().flat_map(|node| &node.has.0) {
            prop_assert_eq!(*by_address.entry(*address).or_insert(vip), vip, "{} is two VIPs'", address);
            prop_assert_eq!(*by_vip.entry(vip).or_insert(*address), *address, "{} has two", vip);
        }
        Ok(())
    }

    fn has(&self, last: u8, number: u8) -> Option<Ipv4Addr> {
        self.nodes[&id(last)].has.0.get(&vip(number)).copied()
    }
}

#[test]
fn a_vip_has_one_address_on_all_nodes_and_another_than_others() {
    let mut scene = Scene::new();
    for last in 1..=3 {
        scene.ask(last, 0);
        scene.ask(last, last);
    }
    scene.rest();
    scene.check().unwrap();
    let first = scene.has(1, 0).unwrap();
    assert!((1..=3).all(|last| scene.has(last, 0) == Some(first) && scene.has(last, last).is_some()));
    // 5 is pinned, 6 excluded: four were free.
    scene.ask(2, 7);
    scene.rest();
    assert_eq!(scene.node(2).troubles[0], "no address of pool default (10.118.0.0/29) is free");
    // What nobody has any more is free again, and not before.
    scene.stop(1, 0);
    scene.stop(2, 0);
    scene.rest();
    assert_eq!(scene.has(2, 7), None, "node 3 has it");
    scene.stop(3, 0);
    scene.rest();
    assert_eq!(scene.has(2, 7), Some(first));
}

#[test]
fn nothing_is_decided_while_the_node_that_decides_is_away() {
    let mut scene = Scene::new();
    scene.ask(2, 0);
    scene.rest();
    let first = scene.has(2, 0).unwrap();
    scene.cut(1, true);
    for last in 1..=3 {
        scene.ask(last, last);
    }
    scene.ask(3, 0);
    scene.rest();
    // On its side of the partition it goes on.
    assert_eq!(
        (scene.has(1, 1).is_some(), scene.has(2, 2), scene.has(3, 3), scene.has(3, 0)),
        (true, None, None, None)
    );
    assert!(scene.node(2).troubles[0].starts_with("192.0.2.1 gives out the pool's addresses"));
    assert_eq!(scene.has(2, 0), Some(first));
    scene.restart(1);
    scene.cut(1, false);
    scene.rest();
    scene.check().unwrap();
    assert_eq!(scene.has(3, 0), Some(first));
    assert!((1..=3).all(|last| scene.has(last, last).is_some()));
}

#[test]
fn an_address_in_conflict_is_replaced_unless_others_have_it() {
    let mut scene = Scene::new();
    scene.ask(2, 0);
    scene.rest();
    let first = scene.has(2, 0).unwrap();
    scene.node(2).has.0.clear();
    scene.act(id(2), |claims, has, now| claims.order(Order::Another(vip(0)), has, now));
    scene.rest();
    let second = scene.has(2, 0).unwrap();
    assert_ne!(second, first);
    scene.ask(3, 0);
    scene.rest();
    scene.act(id(3), |claims, has, now| claims.order(Order::Another(vip(0)), has, now));
    scene.rest();
    assert!(scene.node(3).troubles[0].contains("is in conflict on this node, and other nodes have it"));
    // A node that has an address for another VIP, of which the register knows nothing.
    scene.node(3).has.0.insert(vip(9), address(3));
    scene.ask(1, 3);
    scene.ask(1, 4);
    scene.rest();
    assert!([3, 4].iter().all(|number| scene.has(1, *number) != Some(address(3))));
}

#[test]
fn who_is_silent_is_named() {
    let mut scene = Scene::new();
    // Its kernel lives, and its viprouted says nothing.
    scene.node(3).is_cut = true;
    scene.ask(2, 0);
    scene.rest();
    assert!(scene.node(2).troubles[0].starts_with("192.0.2.3 must say whether 10.118.0.1 may be its address"));
    scene.node(3).is_cut = false;
    scene.rest();
    assert_eq!(scene.has(2, 0), Some(address(1)));
    scene.node(1).is_cut = true;
    scene.ask(2, 1);
    scene.rest();
    scene.rest();
    assert!(scene.node(2).troubles.last().unwrap().starts_with("192.0.2.1 gives out the pool's addresses"));
    // It can't read its register.
    scene.node(1).is_cut = false;
    scene.node(1).claims.setup.register = Err("torn".to_owned());
    scene.node(1).claims.keeper = None;
    scene.rest();
    assert!(scene.node(2).troubles.last().unwrap().contains("can't read its register of the pool: torn"));
    assert_eq!(scene.has(2, 1), None);
}

#[test]
fn seeds_that_name_another_node_are_said() {
    let mut scene = Scene::new();
    scene.node(2).claims.setup.decides = Some(id(3).0.into());
    scene.ask(2, 0);
    scene.rest();
    assert!(
        scene.node(2).troubles[0].contains("let the seeds be the same on all nodes"),
        "{:?}",
        scene.node(2).troubles
    );
    scene.node(2).claims.setup.decides = None;
    scene.ask(2, 0);
    scene.rest();
    assert!(scene.node(2).troubles.last().unwrap().contains("none of which is an address"));
}

/// Whatever can happen.
#[derive(Clone, Debug)]
enum Event {
    Ask(u8, u8),
    Stop(u8, u8),
    Cut(u8, bool),
    Restart(u8),
    Deliver(usize),
    Lose(usize),
    Repeat(usize),
    Write(bool),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..4_u8, 0..6_u8).prop_map(|(node, vip)| Event::Ask(node, vip)),
        2 => (1..4_u8, 0..6_u8).prop_map(|(node, vip)| Event::Stop(node, vip)),
        1 => (1..4_u8, any::<bool>()).prop_map(|(node, is_cut)| Event::Cut(node, is_cut)),
        1 => (1..4_u8).prop_map(Event::Restart),
        12 => any::<usize>().prop_map(Event::Deliver),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => any::<usize>().prop_map(Event::Repeat),
        4 => prop::bool::weighted(0.8).prop_map(Event::Write),
        4 => (1..1500_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn no_address_is_ever_two_vips(events in prop::collection::vec(event(), 0..150)) {
        let mut scene = Scene::new();
        for event in events {
            match event {
                Event::Ask(node, number) => scene.ask(node, number),
                Event::Stop(node, number) => scene.stop(node, number),
                Event::Cut(node, is_cut) => scene.cut(node, is_cut),
                Event::Restart(node) => scene.restart(node),
                Event::Deliver(at) => scene.deliver(at),
                Event::Lose(at) if !scene.wire.is_empty() => drop(scene.wire.swap_remove(at % scene.wire.len())),
                Event::Repeat(at) if !scene.wire.is_empty() => {
                    let again = scene.wire[at % scene.wire.len()].clone();
                    scene.wire.push(again);
                }
                Event::Lose(_) | Event::Repeat(_) => {}
                Event::Write(succeeds) => (1..=3).for_each(|last| scene.write(last, succeeds)),
                Event::Pass(millis) => scene.pass(millis),
            }
            scene.check()?;
        }
        (1..=3).for_each(|last| scene.cut(last, false));
        scene.rest();
        scene.check()?;
    }
}
