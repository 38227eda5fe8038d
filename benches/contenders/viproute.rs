//! viproute as a node has it: the plugin called for each pod, the sidecar beside it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use viproute::internals::api::client;
use viproute::internals::api::protocol::AcquireRequest;
use viproute::internals::dataplane;
use viproute::internals::ebpf::Maps;
use viproute::internals::model::VipKey;
use viproute::internals::model::address::ipv4;
use viproute::internals::net::NodeNet;
use viproute::internals::registry::{Endpoint, Registry, VipRecord};

use super::{Contender, EXPRESS_SWITCHED, VIPROUTE, WITHOUT_EXPRESS};
use crate::load::PORT;
use crate::stage::{CLIENT, Join, NODE, Netns, Pod, Run, Sidecar, VIPS, VIPS6, World, as_ipv6, conf, program};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at the same time; viprouted takes 256.
const CALLERS: usize = 200;
/// In viprouted.toml.
const EXPRESS_OFF: &str = "express = \"off\"\n";
/// Longer than a bucket of the group that isn't in use waits to move (`idleTimer`).
const IDLE: Duration = Duration::from_secs(3);
/// More VIPs than are measured.
pub const LIMITS: &str = "[limits]\nvips_per_namespace = 10000\nvips = 10000\n";

/// Calls of the plugin on one node.
pub struct Plugin {
    dir: PathBuf,
    bpf_dir: String,
}

impl Plugin {
    pub fn on(world: &World) -> Self {
        Self { dir: world.dir.path().into(), bpf_dir: world.bpf.path() + "/viproute" }
    }

    pub fn registry(&self) -> Registry {
        Registry::new(self.dir.join("data"))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("viprouted.sock")
    }

    /// stdin of a call for a pod that joins these VIPs, as libcni completes it.
    pub fn stdin(&self, pod: &Pod, vips: &str, previous: &Value) -> String {
        let join = if vips.is_empty() { Join { annotations: None, ..Join::nothing() } } else { Join::annotated(vips) };
        let join = if vips.is_empty() { join } else { join.annotation("bench/pod", &pod.name()) };
        let mut conf = conf(&self.dir, &self.bpf_dir, &join);
        conf["prevResult"] = previous.clone();
        conf.to_string()
    }

    /// ADD; its result.
    pub fn add(&self, node: &Netns, pod: &Pod, vips: &str) -> Result<Value> {
        serde_json::from_str(&self.call(node, "ADD", pod, vips)?).context("ADD's result")
    }

    /// DEL.
    pub fn del(&self, node: &Netns, pod: &Pod, vips: &str) -> Result<()> {
        self.call(node, "DEL", pod, vips).map(drop)
    }

    fn call(&self, node: &Netns, verb: &str, pod: &Pod, vips: &str) -> Result<String> {
        let mut command = node.cmd(program("viproute"));
        pod.environment(verb).apply(&mut command);
        command.output_of(&self.stdin(pod, vips, &pod.base_result()))
    }
}

/// viprouted on a node, with `settings` (TOML) over the world's own paths.
pub fn sidecar(world: &World, settings: &str) -> Result<Sidecar> {
    Sidecar::try_run(world.dir.path(), settings, world.node.cmd(program("viprouted")))
}

/// With VIPs from a pool.
pub fn pool(world: &World) -> Result<Sidecar> {
    pool_with(world, "", false)
}

fn pool_with(world: &World, settings: &str, is_dual: bool) -> Result<Sidecar> {
    let more = if is_dual { format!("cidr6 = \"{VIPS6}\"\n") } else { String::new() };
    sidecar(world, &format!("{settings}backend = \"pool\"\n[pool]\ncidr = \"{VIPS}\"\n{more}{LIMITS}"))
}

#[derive(Default)]
pub struct Viproute {
    plugin: Option<Plugin>,
    agent: Option<Sidecar>,
    /// By place in the world.
    joined: BTreeSet<usize>,
    /// The VIPs' addresses, the first one's first.
    vips: Vec<Ipv4Addr>,
    /// So many of them are recorded.
    recorded: usize,
    /// When the replicas changed last.
    changed: Option<Instant>,
    express: Express,
    /// VIPs have an IPv6 address, too.
    is_dual: bool,
}

/// What viprouted.toml says of express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Express {
    #[default]
    Default,
    Off,
    /// One, then the other.
    Switched {
        off: bool,
    },
}

impl Viproute {
    /// With every packet on the kernel's own way.
    pub fn without_express() -> Self {
        Self { express: Express::Off, ..Self::default() }
    }

    /// By both families.
    #[must_use]
    pub fn dual(self) -> Self {
        Self { is_dual: true, ..self }
    }

    /// Express goes off and on while connections live.
    pub fn express_switched() -> Self {
        Self { express: Express::Switched { off: false }, ..Self::default() }
    }

    fn start(&self, world: &World) -> Result<Sidecar> {
        let off = matches!(self.express, Express::Off | Express::Switched { off: true });
        let settings = if off { EXPRESS_OFF } else { "" };
        match pool_with(world, settings, self.is_dual) {
            Err(error) if off && format!("{error:#}").contains("express: no such key") => {
                bail!("not measured: this viprouted has no `express` in its configuration")
            }
            started => started,
        }
    }

    /// The maps that say until when a SYN is searched for at all replicas.
    fn maps(&self) -> Result<Maps> {
        let dir = PathBuf::from(&self.plugin()?.bpf_dir);
        Maps::open(&dir)?.with_context(|| format!("no maps in {}", dir.display()))
    }

    fn plugin(&self) -> Result<&Plugin> {
        self.plugin.as_ref().context("viproute is on no node yet")
    }

    /// The VIP that pods join by their annotation.
    fn first() -> Result<VipKey> {
        key(0)
    }

    /// ADD for each new replica; those that are no longer wanted are drained.
    fn join(&mut self, world: &World, replicas: &[usize]) -> Result<()> {
        for at in replicas {
            if self.joined.insert(*at) {
                self.plugin()?.add(&world.node, &world.pods[*at], Self::first()?.name())?;
            }
        }
        let registry = self.plugin()?.registry();
        let joined = &self.joined;
        world.node.try_run(|| {
            let node = NodeNet::open()?;
            for at in joined {
                let name = format!("{}@eth0", world.pods[*at].id);
                viproute::internals::membership::admission::drain(
                    &node,
                    &registry,
                    (&Self::first()?, &name),
                    !replicas.contains(at),
                )?;
            }
            Ok(())
        })
    }

    /// Addresses for as many VIPs, asked for as plugins do: many at once, since each is probed for 0.6 seconds.
    pub fn acquire(&mut self, services: usize) -> Result<()> {
        let socket = self.plugin()?.socket();
        let places: Vec<usize> = (self.vips.len()..services).collect();
        let some = |places: &[usize]| {
            places.iter().map(|place| acquire(&socket, &key(*place)?, 6 * TIMEOUT)).collect::<Result<Vec<_>>>()
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
            pod.ns.ip_lines(&format!(
                "route add local {VIPS} dev vip0\nrule add from {VIPS} lookup 118 priority 119\n"
            ))?;
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
        world.node.try_run(|| {
            let node = NodeNet::open()?;
            let tables = dataplane::Tables::read(&node, &registry)?;
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

/// An address for a VIP, asked for as a runtime does it: again and again until there is one, `timeout` long.
pub fn acquire(socket: &Path, vip: &VipKey, timeout: Duration) -> Result<Ipv4Addr> {
    let pod = [10, 1, 0, 2].into();
    let ask = AcquireRequest { vip: vip.to_string(), pod, node: NODE.into(), gateway: Some(CLIENT.into()) };
    let deadline = Instant::now() + timeout;
    loop {
        match client::acquire_all(socket, std::slice::from_ref(&ask), TIMEOUT).remove(0) {
            Ok(grant) => return ipv4(grant.address).context("an IPv4 address"),
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
    pub tables: dataplane::Tables,
}

impl More<'_> {
    /// Records one and reconciles it.
    pub fn add(&self, key: &VipKey, address: Ipv4Addr) -> Result<()> {
        let mut vip = self.registry.vip(key)?;
        let record = |slot| VipRecord {
            key: key.to_string(),
            addresses: IpAddr::V4(address).into(),
            slot,
            ..self.model.clone()
        };
        vip.record_in_slot(|_| anyhow::Ok(true), record)?;
        for (name, endpoint) in self.endpoints {
            vip.write_endpoint(name, endpoint)?;
        }
        dataplane::reconcile_vip(self.node, vip, Some(&self.tables))?;
        Ok(())
    }
}

impl Contender for Viproute {
    fn name(&self) -> &'static str {
        match self.express {
            Express::Default => VIPROUTE,
            Express::Off => WITHOUT_EXPRESS,
            Express::Switched { .. } => EXPRESS_SWITCHED,
        }
    }

    /// For two minutes after a change a SYN may be the second one of a handshake with another replica. Here nothing has used
    /// the VIPs meanwhile: once the buckets have moved, no handshake can be between replicas, and what time does to the maps
    /// is done at once.
    fn settle(&mut self) -> Result<()> {
        let since = self.changed.map(|changed| changed.elapsed()).unwrap_or_default();
        thread::sleep(IDLE.saturating_sub(since));
        let mut maps = self.maps()?;
        for vip in &self.vips {
            let addresses = std::iter::once(IpAddr::V4(*vip)).chain(self.is_dual.then(|| as_ipv6(*vip).into()));
            for address in addresses {
                let missing = || format!("{address} has no entry");
                let key = maps.key(address)?.with_context(missing)?;
                let known = maps.known(key)?.with_context(missing)?;
                maps.set(key, &known, 0)?;
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> Result<bool> {
        let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?).as_nanos();
        let maps = self.maps()?;
        let until = self.vips.iter().map(|vip| Ok(maps.syn_search_until(*vip)?));
        Ok(until.collect::<Result<Vec<u64>>>()?.into_iter().all(|until| u128::from(until) <= now))
    }

    fn switch(&mut self, world: &World) -> Result<()> {
        if let Express::Switched { off } = &mut self.express {
            *off = !*off;
            self.restart(world)?;
        }
        Ok(())
    }

    fn joins_at_start(&self) -> bool {
        true
    }

    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        if self.plugin.is_none() {
            self.plugin = Some(Plugin::on(world));
            self.agent = Some(self.start(world)?);
        }
        self.changed = Some(Instant::now());
        self.join(world, replicas)?;
        if self.vips.is_empty() {
            let record = self.plugin()?.registry().vip_record(&Self::first()?)?;
            let address = record.context("the first VIP's record")?.address();
            self.vips.push(ipv4(address).context("an IPv4 address")?);
            self.recorded = 1;
        }
        self.add_vips(world, services)?;
        Ok(self.vips[..services].iter().map(|address| SocketAddrV4::new(*address, PORT)).collect())
    }

    fn pod_removed(&mut self, world: &World, pod: usize) -> Result<()> {
        if self.joined.remove(&pod) {
            self.plugin()?.del(&world.node, &world.pods[pod], Self::first()?.name())?;
        }
        Ok(())
    }

    fn restart(&mut self, world: &World) -> Result<Option<&'static str>> {
        self.agent = None;
        self.agent = Some(self.start(world)?);
        Ok(None)
    }
}
