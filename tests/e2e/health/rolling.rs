//! A rolling restart: six replicas replaced one after the other under load, and no connection is refused or reset.

use std::path::Path;

use viproute::internals::net::sockets::Sockets;

use super::{HTTP, PATIENCE, Scene, web};
use crate::harness::{Crowd, Flows, HttpServer, Join, Pod, Storm, until};

const REPLICAS: usize = 6;
/// Connections that stay open.
const STEADY: usize = 300;
/// New ones a second.
const RATE: u32 = 200;

/// A replica with its server, and what its check asks.
struct Replica {
    server: Crowd,
    health: HttpServer,
    pod: Pod,
}

/// It says when it wants no more.
fn graceful() -> Join {
    web(&format!("http:{HTTP}/ready interval=200ms fall=2"))
}

impl Scene {
    /// As a new version comes: the pod is there before its server listens.
    fn begin(&self, join: &Join) -> Replica {
        let pod = self.node.joined(join);
        let health = HttpServer::start(&pod, HTTP, 503);
        assert_eq!(self.state(&pod), "pending");
        let server = Crowd::start(&pod);
        health.answer(200);
        self.becomes(&pod, "ready");
        Replica { server, health, pod }
    }

    /// As an old version goes: it says so, finishes what it has begun, ends its connections, and is deleted.
    fn end(&self, replica: Replica, join: &Join, steady: &[Flows]) -> String {
        let Replica { server, health, pod } = replica;
        health.answer(503);
        self.becomes(&pod, "draining");
        let open = Sockets::open(&viproute::internals::net::Netns::open(Path::new(&pod.ns.path())).unwrap()).unwrap();
        let held: usize =
            steady.iter().map(|flows| flows.live().get(pod.name.as_str()).copied().unwrap_or_default()).sum();
        until("only steady connections are left", PATIENCE, || {
            let connections = open.connections(self.vip().into()).unwrap();
            (connections.iter().filter(|connection| connection.port == crate::harness::PORT).count() == held)
                .then_some(())
        });
        drop(server);
        self.node.remove(&pod, join);
        pod.name.clone()
    }
}

#[test]
fn a_rolling_restart_refuses_and_resets_nobody() {
    let scene = Scene::new();
    let old: Vec<_> = (0..REPLICAS).map(|_| scene.begin(&graceful())).collect();
    let mut steady = vec![Flows::open("the client", &scene.client, scene.vip(), STEADY)];
    assert_eq!(steady[0].live().len(), REPLICAS);
    let storm = Storm::start(&scene.client, scene.vip(), RATE);
    let (mut new, mut gone) = (Vec::new(), Vec::new());
    for (number, replica) in old.into_iter().enumerate() {
        // Some of the new ones are ready as soon as they listen.
        let join = if number % 2 == 0 { web("listen interval=200ms") } else { graceful() };
        new.push(scene.begin(&join));
        gone.push(scene.end(replica, &graceful(), &steady));
        // Clients whose connection was closed come again; no others had to.
        let before: usize = steady.iter().map(|flows| flows.live().values().sum::<usize>()).sum();
        steady.iter_mut().for_each(Flows::ask);
        steady.iter_mut().for_each(Flows::hear);
        let complaints: Vec<_> = steady.iter().filter_map(|flows| flows.complaint(&gone)).collect();
        assert_eq!(complaints, [""; 0]);
        let after: usize = steady.iter().map(|flows| flows.live().values().sum::<usize>()).sum();
        steady.push(Flows::open("the client", &scene.client, scene.vip(), before - after));
        assert_eq!(storm.seen().failed, [""; 0], "after {number} replicas");
    }
    let seen = storm.next(400);
    assert_eq!(seen.failed, [""; 0]);
    for Replica { pod, .. } in &new {
        assert!(seen.of(&pod.name) > 0, "{} has its part: {seen:?}", pod.name);
    }
    assert!(gone.iter().all(|name| seen.of(name) == 0), "{gone:?} are gone: {seen:?}");
    let live: usize = steady.iter().map(|flows| flows.live().values().sum::<usize>()).sum();
    assert_eq!(live, STEADY);
}
