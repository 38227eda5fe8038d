//! Writes leases on a thread of its own: a sync to disk may take longer than anybody should wait for the next reply.

use std::sync::Arc;
use std::{io, thread};

use tokio::sync::mpsc;

use super::daemon::Outcome;
use super::state::Input;
use super::store::{Record, Store};
use crate::registry::VipKey;

/// What to write; none: remove it.
pub type Job = (VipKey, Option<Record>);

/// Does one job after the other until nobody can give any more.
pub fn start(store: Arc<Store>, done: mpsc::UnboundedSender<Outcome>) -> io::Result<mpsc::UnboundedSender<Job>> {
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    let work = move || {
        while let Some((vip, record)) = queue.blocking_recv() {
            let Some(record) = record else {
                if let Err(error) = store.remove(&vip) {
                    tracing::warn!(%vip, error = &error as &dyn std::error::Error, "lease file not removed");
                }
                continue;
            };
            let result = store.save(&vip, &record).map_err(|error| super::sentence(&error));
            // Its reader is gone only while viprouted ends.
            let _ = done.send(Outcome { vip, input: Input::Saved(result) });
        }
    };
    thread::Builder::new().name("leases".into()).spawn(work)?;
    Ok(jobs)
}
