//! The node changes while flows go straight.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use viproute::internals::ebpf::{ExpressCounts, Maps};

use super::{Flow, Source, Switch, Talk, joining, read, service, since};
use crate::harness::{Datagrams, Echo, Flows, Kind, Pod, Run, SOON, Service, connect, until};

/// Live connections.
const FLOWS: usize = 300;

/// Buckets seem idle after a second, and move.
const IDLE: Duration = Duration::from_millis(2500);

struct Live<'a> {
    flows: Flows,
    gone: Vec<String>,
    service: &'a Service,
    switch: Switch<'a>,
}

impl<'a> Live<'a> {
    fn new(service: &'a Service) -> Self {
        let switch = Switch::on(&service.node);
        let flows = Flows::open("the client", &service.client, service.vip, FLOWS);
        assert_eq!(flows.live().len(), 3, "each replica has some");
        Self { flows, gone: Vec::new(), service, switch }
    }

    fn assert_unbroken(&mut self, what: &str) {
        for _ in 0..2 {
            self.question();
            thread::sleep(IDLE);
            self.question();
        }
        if let Some(complaint) = self.flows.complaint(&self.gone) {
            panic!("{what}: of {FLOWS}\n{complaint}");
        }
    }

    fn question(&mut self) {
        self.flows.ask();
        self.flows.hear();
    }
}

fn a_replica_joins(live: &mut Live) {
    live.service.add(&live.service.pods[3]);
}

fn a_replica_leaves(live: &mut Live) {
    let pod = &live.service.pods[2];
    live.service.remove(pod);
    live.gone.push(pod.name.clone());
}

fn a_replica_drains(live: &mut Live) {
    let draining = &live.service.pods[1];
    live.service.drain(draining);
    let tally = connect(&live.service.client, live.service.vip, 60);
    assert!(!tally.names.contains_key(&draining.name), "new connections of one that drains: {tally:?}");
}

fn a_route_comes_and_goes(live: &mut Live) {
    let node = &live.service.node.ns;
    node.ip("route add 198.51.100.0/24 via 192.0.2.254");
    live.switch.bump();
    live.question();
    node.ip("route del 198.51.100.0/24");
}

fn express_is_switched(live: &mut Live) {
    live.switch.off();
    live.question();
    thread::sleep(IDLE);
    live.question();
    live.switch.bump();
}

fn requests_are_lost(live: &mut Live) {
    live.service.lan.ns.ip("link set port0 down");
    live.flows.ask();
    thread::sleep(Duration::from_millis(1600));
    live.service.lan.ns.ip("link set port0 up");
    live.flows.hear();
}

#[test]
fn connections_survive_with_express() {
    for step in [
        a_replica_joins,
        a_replica_leaves,
        a_replica_drains,
        a_route_comes_and_goes,
        express_is_switched,
        requests_are_lost,
    ] {
        let service = service(3, 1);
        let mut live = Live::new(&service);
        live.question();
        step(&mut live);
        live.assert_unbroken("after it");
        let (requests, answers) = since(live.switch.counts(), ExpressCounts::default());
        assert!(requests > 1000 && answers > 1000, "{requests} requests and {answers} answers went straight");
    }
}

/// One after the other, with the agent's word after each or without.
#[test]
fn connections_survive_all_of_it_with_express() {
    for told in [true, false] {
        let service = service(3, 1);
        let mut live = Live::new(&service);
        for step in [
            a_replica_joins,
            a_replica_drains,
            express_is_switched,
            a_route_comes_and_goes,
            requests_are_lost,
            a_replica_leaves,
        ] {
            step(&mut live);
            if told {
                live.switch.bump();
            }
            live.assert_unbroken("after it");
        }
    }
}

/// 200 connections whose handshakes lose the SYN-ACK: the SYN is repeated after express was switched.
#[test]
fn a_repeated_syn_finds_its_replica_however_express_is_switched() {
    const LOST: &str = "table ip lost {
        chain input { type filter hook input priority 0; ip saddr 10.118.0.0/16 tcp flags & (syn|ack) == syn|ack drop; }
    }";
    for on in [true, false] {
        let service = service(3, 0);
        let switch = Switch::on(&service.node);
        if on {
            switch.off();
        }
        let client = &service.client;
        client.cmd("nft").args(["-f", "-"]).finish(LOST).ok();
        let names: Vec<String> = thread::scope(|scope| {
            let talks: Vec<_> = (0..200)
                .map(|_| {
                    scope.spawn(|| {
                        let mut talk = Talk::with(client, service.vip);
                        let name = talk.ask();
                        assert_eq!(talk.ask(), name);
                        name
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(700));
            if on {
                switch.bump();
            } else {
                switch.off();
            }
            client.cmd("nft").args(["-f", "-"]).finish("delete table ip lost").ok();
            talks.into_iter().map(|talk| talk.join().expect("a connection that lives")).collect()
        });
        assert_eq!(names.len(), 200);
    }
}

/// The uplink takes less from now on.
#[test]
fn a_download_goes_on_when_the_uplink_takes_less() {
    const SIZE: usize = 20_000_000;
    let service = service(2, 0);
    let _sources: Vec<_> = service.pods.iter().map(|pod| Source::start(&pod.ns, SIZE)).collect();
    let switch = Switch::on(&service.node);
    let mut download = Source::download(&service.client, service.vip);
    let first = read(&mut download, SIZE / 4);
    let straight = since(switch.counts(), ExpressCounts::default()).1;
    assert!(straight > 20, "{straight} packets went straight");
    service.node.ns.ip("link set eth0 mtu 1300");
    assert_eq!(first + read(&mut download, usize::MAX), SIZE);
    assert!(since(switch.counts(), ExpressCounts::default()).1 > straight + 20, "it goes on straight");
}

/// The route's own limit, which the devices don't have.
#[test]
fn what_the_route_does_not_take_is_the_stacks() {
    const LONG: [u8; 1390] = [b'x'; 1390];
    let service = service(1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    service.node.ns.ip("route add 192.0.2.50/32 dev eth0 mtu lock 1300");
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    for _ in 0..5 {
        flow.ask().expect("an answer");
    }
    let before = switch.counts();
    // The pod is told of the limit, and sends its answers in fragments then.
    until("a long answer", SOON, || flow.ask_with(&LONG));
    assert!(flow.ask_with(&LONG).is_some());
    let (requests, answers) = since(switch.counts(), before);
    assert!(requests > 0, "the requests' way takes them");
    assert_eq!(answers, 0, "what is longer than the route takes");
    flow.ask().expect("an answer");
    flow.ask().expect("an answer");
    assert!(since(switch.counts(), before).1 >= 1, "short ones go straight");
}

/// What was listed isn't any more: the flow ends with the next packet, without the agent's word.
#[test]
fn a_port_that_is_shut_is_shut_for_flows_that_go_straight() {
    let service = Service::with(&joining("8080/tcp,8080/udp", &[]), 1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let switch = Switch::on(&service.node);
    let flow = Flow::with(&service.client, service.vip);
    for _ in 0..10 {
        flow.ask().expect("an answer");
    }
    let mut maps = Maps::open(service.node.bpf_dir().as_ref()).expect("the maps").expect("they are there");
    let (ifindex, vip) = maps.all_attached().expect("the replicas").remove(0);
    let mut entry = maps.attached(ifindex, vip).expect("its entry").expect("it is there");
    (entry.ports, entry.port[1]) = (1, 0); // TCP's
    maps.attach(ifindex, vip, &entry).expect("write it");
    let (before, denied) = (switch.counts(), service.counter("port_denied"));
    assert_eq!(flow.ask(), None);
    assert_eq!(since(switch.counts(), before), (0, 0));
    assert_eq!(service.counter("port_denied") - denied, 1);
}

/// A pod is deleted: no packet goes there any more, and flows find another replica.
#[test]
fn leases_end_with_the_pod() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let _switch = Switch::on(&service.node);
    let flows: Vec<Flow> = (0..20).map(|_| Flow::with(&service.client, service.vip)).collect();
    let talks: Vec<Talk> = (0..20).map(|_| Talk::with(&service.client, service.vip)).collect();
    let mut names = Vec::new();
    for flow in &flows {
        flow.ask().expect("an answer");
        names.push(flow.ask().expect("an answer"));
    }
    assert!(names.contains(&service.pods[0].name), "{names:?}");
    service.remove(&service.pods[0]);
    for flow in &flows {
        assert_eq!(flow.ask().as_deref(), Some(service.pods[1].name.as_str()));
    }
    let mut ended = 0;
    for mut talk in talks {
        match talk.try_ask(SOON) {
            Ok(name) => assert_eq!(name, service.pods[1].name),
            Err(_) => ended += 1,
        }
    }
    assert!(ended > 0, "some were the pod's that has gone");
}

/// Its veth pair alone goes, as where a runtime deletes the namespace first: the other replica's flows aren't touched, and the kernel's
/// helper finds no device.
#[test]
fn leases_end_with_the_device() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let _switch = Switch::on(&service.node);
    let flows: Vec<Flow> = (0..20).map(|_| Flow::with(&service.client, service.vip)).collect();
    let leaving = |pod: &Pod, flow: &Flow| flow.ask().expect("an answer") == pod.name;
    let (leaving, staying): (Vec<&Flow>, Vec<&Flow>) = flows.iter().partition(|flow| leaving(&service.pods[0], flow));
    assert!(!leaving.is_empty() && !staying.is_empty());
    service.pods[0].ns.ip("link del vip0");
    for flow in &staying {
        assert_eq!(flow.ask().as_deref(), Some(service.pods[1].name.as_str()));
    }
    service.sync();
    for flow in leaving {
        until("the flow finds the other replica", SOON, || {
            (flow.ask().as_deref() == Some(service.pods[1].name.as_str())).then_some(())
        });
    }
}

/// Sticky UDP flows stay when replicas come and go, whatever goes straight.
#[test]
fn sticky_flows_stay() {
    let service = Service::with(&joining("8080/udp,8080/tcp", &[("udp-sticky", "true")]), 2, 1);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let switch = Switch::on(&service.node);
    let kinds = [50, 700, 3000].map(|every| Kind {
        from: "the client",
        ns: &service.client,
        connected: true,
        every: Duration::from_millis(every),
    });
    let flows = Datagrams::start(service.vip, &kinds, 60);
    thread::sleep(Duration::from_secs(4));
    service.add(&service.pods[2]);
    thread::sleep(Duration::from_secs(6));
    service.drain(&service.pods[0]);
    thread::sleep(Duration::from_secs(6));
    let outcomes = flows.stop();
    let moved: Vec<_> = outcomes.iter().filter(|outcome| outcome.replicas.len() != 1).map(|o| &o.replicas).collect();
    assert!(moved.is_empty(), "moved: {moved:?}");
    let lost: u32 = outcomes.iter().map(|outcome| outcome.lost).sum();
    assert_eq!(lost, 0);
    let (requests, answers) = since(switch.counts(), ExpressCounts::default());
    assert!(requests > 5000 && answers > 5000, "{requests} requests and {answers} answers went straight");
}

/// New datagrams of a flow that isn't sticky leave a draining replica within a second, without the agent's word.
#[test]
fn datagrams_leave_a_draining_replica() {
    let service = service(2, 0);
    let _servers: Vec<_> = service.pods.iter().map(|pod| Echo::start(pod, service.vip)).collect();
    let _switch = Switch::on(&service.node);
    let flows: Vec<Flow> = (0..10).map(|_| Flow::with(&service.client, service.vip)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for flow in &flows {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    flow.ask().expect("an answer");
                    thread::sleep(Duration::from_millis(30));
                }
                until("the other replica answers", super::UDP_LEASE * 2, || {
                    (flow.ask().as_deref() == Some(service.pods[1].name.as_str())).then_some(())
                });
            });
        }
        thread::sleep(Duration::from_millis(1500));
        service.drain(&service.pods[0]);
        over.store(true, Ordering::Relaxed);
    });
}

/// The answers' route moves to another uplink, whose clients' device has another address.
#[test]
fn answers_take_the_route_that_is_there_now() {
    let service = service(1, 0);
    let _server = Echo::start(&service.pods[0], service.vip);
    let (node, client) = (&service.node.ns, &service.client);
    node.ip(&format!("link add up1 type veth peer name down1 netns {}", client.path()));
    node.ip("addr add 192.0.3.1/24 dev up1");
    node.ip("link set up1 up");
    client.ip("link set down1 up");
    client.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
    client.set_sysctl("net/ipv4/conf/down1/rp_filter", "0");
    client.ip("addr add 192.0.3.50/24 dev down1");
    let switch = Switch::on(&service.node);
    switch.attach("up1");
    let flow = Flow::with(client, service.vip);
    let count = || {
        let links = client.ip_json("-s link show dev down1");
        links[0]["stats64"]["rx"]["packets"].as_u64().expect("a count")
    };
    for _ in 0..10 {
        flow.ask().expect("an answer");
    }
    let (before, other) = (switch.counts(), count());
    node.ip("route add 192.0.2.50/32 via 192.0.3.50 dev up1");
    switch.bump();
    for _ in 0..10 {
        flow.ask().expect("an answer");
    }
    assert!(count() - other >= 10, "by the other uplink");
    let (requests, answers) = since(switch.counts(), before);
    assert!(requests >= 8 && answers >= 8, "{requests} requests and {answers} answers went straight");
}

/// An idle connection's next packet is the stack's, and it goes on.
#[test]
fn a_connection_that_rested_goes_on() {
    let service = service(3, 0);
    let switch = Switch::on(&service.node);
    let mut talk = Talk::with(&service.client, service.vip);
    let name = talk.ask();
    thread::sleep(super::TCP_LEASE + Duration::from_millis(500));
    let before = switch.counts();
    assert_eq!(talk.ask(), name);
    let (requests, answers) = since(switch.counts(), before);
    assert!(requests <= 1 && answers <= 1, "the first ones are the stack's: {requests} {answers}");
    assert_eq!(talk.ask(), name);
    assert!(since(switch.counts(), before).0 > requests, "the next ones go straight");
    talk.0.set_nonblocking(true).expect("a stream");
    assert!(talk.0.read(&mut [0; 8]).is_err(), "nothing came twice");
}
