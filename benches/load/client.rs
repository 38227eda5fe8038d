//! As many as the path carries: new connections, or requests over connections that stay.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::REQUEST;
use super::connection::Connection;
use super::poll::{Poll, unshare_descriptors};
use crate::stage::Netns;

/// A path on which nothing happens for this long counts as dead.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A path that fails one in so many connections isn't measured.
const TOLERATED: usize = 1000;

/// A load: from where, to where, for how long.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub from: &'a Netns,
    /// Taken in turn.
    pub to: &'a [SocketAddrV4],
    /// Connections at the same time.
    pub concurrency: usize,
    pub time: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Work {
    pub done: usize,
    pub failed: usize,
    /// What the last of those ended with.
    pub error: String,
    pub seconds: f64,
}

impl Work {
    /// Work a second; an error where too much failed.
    pub fn rate(&self) -> Result<f64> {
        if self.done == 0 || self.failed * TOLERATED > self.done {
            bail!("{} done, {} failed: {}", self.done, self.failed, self.error);
        }
        Ok(self.done as f64 / self.seconds)
    }
}

impl Load<'_> {
    /// Connect, one request, one answer, close; again and again.
    pub fn connections(&self) -> Result<Work> {
        self.run(Closed { keep: false })
    }

    /// Request, answer; again and again, over connections that stay. Making them isn't counted.
    pub fn requests(&self) -> Result<Work> {
        self.run(Closed { keep: true })
    }

    fn run(&self, kind: Closed) -> Result<Work> {
        self.from.try_run(|| {
            unshare_descriptors()?;
            EventLoop::new(*self, kind)?.run()
        })
    }
}

/// A closed loop: an answer is followed by the next request.
#[derive(Clone, Copy)]
struct Closed {
    /// Over the same connection.
    keep: bool,
}

struct EventLoop<'a> {
    load: Load<'a>,
    kind: Closed,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// How many connections were begun.
    begun: usize,
    work: Work,
}

impl<'a> EventLoop<'a> {
    fn new(load: Load<'a>, kind: Closed) -> Result<Self> {
        let mut event_loop =
            Self { load, kind, poll: Poll::new()?, connections: Vec::new(), begun: 0, work: Work::default() };
        event_loop.connections.resize_with(load.concurrency, || None);
        Ok(event_loop)
    }

    fn run(mut self) -> Result<Work> {
        for slot in 0..self.connections.len() {
            self.begin(slot);
        }
        let mut start = Instant::now();
        let mut counting = !self.kind.keep;
        let mut last = start;
        while !counting || start.elapsed() < self.load.time {
            let ready = self.poll.wait(Duration::from_millis(100))?;
            if !ready.is_empty() {
                last = Instant::now();
            } else if last.elapsed() > TIMEOUT {
                bail!(
                    "nothing moved for {TIMEOUT:?}: {} done, {} failed: {}",
                    self.work.done,
                    self.work.failed,
                    self.work.error
                );
            }
            for ready in ready {
                if let Err(error) = self.step(ready.token, ready.writable, ready.readable) {
                    self.work.failed += 1;
                    self.work.error = error.to_string();
                    if self.work.failed > TOLERATED && self.work.done < TOLERATED {
                        bail!("only failures: {error}");
                    }
                    self.begin(ready.token);
                }
            }
            // The first answers of all connections: from now on it is counted.
            if !counting && self.work.done >= 2 * self.load.concurrency {
                counting = true;
                start = Instant::now();
                self.work.done = 0;
            }
        }
        self.work.seconds = start.elapsed().as_secs_f64();
        Ok(self.work)
    }

    fn step(&mut self, slot: usize, writable: bool, readable: bool) -> Result<()> {
        let Some(connection) = &mut self.connections[slot] else { return Ok(()) };
        if writable && connection.connected()? {
            connection.ask(REQUEST)?;
        }
        if readable && connection.hear()?.is_some() {
            self.work.done += 1;
            if self.kind.keep {
                connection.ask(REQUEST)?;
            } else {
                self.begin(slot);
            }
        }
        Ok(())
    }

    /// A new connection in place of what was there.
    fn begin(&mut self, slot: usize) {
        let to = self.load.to[self.begun % self.load.to.len()];
        self.begun += 1;
        self.connections[slot] = None;
        match Connection::open(to, &self.poll, slot) {
            Ok(connection) => self.connections[slot] = Some(connection),
            Err(error) => {
                self.work.failed += 1;
                self.work.error = format!("{error:#}");
            }
        }
    }
}
