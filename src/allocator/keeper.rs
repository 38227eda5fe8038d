//! The lease files, read and written on a thread of their own: an fsync takes milliseconds, and 200 of them in the
//! loop would hold up everybody else's answers.

use std::io;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::store::{Record, Store};
use super::with_causes;
use crate::registry::VipKey;

/// Something to do with a lease file. Jobs are carried out in the order given.
#[derive(Debug)]
pub enum Job {
    /// Read it.
    Load(VipKey),
    /// Write it; the number comes back with the result.
    Save(VipKey, u64, Record),
    /// Remove it.
    Erase(VipKey),
}

/// A job is done.
#[derive(Debug)]
pub enum Done {
    /// What the file says, or why that can't be told.
    Loaded(VipKey, Result<Option<Record>, String>),
    /// The file is on disk, or why not.
    Saved(VipKey, u64, Result<(), String>),
}

/// The thread. Dropping it waits for the jobs given so far.
#[derive(Debug)]
pub struct Keeper {
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread; results come by the receiver.
    pub fn start(store: Store) -> io::Result<(Self, mpsc::UnboundedReceiver<Done>)> {
        let (jobs, mut queue) = mpsc::unbounded_channel();
        let (done, results) = mpsc::unbounded_channel();
        let work = move || {
            while let Some(job) = queue.blocking_recv() {
                if let Some(result) = carry_out(&store, job) {
                    // Nobody listens any more while viprouted ends; what is queued is written all the same.
                    let _ = done.send(result);
                }
            }
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

impl Drop for Keeper {
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps leases has failed");
        }
    }
}

fn carry_out(store: &Store, job: Job) -> Option<Done> {
    match job {
        Job::Load(vip) => {
            let found = store.load(&vip).map_err(|error| with_causes(&error));
            Some(Done::Loaded(vip, found))
        }
        Job::Save(vip, number, record) => {
            let saved = store.save(&vip, &record).map_err(|error| with_causes(&error));
            Some(Done::Saved(vip, number, saved))
        }
        Job::Erase(vip) => {
            if let Err(error) = store.remove(&vip) {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "lease file not removed");
            }
            None
        }
    }
}
