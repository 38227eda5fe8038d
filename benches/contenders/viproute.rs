//! viproute as a node has it: the plugin called for each pod, the sidecar beside it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use viproute::allocator::client;
use viproute::allocator::protocol::AcquireRequest;
use viproute::net::NodeNet;
use viproute::registry::{Endpoint, Registry, VipKey, VipRecord};
use viproute::vip;

use super::{Contender, VIPROUTE};
use crate::load::PORT;
use crate::stage::{CLIENT, Daemon, NODE, Ns, Pod, Run, World, program};

const PATIENCE: Duration = Duration::from_secs(10);
/// Calls at the same time; viprouted takes 256.
const CALLERS: usize = 200;
/// The VIPs.
const VIPS: &str = "10.118.0.0/16";
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Calls of the plugin on one node.
pub struct Plugin {
    dir: PathBuf,
    node: PathBuf,
    /// What the conflist entry has besides.
    pub entry: Value,
}

impl Plugin {
    pub fn on(world: &World) -> Self {
        // On the BPF filesystem that the bench has mounted; it makes its own directory there.
        let entry = json!({ "bpfDir": format!("/run/bench/bpf/{}", world.name) });
        Self { dir: world.dir.clone(), node: world.node.path(), entry }
    }

    pub fn registry(&self) -> Registry {
        Registry::new(self.dir.join("registry"))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("viprouted.sock")
    }

    /// stdin of a call for a pod that joins these VIPs, as libcni completes it.
    pub fn stdin(&self, pod: &Pod, vips: &str, previous: &Value) -> String {
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "viproute",
            "dataDir": self.dir.join("registry"), "allocator": self.socket(),
            "capabilities": { ANNOTATIONS: true }, "prevResult": previous,
        });
        if !vips.is_empty() {
            conf["runtimeConfig"] = json!({ ANNOTATIONS: { "viproute.io/vip": vips, "bench/pod": pod.name() } });
        }
        for (key, value) in self.entry.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        conf.to_string()
    }

    /// A call, not made yet: `program` (the plugin, or what runs it) with a runtime's environment.
    pub fn command(&self, node: &Ns, program: impl AsRef<Path>, verb: &str, pod: &Pod) -> Result<Command> {
        debug_assert_eq!(node.path(), self.node);
        let mut command = node.cmd(program)?;
        environment(&mut command, verb, pod);
        Ok(command)
    }

    /// ADD; its result.
    pub fn add(&self, node: &Ns, pod: &Pod, vips: &str) -> Result<Value> {
        let stdin = self.stdin(pod, vips, &pod.base_result());
        let output = self.command(node, program("viproute"), "ADD", pod)?.output_of(&stdin)?;
        serde_json::from_str(&output).context("ADD's result")
    }

    /// DEL.
    pub fn del(&self, node: &Ns, pod: &Pod, vips: &str) -> Result<()> {
        let stdin = self.stdin(pod, vips, &pod.base_result());
        self.command(node, program("viproute"), "DEL", pod)?.output_of(&stdin).map(drop)
    }
}

/// A runtime's variables.
pub fn environment(command: &mut Command, verb: &str, pod: &Pod) {
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", pod.id()).env("CNI_NETNS", pod.ns.path());
    command.env("CNI_IFNAME", "eth0").env("CNI_PATH", "/usr/lib/cni:/opt/cni/bin");
    command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}", pod.name()));
}

/// viprouted on a node.
pub struct Agent(pub Daemon);

impl Agent {
    /// Starts it with `settings` (TOML) over the world's own paths, and waits until it answers.
    pub fn start(world: &World, settings: &str) -> Result<Self> {
        let config = world.file("viprouted.toml");
        let socket = world.file("viprouted.sock");
        let (state, data) = (world.file("state"), world.file("registry"));
        let text = format!(
            "socket = \"{}\"\nstate_dir = \"{}\"\ndata_dir = \"{}\"\n{settings}\n",
            socket.display(),
            state.display(),
            data.display()
        );
        #[allow(clippy::disallowed_methods)] // its reader isn't there yet
        fs::write(&config, text).context("viprouted.toml")?;
        let mut command = world.node.cmd(program("viprouted"))?;
        command.arg("--config").arg(&config);
        let mut daemon = Daemon::start(&mut command, &world.file("viprouted.log"))?;
        let answers = || client::status(&socket, PATIENCE).is_ok();
        daemon.ready("viprouted answers", PATIENCE, answers)?;
        Ok(Self(daemon))
    }

    /// With VIPs from a pool.
    pub fn pool(world: &World) -> Result<Self> {
        Self::start(world, &format!("backend = \"pool\"\n[pool]\ncidr = \"{VIPS}\""))
    }
}

#[derive(Default)]
pub struct Viproute {
    plugin: Option<Plugin>,
    agent: Option<Agent>,
    /// By place in the world.
    joined: BTreeSet<usize>,
    /// The VIPs' addresses, the first one's first.
    vips: Vec<Ipv4Addr>,
    /// So many of them are recorded.
    recorded: usize,
}

impl Viproute {
    fn plugin(&self) -> Result<&Plugin> {
        self.plugin.as_ref().context("viproute is on no node yet")
    }

    /// The VIP that pods join by their annotation.
    fn first() -> Result<VipKey> {
        key(0)
    }

    /// Brings the pods' membership about: ADD for who is new, drained for who is no longer wanted.
    fn join(&mut self, world: &World, replicas: &[usize]) -> Result<()> {
        for at in replicas {
            if self.joined.insert(*at) {
                self.plugin()?.add(&world.node, &world.pods[*at], Self::first()?.name())?;
            }
        }
        let registry = self.plugin()?.registry();
        let joined = &self.joined;
        world.node.run(|| {
            let node = NodeNet::open()?;
            for at in joined {
                let name = format!("{}@eth0", world.pods[*at].id());
                vip::admission::drain(&node, &registry, (&Self::first()?, &name), !replicas.contains(at))?;
            }
            Ok(())
        })
    }

    /// Addresses for as many VIPs, asked for as plugins do: many at once, since each is probed for 0.6 seconds.
    pub fn acquire(&mut self, services: usize) -> Result<()> {
        let socket = self.plugin()?.socket();
        let places: Vec<usize> = (self.vips.len()..services).collect();
        let some = |places: &[usize]| {
            places.iter().map(|place| acquire(&socket, &key(*place)?, 6 * PATIENCE)).collect::<Result<Vec<_>>>()
        };
        let some = &some;
        let acquired = thread::scope(|scope| {
            let share = places.len().div_ceil(CALLERS).max(1);
            let callers: Vec<_> = places.chunks(share).map(|places| scope.spawn(move || some(places))).collect();
            callers.into_iter().map(|caller| caller.join().ok().context("a caller")?).collect::<Result<Vec<_>>>()
        })?;
        self.vips.extend(acquired.concat());
        Ok(())
    }

    /// In each pod, one route and one rule in place of an address and a rule for each VIP: no pod has more than eight.
    fn stand_in(&self, world: &World) -> Result<()> {
        for pod in self.joined.iter().map(|at| &world.pods[*at]) {
            pod.ns.ip(&format!("route add local {VIPS} dev vip0\nrule add from {VIPS} lookup 118 priority 119\n"))?;
        }
        Ok(())
    }

    /// More VIPs with the replicas of the first: what as many pods would have recorded, and the product's own way from
    /// there into the kernel. (A pod joins eight VIPs at most, so 5,000 VIPs would take 1,875 pods of three replicas each;
    /// here all of them share three.)
    fn add_vips(&mut self, world: &World, services: usize) -> Result<()> {
        if services <= self.recorded {
            return Ok(());
        }
        self.acquire(services)?;
        let registry = self.plugin()?.registry();
        let endpoints = endpoints(&registry)?;
        let record = registry.vip_record(&Self::first()?)?.context("the first VIP's record")?;
        world.node.run(|| {
            let node = NodeNet::open()?;
            let tables = vip::Tables::read(&node)?;
            let more = More { node: &node, registry: &registry, endpoints: &endpoints, model: &record, tables };
            (self.recorded..services).try_for_each(|place| more.add(&key(place)?, self.vips[place]))
        })?;
        if self.recorded == 1 {
            self.stand_in(world)?;
        }
        self.recorded = services;
        Ok(())
    }
}

/// The VIP's name at that place.
pub fn key(place: usize) -> Result<VipKey> {
    Ok(VipKey::new("bench", &format!("svc-{place}"))?)
}

/// The first VIP's endpoints.
pub fn endpoints(registry: &Registry) -> Result<Vec<(String, Endpoint)>> {
    let endpoints = registry.endpoints(&key(0)?)?;
    endpoints.into_iter().map(|(name, endpoint)| Ok((name, endpoint?))).collect()
}

/// An address for a VIP, asked for as a runtime does it: again and again until there is one, `patience` long.
pub fn acquire(socket: &Path, vip: &VipKey, patience: Duration) -> Result<Ipv4Addr> {
    let pod = Ipv4Addr::new(10, 1, 0, 2);
    let ask = AcquireRequest { vip: vip.to_string(), pod, node: NODE, gateway: Some(CLIENT) };
    let deadline = Instant::now() + patience;
    loop {
        match client::acquire(socket, &ask, PATIENCE) {
            Ok(grant) => return Ok(grant.address),
            Err(error) if Instant::now() > deadline => bail!("{vip}: {}", viproute::with_causes(&error)),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// VIPs over replicas that exist.
pub struct More<'a> {
    pub node: &'a NodeNet,
    pub registry: &'a Registry,
    pub endpoints: &'a [(String, Endpoint)],
    /// The VIP they are like.
    pub model: &'a VipRecord,
    /// The node's, before the first of them.
    pub tables: vip::Tables,
}

impl More<'_> {
    /// Records one and brings it into the kernel.
    pub fn add(&self, key: &VipKey, address: Ipv4Addr) -> Result<()> {
        let mut vip = self.registry.vip(key)?;
        let slot = vip.slot()?;
        vip.write_record(VipRecord { key: key.to_string(), address, slot, ..self.model.clone() })?;
        for (name, endpoint) in self.endpoints {
            vip.write_endpoint(name, endpoint)?;
        }
        vip::put_right_by(self.node, vip, &self.tables)?;
        Ok(())
    }
}

impl Contender for Viproute {
    fn name(&self) -> &'static str {
        VIPROUTE
    }

    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        if self.plugin.is_none() {
            self.plugin = Some(Plugin::on(world));
            self.agent = Some(Agent::pool(world)?);
        }
        self.join(world, replicas)?;
        if self.vips.is_empty() {
            let record = self.plugin()?.registry().vip_record(&Self::first()?)?;
            self.vips.push(record.context("the first VIP's record")?.address);
            self.recorded = 1;
        }
        self.add_vips(world, services)?;
        Ok(self.vips[..services].iter().map(|address| SocketAddrV4::new(*address, PORT)).collect())
    }

    fn gone(&mut self, world: &World, pod: usize) -> Result<()> {
        if self.joined.remove(&pod) {
            self.plugin()?.del(&world.node, &world.pods[pod], Self::first()?.name())?;
        }
        Ok(())
    }

    fn restart(&mut self, world: &World) -> Result<Option<&'static str>> {
        self.agent = None;
        self.agent = Some(Agent::pool(world)?);
        Ok(None)
    }
}
