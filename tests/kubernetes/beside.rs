//! viproute and MetalLB on clusters of the same parts, measured alike. `./install.sh bench --kubernetes` runs it, and writes
//! docs/benchmarks-kubernetes.md.

// MetalLB is its name.
#![allow(clippy::doc_markdown)]

mod arrivals;
mod coming;
mod costs;
mod many;
mod metallb;
mod moves;
mod report;

use std::net::Ipv4Addr;
use std::time::Duration;

use metallb::MetalLb;
use report::Column;

use crate::bed::{Cluster, Deployment, Rollout, Setup};
use crate::harness::{Flows, Load, PORT};

/// Who answers for Services.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contender {
    Viproute,
    /// In L2 mode, kube-proxy behind it, with this `externalTrafficPolicy`.
    MetalLb(&'static str),
}

impl Contender {
    fn title(self) -> String {
        match self {
            Self::Viproute => "viproute".into(),
            Self::MetalLb(policy) => format!("MetalLB 0.15.2, `{policy}`"),
        }
    }
}

/// A cluster of two nodes, four pods and a Service of them.
struct Stage {
    contender: Contender,
    metallb: Option<MetalLb>,
    cluster: Cluster,
    web: Deployment,
    vip: Ipv4Addr,
}

impl Stage {
    fn new(contender: Contender) -> Self {
        let ours = contender == Contender::Viproute;
        let mut cluster = Cluster::with(&Setup { services: ours, bare: !ours, ..Setup::default() });
        let metallb = (!ours).then(|| MetalLb::start(&mut cluster));
        let web = Deployment::new("web", 4);
        web.apply(&cluster.control);
        let mut service = web.service("LoadBalancer", &[(PORT, PORT)]);
        if let Contender::MetalLb(policy) = contender {
            service["spec"]["externalTrafficPolicy"] = policy.into();
        }
        cluster.control.apply(&service);
        let vip = cluster.external("web");
        let stage = Self { contender, metallb, cluster, web, vip };
        stage.settle();
        stage
    }

    /// Until connections are answered again, and what is still going on has ended.
    fn settle(&self) {
        crate::harness::until("it answers", crate::harness::LONG, || {
            let load = Load { to: (self.vip, PORT).into(), count: 20, rate: None, concurrency: 2 };
            (self.cluster.client.run(|| load.run()).failed == 0).then_some(())
        });
        std::thread::sleep(Duration::from_secs(3));
    }
}

/// How even 2,000 connections are, and which address their servers see.
fn evenness(stage: &Stage, column: &mut Column) {
    let load = Load { to: (stage.vip, PORT).into(), count: 2000, rate: None, concurrency: 8 };
    let tally = stage.cluster.client.run(|| load.run());
    let answers = |pod: &String| tally.names.get(pod).copied().unwrap_or(0).to_string();
    let shares: Vec<_> = stage.cluster.pods("web").iter().map(answers).collect();
    column.say("2,000 connections, by pod", shares.join(", "));
    let own = tally.clients.iter().all(|client| client.to_string() == "192.0.2.50");
    column.say("the pod sees the client's address", if own { "yes" } else { "no" }.into());
}

/// All four pods are replaced, while 200 connections a second begin.
fn rollouts(stage: &mut Stage, column: &mut Column) {
    for (line, arguments) in [
        ("rolling update, servers exit at SIGTERM", Vec::new()),
        ("rolling update, servers ignore SIGTERM", vec!["-term=ignore".to_owned()]),
    ] {
        // The first update brings the servers that the second one ends.
        stage.web = Deployment { arguments, revision: stage.web.revision + 1, ..stage.web.clone() };
        stage.web.apply(&stage.cluster.control);
        stage.settle();
        let internal = stage.cluster.internal("web");
        let rollout = Rollout::watch(&stage.cluster.client, (stage.vip, PORT), (internal, PORT), 200);
        stage.web.revision += 1;
        stage.web.apply(&stage.cluster.control);
        let (outcome, _) = rollout.end();
        let (failed, all) = (outcome.failed.len(), outcome.failed.len() + outcome.answered);
        column.say(line, format!("{failed} of {all} failed"));
    }
}

/// All of one contender, and the page anew with what is known of the others.
fn measure(contender: Contender) {
    let mut column = Column::new(contender.title());
    let mut stage = Stage::new(contender);
    evenness(&stage, &mut column);
    rollouts(&mut stage, &mut column);
    moves::measure(&mut stage, &mut column);
    arrivals::measure(&stage, &mut column);
    report::write(&column);
}

#[test]
#[ignore = "./install.sh bench --kubernetes runs it"]
fn a_viproute() {
    measure(Contender::Viproute);
}

#[test]
#[ignore = "./install.sh bench --kubernetes runs it"]
fn b_metallb_cluster() {
    measure(Contender::MetalLb("Cluster"));
}

#[test]
#[ignore = "./install.sh bench --kubernetes runs it"]
fn c_metallb_local() {
    measure(Contender::MetalLb("Local"));
}

/// Live connections whose servers have nothing to do with what happens.
const LIVE: usize = 60;

fn live(stage: &Stage) -> Flows {
    Flows::open("the client", &stage.cluster.client, stage.vip, LIVE)
}
