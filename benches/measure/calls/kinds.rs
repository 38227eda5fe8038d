//! The plugins that are called, and the node they are called on.

use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::call::{Cycle, Timed, time};
use crate::contenders::{Plugin, pool};
use crate::results::{PASSED, PTP};
use crate::stage::{Pod, PodKind, Sidecar, World, program, try_base_plugin};

/// The VIP that pods join.
const VIP: &str = "web";

/// Which plugin, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ptp,
    Bridge,
    Portmap,
    Viproute,
    Passed,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Ptp, Self::Bridge, Self::Portmap, Self::Viproute, Self::Passed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ptp => PTP,
            Self::Bridge => "bridge with host-local",
            Self::Portmap => "portmap, one port",
            Self::Viproute => crate::contenders::VIPROUTE,
            Self::Passed => PASSED,
        }
    }

    /// What the pod must have before.
    fn pod(self) -> PodKind {
        match self {
            Self::Ptp | Self::Bridge => PodKind::Empty,
            _ => PodKind::Bare,
        }
    }

    fn command(self) -> Result<Command> {
        Ok(Command::new(match self {
            Self::Ptp => try_base_plugin("ptp")?,
            Self::Bridge => try_base_plugin("bridge")?,
            Self::Portmap => try_base_plugin("portmap")?,
            Self::Viproute | Self::Passed => program("viproute"),
        }))
    }
}

/// A node where plugins are called. Fields are dropped in this order.
pub struct Site {
    _agent: Sidecar,
    plugin: Plugin,
    /// Those the calls are about: with an `eth0` and without.
    bare: Pod,
    empty: Pod,
    pub world: World,
    /// Those of the world's that have joined.
    joined: usize,
}

impl Site {
    /// With `replicas` replicas of the VIP.
    pub fn new(name: &str, replicas: usize) -> Result<Self> {
        let world = World::new(name, 0, PodKind::Bare)?;
        let bare = Pod::new(name, &world.node, 50_001, PodKind::Bare)?;
        let empty = Pod::new(name, &world.node, 50_002, PodKind::Empty)?;
        let (plugin, agent) = (Plugin::on(&world), pool(&world)?);
        let mut site = Self { _agent: agent, plugin, bare, empty, world, joined: 0 };
        site.grow(replicas)?;
        Ok(site)
    }

    /// More replicas, `count` in all.
    pub fn grow(&mut self, count: usize) -> Result<()> {
        self.world.grow(count, PodKind::Bare)?;
        for pod in &self.world.pods[self.joined..] {
            self.plugin.add(&self.world.node, pod, VIP)?;
        }
        self.joined = self.world.pods.len();
        Ok(())
    }

    /// ADD, CHECK and DEL.
    pub fn cycle(&self, kind: Kind) -> Result<Cycle> {
        self.cycle_by(kind, &|command, _| command)
    }

    /// The same, by way of what `wrap` makes of a command for a verb.
    pub fn cycle_by(&self, kind: Kind, wrap: &(dyn Fn(Command, &str) -> Command + Sync)) -> Result<Cycle> {
        let pod = if kind.pod() == PodKind::Empty { &self.empty } else { &self.bare };
        let call = |verb: &str, previous: &Value| -> Result<Timed> {
            let mut command = kind.command()?;
            pod.environment(verb).apply(&mut command);
            time(&mut wrap(command, verb), &self.stdin(kind, pod, previous))
        };
        self.world.node.try_run(|| {
            let add = call("ADD", &pod.base_result())?;
            let result: Value = serde_json::from_str(&add.stdout).context("ADD's result")?;
            let check = call("CHECK", &result).map(|timed| timed.seconds).map_err(|error| format!("{error:#}"));
            Ok(Cycle { add: add.seconds, check, del: call("DEL", &result)?.seconds })
        })
    }

    fn stdin(&self, kind: Kind, pod: &Pod, previous: &Value) -> String {
        let ipam = json!({
            "type": "host-local", "ranges": [[{ "subnet": "10.2.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": self.world.file("host-local"),
        });
        let conf = match kind {
            Kind::Ptp => json!({ "type": "ptp", "ipam": ipam }),
            Kind::Bridge => json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam }),
            Kind::Portmap => json!({
                "type": "portmap", "capabilities": { "portMappings": true },
                "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
            }),
            Kind::Viproute => return self.plugin.stdin(pod, VIP, previous),
            Kind::Passed => return self.plugin.stdin(pod, "", previous),
        };
        let mut conf = conf;
        conf["cniVersion"] = json!("1.0.0");
        conf["name"] = json!(format!("bench-{}", conf["type"].as_str().unwrap_or_default()));
        // A base plugin's own result comes back for CHECK and DEL; ADD has none before it.
        if !matches!(kind, Kind::Ptp | Kind::Bridge) || previous != &pod.base_result() {
            conf["prevResult"] = previous.clone();
        }
        conf.to_string()
    }

    /// Pods to be added at once.
    pub fn crowd(&self, kind: Kind, count: usize) -> Result<Vec<Pod>> {
        (0..count).map(|at| Pod::new(&self.world.name, &self.world.node, 40_000 + at, kind.pod())).collect()
    }

    /// Calls for all of them at the same moment; seconds until the last one has ended.
    pub fn all_at_once(&self, kind: Kind, verb: &str, pods: &[Pod]) -> Result<f64> {
        let start = Barrier::new(pods.len() + 1);
        let call = |pod: &Pod| {
            let stdin = self.stdin(kind, pod, &pod.base_result());
            let mut command = kind.command()?;
            pod.environment(verb).apply(&mut command);
            self.world.node.try_run(|| {
                start.wait();
                time(&mut command, &stdin)
            })
        };
        thread::scope(|scope| {
            let call = &call;
            let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(move || call(pod))).collect();
            start.wait();
            let began = Instant::now();
            for call in calls {
                call.join().ok().context("a call")??;
            }
            Ok(began.elapsed().as_secs_f64())
        })
    }
}
