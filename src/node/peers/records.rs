//! Writes what the engine has worked out: `nodes.json`, and the other nodes' records of VIPs. On a thread of its own: it waits
//! for VIPs' locks, which calls of the plugin hold, and the gossip must not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::dataplane::node::tunnel::Device;
use crate::membership::peer::{self, Here};
use crate::model::{Cluster, VipKey};
use crate::net::NodeNet;
use crate::node::subsystems::SubsystemGuard;
use crate::node::{Context, Services};
use crate::registry::{Registry, nodes};
use crate::with_causes;

use super::far::Far;

/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Everything is compared again, in case something was changed by hand.
const FULL: Duration = Duration::from_secs(120);

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The nodes.
    pub cluster: Cluster,
    /// Their VIPs.
    pub vips: BTreeMap<VipKey, Far>,
    /// This node's own address.
    pub node: IpAddr,
}

/// The thread's tools.
pub struct Records {
    net: NodeNet,
    registry: Registry,
    services: Services,
    /// What is known to be recorded.
    written: BTreeMap<VipKey, Far>,
    tunnel: Option<Device>,
    flow_owner: Option<PathBuf>,
    full_at: Instant,
}

impl Records {
    /// With nothing known to be written.
    pub fn new(net: NodeNet, context: &Context) -> Self {
        let (registry, services) = (context.registry.clone(), context.services.clone());
        let (written, full_at) = (BTreeMap::new(), Instant::now());
        Self { net, registry, services, written, tunnel: None, flow_owner: None, full_at }
    }

    /// Writes until the engine has ended.
    pub fn run(mut self, desired: &Receiver<Desired>, guard: &SubsystemGuard) {
        let mut want: Option<Desired> = None;
        loop {
            guard.turn();
            match desired.recv_timeout(AGAIN) {
                // Only the latest counts.
                Ok(next) => want = Some(desired.try_iter().last().unwrap_or(next)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some(want) = &want
                && let Err(error) = self.write(want, guard)
            {
                tracing::warn!(error, "other nodes' replicas not recorded, tried again");
            }
        }
    }

    fn write(&mut self, want: &Desired, guard: &SubsystemGuard) -> Result<(), String> {
        self.registry.begin().map_err(|e| with_causes(&e))?;
        self.store(want, true)?;
        let tunnel = Device::read(&self.net).map_err(|e| with_causes(&e))?;
        let flow_owner = peer::flow_owner(&self.registry).map_err(|e| with_causes(&e))?;
        if (tunnel, &flow_owner) != (self.tunnel, &self.flow_owner) || Instant::now() >= self.full_at {
            self.full_at = Instant::now() + FULL;
            let recorded = peer::shares(&self.registry).map_err(|e| with_causes(&e))?;
            let nothing = |(key, (addresses, _))| (key, Far { addresses, legs: BTreeMap::new() });
            self.written = recorded.into_iter().map(nothing).collect();
            (self.tunnel, self.flow_owner) = (tunnel, flow_owner);
        }
        let keys: BTreeSet<VipKey> = self.written.keys().chain(want.vips.keys()).cloned().collect();
        let mut failed = None;
        for key in keys {
            guard.turn();
            let far = want.vips.get(&key);
            if self.written.get(&key) == far {
                continue;
            }
            if let Err(error) = self.write_vip(&key, far, want.node) {
                failed.get_or_insert(format!("{key}: {error}"));
            }
        }
        failed.map_or(Ok(()), Err)?;
        // Nodes that are gone go last: until then their records lead somewhere.
        self.store(want, false)
    }

    fn write_vip(&mut self, key: &VipKey, far: Option<&Far>, node: IpAddr) -> Result<(), String> {
        // Without the device nothing can lead there; what is to go goes all the same.
        let policy = self.services.policy(key);
        let here = Here { node, tunnel: self.tunnel, flow_owner: self.flow_owner.clone(), policy };
        if far.is_some() && self.tunnel.is_none() {
            return Ok(());
        }
        let legs = far.map(|far| (&far.addresses, &far.legs));
        peer::set((&self.net, &self.registry), key, legs, &here).map_err(|e| with_causes(&e))?;
        match far {
            Some(far) => self.written.insert(key.clone(), far.clone()),
            None => self.written.remove(key),
        };
        Ok(())
    }

    /// Writes the nodes; `with_former`: with those that are recorded and no longer known.
    fn store(&self, want: &Desired, with_former: bool) -> Result<(), String> {
        let mut cluster = want.cluster.clone();
        let recorded = nodes::load(&self.registry).ok().flatten().filter(|_| with_former);
        for former in recorded.into_iter().flat_map(|recorded| recorded.nodes) {
            let mut with = cluster.nodes.clone();
            with.push(former);
            // One whose place another has taken is gone.
            if let Ok(with) = Cluster::new(cluster.own.clone(), with) {
                cluster = with;
            }
        }
        nodes::store(&self.registry, Some(&cluster)).map(drop).map_err(|e| with_causes(&e))
    }
}

/// A node that stands alone has no records of others: what a configuration of before has left goes.
pub fn clear(net: &NodeNet, registry: &Registry) -> Result<(), String> {
    let recorded = peer::shares(registry).map_err(|e| with_causes(&e))?;
    let here = Here { node: IpAddr::V4(Ipv4Addr::UNSPECIFIED), tunnel: None, flow_owner: None, policy: None };
    for key in recorded.keys() {
        peer::set((net, registry), key, None, &here).map_err(|e| with_causes(&e))?;
    }
    nodes::store(registry, None).map(drop).map_err(|e| with_causes(&e))
}
