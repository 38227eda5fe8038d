//! Nodes that know each other and have a pool: one of them gives out its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::leases::Member;
use super::new_key;
use crate::harness::{Failure, Join, Lan, PATIENCE, SOON, TempDir, until};

/// Node 192.0.2.1 decides: it has the lowest address of the seeds.
struct Scene {
    members: Vec<Member>,
    lan: Lan,
    _dir: TempDir,
}

impl Scene {
    /// `hold`: how long a node keeps an address that it has no replica for.
    fn new(cidr: &str, hold: &str) -> Self {
        let (lan, dir) = (Lan::new(), TempDir::new());
        let key = new_key(&dir, "membership.key");
        let members = (1..=3).map(|number| {
            let settings = format!(
                "backend = \"pool\"\nhold = \"{hold}\"\n[pool]\ncidr = \"{cidr}\"\n[membership]\nkey_file = {key:?}\n\
                 name = \"n{number}\"\nseeds = [\"192.0.2.3\", \"192.0.2.2\", \"192.0.2.1\"]"
            );
            Member::new(&lan, number, settings)
        });
        let scene = Self { members: members.collect(), lan, _dir: dir };
        scene.see(&[0, 1, 2], 2);
        scene
    }

    /// These nodes see so many others.
    fn see(&self, members: &[usize], others: usize) {
        for at in members {
            until("the nodes see each other", PATIENCE, || (self.members[*at].live() == others).then_some(()));
        }
    }

    fn acquire(&self, at: usize, vip: &str) -> Result<Ipv4Addr, Failure> {
        self.members[at].sidecar().acquire(vip)
    }

    fn link(&self, member: usize, state: &str) {
        self.lan.ns.ip(&format!("link set port{member} {state}"));
    }

    /// No address of one VIP is another's on any node, and no VIP has two.
    fn check(&self, vips: &[&str]) {
        let mut by_address: BTreeMap<String, &str> = BTreeMap::new();
        for vip in vips {
            let has = |member: &Member| Some(member.sidecar().status(vip)?["address"].as_str()?.to_owned());
            let addresses: BTreeSet<String> =
                self.members.iter().filter(|member| member.sidecar.is_some()).filter_map(has).collect();
            assert!(addresses.len() <= 1, "{vip}: {addresses:?}");
            for address in addresses {
                assert_eq!(by_address.insert(address.clone(), vip), None, "{address} is another VIP's, too");
            }
        }
    }
}

#[test]
fn a_vip_has_one_address_of_the_pool_on_all_nodes_and_no_other_vip_has_it() {
    let scene = Scene::new("10.118.0.0/24", "10m");
    // All at once: each VIP on two nodes or three, and one of each node's own.
    let wanted: Vec<(usize, String)> = (0..3)
        .flat_map(|at| {
            (0..4).map(move |number| (at, format!("shop/web{number}"))).chain([(at, format!("shop/own{at}"))])
        })
        .collect();
    let granted: Vec<(String, Ipv4Addr)> = thread::scope(|scope| {
        let ask = |at: usize, vip: &str| scene.acquire(at, vip).expect("an address");
        let asking: Vec<_> = wanted.iter().map(|(at, vip)| scope.spawn(move || (vip.clone(), ask(*at, vip)))).collect();
        asking.into_iter().map(|one| one.join().expect("a caller")).collect()
    });
    let distinct: BTreeSet<_> = granted.iter().collect();
    let addresses: BTreeSet<_> = granted.iter().map(|(_, address)| address).collect();
    assert_eq!((distinct.len(), addresses.len()), (7, 7), "{granted:?}");
    assert!(addresses.iter().all(|address| address.octets()[..3] == [10, 118, 0]), "{addresses:?}");
    let pods: Vec<_> = scene.members.iter().map(|member| member.node.joined(&Join::annotated("pod"))).collect();
    assert!(pods.iter().all(|pod| pod.vip() == pods[0].vip()));
}

#[test]
fn nothing_is_given_out_while_the_node_that_decides_is_away_and_nothing_twice_afterwards() {
    let mut scene = Scene::new("10.118.0.0/24", "10m");
    let pods: Vec<_> = scene.members.iter().map(|member| member.node.joined(&Join::annotated("web"))).collect();
    let vip = pods[0].vip();
    // A partition: on neither side an address is given out that the other one could have.
    scene.link(0, "down");
    until("n1 is silent", SOON, || (scene.members[1].live() == 1 && scene.members[2].live() == 1).then_some(()));
    let refused: Vec<Failure> = thread::scope(|scope| {
        let ask = |at: usize| scene.acquire(at, &format!("default/new{at}")).expect_err("nobody decides");
        let asking: Vec<_> = [1, 2].into_iter().map(|at| scope.spawn(move || ask(at))).collect();
        asking.into_iter().map(|one| one.join().expect("a caller")).collect()
    });
    for refusal in &refused {
        let said = "192.0.2.1 gives out the pool's addresses, as the lowest of membership.seeds, and isn't heard";
        assert!(refusal.code == 11 && refusal.msg.contains(said), "{refusal:?}");
    }
    let alone = scene.acquire(0, "default/new0").expect("it decides for itself");
    assert_ne!(alone, vip);
    let config = |at: usize| scene.members[at].node.dir.file("viprouted.toml");
    let doctor =
        |at: usize| scene.members[at].ctl(&["doctor", "--conf-dir", "/nonexistent", "--config", &config(at)]).stdout;
    let found = "192.0.2.1 gives out the pool's addresses, as the lowest of membership.seeds, and isn't heard";
    assert!(doctor(1).contains(found) && !doctor(0).contains(found), "{}", doctor(1));
    // What is there goes on, for new pods too.
    let late = scene.members[1].node.joined(&Join::annotated("web"));
    assert_eq!(late.vip(), vip);
    scene.link(0, "up");
    scene.see(&[0, 1, 2], 2);
    until("doctor finds nothing of it", SOON, || (!doctor(1).contains(found)).then_some(()));
    let after: BTreeSet<Ipv4Addr> =
        [1, 2].into_iter().map(|at| scene.acquire(at, &format!("default/new{at}")).expect("an address")).collect();
    assert!(after.len() == 2 && !after.contains(&vip) && !after.contains(&alone), "{after:?}");
    // It dies, and comes back with what is on its disk.
    scene.members[0].sidecar().daemon.signal(Signal::SIGKILL);
    scene.members[0].sidecar = None;
    let refusal = scene.acquire(2, "default/later").expect_err("nobody decides");
    // Its kernel lives: it isn't taken for dead.
    assert!(refusal.code == 11 && refusal.msg.contains(found), "{refusal:?}");
    scene.members[0].start();
    scene.see(&[0, 1, 2], 2);
    let later = scene.acquire(2, "default/later").expect("an address");
    assert!(later != vip && later != alone && !after.contains(&later), "{later}");
    // So does one that asks.
    scene.members[2].sidecar.take().expect("viprouted runs").stop();
    scene.members[2].start();
    scene.see(&[0, 1, 2], 2);
    assert_eq!(scene.acquire(2, "default/web").expect("an address"), vip);
    for pod in &pods {
        assert_eq!(pod.vips(), [vip]);
    }
    scene.check(&["default/web", "default/new0", "default/new1", "default/new2", "default/later"]);
}

#[test]
fn an_address_is_free_again_when_no_node_has_it() {
    let scene = Scene::new("10.118.0.0/30", "2s");
    let pods = [1, 2].map(|at: usize| scene.members[at].node.joined(&Join::annotated("web")));
    let other = scene.members[1].node.joined(&Join::annotated("api"));
    let (vip, freed) = (pods[1].vip(), other.vip());
    let full = scene.acquire(2, "default/more").expect_err("two addresses, two VIPs");
    assert!(full.code == 11 && full.msg.contains("no address of pool default (10.118.0.0/30) is free"), "{full:?}");
    scene.members[1].node.remove(&pods[0], &Join::annotated("web"));
    // The other node has it still.
    until("it is given up on one node", PATIENCE, || {
        scene.members[1].sidecar().status("default/web").is_none().then_some(())
    });
    assert_eq!(scene.acquire(0, "default/web").expect("an address"), vip);
    scene.members[1].node.remove(&other, &Join::annotated("api"));
    let again = until("the other VIP's is free", Duration::from_secs(60), || scene.acquire(2, "default/more").ok());
    assert_eq!(again, freed);
    scene.check(&["default/web", "default/more"]);
}

#[test]
fn nodes_with_other_seeds_are_told_apart() {
    let mut scene = Scene::new("10.118.0.0/24", "10m");
    let stranger = &mut scene.members[1];
    stranger.sidecar.take().expect("viprouted runs").stop();
    stranger.reconfigure("[\"192.0.2.3\", \"192.0.2.2\", \"192.0.2.1\"]", "[\"192.0.2.3\"]");
    stranger.start();
    scene.see(&[1], 2);
    let refusal = scene.acquire(1, "default/web").expect_err("n3 says that n1 decides");
    assert!(refusal.code == 11 && refusal.msg.contains("let the seeds be the same on all nodes"), "{refusal:?}");
}
