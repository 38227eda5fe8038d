//! The tunnel to the other nodes: it follows `nodes.json`. Compared as a whole when an event concerns it, and now and then.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::dataplane::node::tunnel;
use crate::model::Cluster;
use crate::node::problems::TUNNEL;
use crate::registry::nodes;
use crate::{dataplane, with_causes};

use super::Reconciler;
use super::backoff::ObjectId;

/// What is known of it between two looks.
#[derive(Debug, Default)]
pub struct Tunnel {
    /// It was complete when it was looked at last: what is missing now was removed by another.
    complete: bool,
    /// As it was found to be right; none: it is to be compared as a whole.
    settled: Option<tunnel::Settled>,
    /// It was there, or may have been left by a run before.
    may_be_there: bool,
}

impl Tunnel {
    pub fn new() -> Self {
        Self { complete: false, settled: None, may_be_there: true }
    }
}

impl Reconciler {
    /// Reads which nodes there are, and makes the tunnel as it must be. `whole`: anything of it may be another.
    pub(super) fn tunnel(&mut self, whole: bool) {
        if whole {
            self.tunnel.settled = None;
        }
        let cluster = match nodes::load_others(&self.registry) {
            Ok(cluster) => cluster,
            // What was known stays until it is written anew.
            Err(error) => return self.failed(ObjectId::Other("nodes.json".into()), None, "the nodes", &error.into()),
        };
        if self.cache.set_cluster(cluster) {
            // Each VIP's group, ring and routes, what pods offer to receive, and whom the table lets in.
            self.tunnel = Tunnel { complete: false, settled: None, ..self.tunnel };
            self.vips_changed |= self.started;
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
        match self.compare_tunnel(cluster, dirs.first().map(PathBuf::as_path)) {
            Ok((repairs, whole)) => {
                if !repairs.is_empty() {
                    // What leads to other nodes, and what the tunnel takes: routes have its MTU, wherever their replicas are, and pods offer it.
                    self.queue.vips.extend(self.cache.vips().keys().cloned());
                    self.queue.attachments.extend(self.cache.attachments().cloned());
                }
                let found: &[String] = if self.tunnel.complete { &repairs } else { &[] };
                self.repaired(thing, None, found, "the tunnel");
                if let Some(done) = whole {
                    self.tunnel_compared(done);
                }
            }
            Err(error) => {
                self.tunnel = Tunnel { complete: false, settled: None, ..self.tunnel };
                let why = with_causes(&error);
                self.backoff.failed(thing, &why, Instant::now());
                self.objects.problem(TUNNEL, Some(format!("the tunnel to the other nodes can't be repaired: {why}")));
            }
        }
    }

    /// What was repaired, and what came of it where the tunnel was compared as a whole: where it was right, only what causes no event
    /// is looked at.
    fn compare_tunnel(
        &self,
        cluster: &Cluster,
        dir: Option<&Path>,
    ) -> dataplane::Result<(Vec<String>, Option<tunnel::Reconciled>)> {
        if let Some(settled) = &self.tunnel.settled
            && let Some(repairs) = tunnel::recheck(settled, cluster, dir)?
        {
            return Ok((repairs, None));
        }
        let mut done = tunnel::reconcile(&self.node, cluster, dir)?;
        Ok((std::mem::take(&mut done.repairs), Some(done)))
    }

    fn tunnel_compared(&mut self, done: tunnel::Reconciled) {
        self.cache.set_tunnel(done.settled.as_ref());
        self.tunnel = Tunnel { complete: done.lacks.is_none(), settled: done.settled, may_be_there: true };
        let lacks = done.lacks.map(|error| format!("no tunnel to the other nodes: {}", with_causes(&error)));
        self.objects.problem(TUNNEL, lacks);
    }

    fn remove_tunnel(&mut self, thing: ObjectId, dirs: &[PathBuf]) {
        match tunnel::remove(&self.node, dirs.iter().map(PathBuf::as_path)) {
            Ok(found) => {
                if !found.is_empty() {
                    tracing::info!("this node stands alone: the tunnel is removed");
                    // Groups and routes for what came by it.
                    self.sweep = Some(Instant::now());
                }
                self.objects.problem(TUNNEL, None);
                self.cache.set_tunnel(None);
                self.tunnel = Tunnel::default();
                self.repaired(thing, None, &[], "the tunnel");
            }
            Err(error) => self.failed(thing, None, "the tunnel", &error),
        }
    }
}
