//! The lease files, read and written on a thread of their own: an fsync takes milliseconds, and 200 of them in the
//! loop would hold up everybody else's answers.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::model::{Family, VipKey};
use crate::with_causes;

use super::decider::register::Register;
use super::heartbeat::Heartbeat;
use super::store::{Delegated, Record, Store};

/// Something to do with the file of a VIP's lease of a family, which a lease's own address tells. Jobs are carried out in the order given.
#[derive(Debug)]
pub enum Job {
    /// Read it.
    Load(Family, VipKey),
    /// Write it; the number comes back with the result.
    Save(VipKey, u64, Record),
    /// Remove it.
    Erase(Family, VipKey),
    /// Write the register of the pool; the number comes back with the result.
    Register(u64, Register),
    /// Write the prefix that is delegated; none: remove it.
    Prefix(Option<Delegated>),
}

/// A job is done.
#[derive(Debug)]
pub enum Done {
    /// What the file says, or why it can't be read.
    Loaded(Family, VipKey, Result<Option<Record>, String>),
    /// The file is on disk, or why not.
    Saved(Family, VipKey, u64, Result<(), String>),
    /// The register is on disk, or why not.
    Registered(u64, Result<(), String>),
    /// The prefix that is delegated is on disk, or its file is gone; or why not.
    Prefix(Result<(), String>),
}

/// The thread. Dropping it waits for the jobs given so far.
#[derive(Debug)]
pub struct LeaseWriter {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl LeaseWriter {
    /// Starts the thread; results come by the receiver.
    pub fn start(store: Store, heartbeat: impl Heartbeat) -> io::Result<(Self, UnboundedReceiver<Done>)> {
        let (jobs, queue) = mpsc::channel();
        let (done, results) = unbounded_channel();
        let work = move || {
            while let Some(job) = heartbeat.receive(&queue) {
                if let Some(result) = carry_out(&store, job) {
                    // The receiver is closed while viprouted ends; what is queued is written all the same.
                    let _ = done.send(result);
                }
            }
            heartbeat.finish();
        };
        let thread = thread::Builder::new().name("leases".into()).spawn(work)?;
        Ok((Self { jobs: Some(jobs), thread: Some(thread) }, results))
    }

    /// Queues a job.
    pub fn give(&self, job: Job) {
        if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            tracing::error!("the thread that keeps leases has ended");
        }
    }
}

impl Drop for LeaseWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps leases has failed");
        }
    }
}

fn carry_out(store: &Store, job: Job) -> Option<Done> {
    match job {
        Job::Load(family, vip) => {
            let found = store.load(family, &vip).map_err(|error| with_causes(&error));
            Some(Done::Loaded(family, vip, found))
        }
        Job::Save(vip, number, record) => {
            let saved = store.save(&vip, &record).map_err(|error| with_causes(&error));
            Some(Done::Saved(Family::of(record.lease.address), vip, number, saved))
        }
        Job::Register(number, register) => {
            let saved = store.save_register(&register).map_err(|error| with_causes(&error));
            Some(Done::Registered(number, saved))
        }
        Job::Prefix(prefix) => {
            let saved = store.save_prefix(prefix.as_ref()).map_err(|error| with_causes(&error));
            if let Err(error) = &saved {
                tracing::warn!(error, "the delegated prefix isn't kept on disk");
            }
            Some(Done::Prefix(saved))
        }
        Job::Erase(family, vip) => {
            if let Err(error) = store.remove(family, &vip) {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "lease file not removed");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::lease::grant::Lease;

    #[test]
    fn jobs_are_done_in_order_and_the_last_ones_before_the_end() {
        let dir = std::env::temp_dir().join(format!("viproute-writer-{}", std::process::id()));
        let vip: VipKey = "shop/web".parse().unwrap();
        let record = |octet| Record {
            lease: Lease::permanent([10, 118, 0, octet].into(), UNIX_EPOCH),
            left: None,
            service: false,
        };
        let (writer, mut results) = LeaseWriter::start(Store::open(&dir).unwrap(), ()).unwrap();
        writer.give(Job::Save(vip.clone(), 1, record(7)));
        writer.give(Job::Load(Family::V4, vip.clone()));
        writer.give(Job::Erase(Family::V4, vip.clone()));
        writer.give(Job::Load(Family::V4, vip.clone()));
        writer.give(Job::Save(vip.clone(), 2, record(8)));
        drop(writer);
        let mut next = || results.try_recv().unwrap();
        assert!(matches!(next(), Done::Saved(_, _, 1, Ok(()))));
        assert!(matches!(next(), Done::Loaded(_, _, Ok(Some(found))) if found == record(7)));
        assert!(matches!(next(), Done::Loaded(_, _, Ok(None))));
        assert!(matches!(next(), Done::Saved(_, _, 2, Ok(()))));
        assert_eq!(Store::open(&dir).unwrap().load(Family::V4, &vip).unwrap(), Some(record(8)));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
