//! The tunnel to the other nodes: it follows `nodes.json`.

use std::path::PathBuf;
use std::time::Instant;

use crate::dataplane::node::tunnel;
use crate::node::problems::TUNNEL_DEVICE;
use crate::registry::nodes;
use crate::with_causes;

use super::Reconciler;
use super::backoff::ObjectId;

/// What is known of it between two looks.
#[derive(Debug, Default)]
pub struct Tunnel {
    /// It was complete when it was looked at last: what is missing now was removed by another.
    settled: bool,
    /// It was there, or may have been left by a run before.
    may_be_there: bool,
}

impl Tunnel {
    pub fn new() -> Self {
        Self { settled: false, may_be_there: true }
    }
}

impl Reconciler {
    /// Reads which nodes there are, and makes the tunnel as it must be.
    pub(super) fn tunnel(&mut self) {
        let cluster = match nodes::load_others(&self.registry) {
            Ok(cluster) => cluster,
            // What was known stays until it is written anew.
            Err(error) => return self.failed(ObjectId::Other("nodes.json".into()), None, "the nodes", &error.into()),
        };
        if self.cache.set_cluster(cluster) {
            // Each VIP's group, ring and routes, and what pods offer to receive.
            self.tunnel.settled = false;
            self.queue.vips.extend(self.cache.vips().keys().cloned());
            self.queue.attachments.extend(self.cache.attachments().cloned());
        }
        let thing = ObjectId::Other("the tunnel".into());
        if !self.backoff.allows(&thing, Instant::now()) {
            return;
        }
        let dirs = self.cache.bpf_dirs();
        let Some(cluster) = self.cache.cluster() else {
            if self.tunnel.may_be_there {
                self.remove_tunnel(thing, &dirs.into_iter().collect::<Vec<_>>());
            }
            return;
        };
        self.tunnel.may_be_there = true;
        match tunnel::reconcile(&self.node, cluster, dirs.first().map(PathBuf::as_path)) {
            Ok(done) => {
                self.objects.tunnel_lacks(done.lacks.as_ref());
                if !done.repairs.is_empty() {
                    let remote = self.cache.vips().iter().filter(|(_, vip)| vip.want.ring.is_some());
                    self.queue.vips.extend(remote.map(|(key, _)| key.clone()));
                }
                let found: &[String] = if self.tunnel.settled { &done.repairs } else { &[] };
                self.tunnel.settled = done.lacks.is_none();
                self.repaired(thing, None, found, "the tunnel");
            }
            Err(error) => {
                self.tunnel.settled = false;
                self.failed(thing, None, "the tunnel", &error);
            }
        }
    }

    fn remove_tunnel(&mut self, thing: ObjectId, dirs: &[PathBuf]) {
        match tunnel::remove(&self.node, dirs.iter().map(PathBuf::as_path)) {
            Ok(found) => {
                if !found.is_empty() {
                    tracing::info!("this node stands alone: the tunnel is removed");
                    // Groups and routes for what came by it.
                    self.sweep = Some(Instant::now());
                }
                self.objects.tunnel_lacks(None);
                self.tunnel = Tunnel { settled: false, may_be_there: false };
                self.repaired(thing, None, &[], "the tunnel");
            }
            Err(error) => self.failed(thing, None, "the tunnel", &error),
        }
    }
}

impl super::node::NodeObjects {
    /// Sets or clears the node's problem with the tunnel.
    fn tunnel_lacks(&self, error: Option<&tunnel::Error>) {
        self.problem(TUNNEL_DEVICE, error.map(|error| format!("no tunnel to the other nodes: {}", with_causes(error))));
    }
}
