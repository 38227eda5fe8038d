//! As much as goes: new connections, or requests over connections that stay.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::REQUEST;
use super::connection::Connection;
use super::poll::{Poll, alone};
use crate::results::Cpu;
use crate::stage::Ns;

/// How long nothing may happen at all before a path counts as dead.
const PATIENCE: Duration = Duration::from_secs(3);
/// A path that fails one in so many connections isn't measured.
const TOLERATED: usize = 1000;

/// A load: from where, to where, for how long.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub from: &'a Ns,
    /// Taken in turn.
    pub to: &'a [SocketAddrV4],
    /// Connections at the same time.
    pub concurrency: usize,
    pub time: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub done: usize,
    pub failed: usize,
    /// What the last of those ended with.
    pub error: String,
    pub seconds: f64,
    /// What the whole machine's processors were busy in these seconds.
    pub busy: f64,
}

impl Tally {
    /// Done a second; an error where too much failed.
    pub fn rate(&self) -> Result<f64> {
        if self.done == 0 || self.failed * TOLERATED > self.done {
            bail!("{} done, {} failed: {}", self.done, self.failed, self.error);
        }
        Ok(self.done as f64 / self.seconds)
    }
}

impl Load<'_> {
    /// Connect, one request, one answer, close; again and again.
    pub fn connections(&self) -> Result<Tally> {
        self.run(Closed { keep: false })
    }

    /// Request, answer; again and again, over connections that stay. Making them isn't counted.
    pub fn requests(&self) -> Result<Tally> {
        self.run(Closed { keep: true })
    }

    fn run(&self, kind: Closed) -> Result<Tally> {
        self.from.run(|| {
            alone()?;
            Hands::new(*self, kind)?.run()
        })
    }
}

/// A closed loop: who is answered asks again.
#[derive(Clone, Copy)]
struct Closed {
    /// Over the same connection.
    keep: bool,
}

struct Hands<'a> {
    load: Load<'a>,
    kind: Closed,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    /// How many connections were begun.
    begun: usize,
    tally: Tally,
}

impl<'a> Hands<'a> {
    fn new(load: Load<'a>, kind: Closed) -> Result<Self> {
        let mut hands =
            Self { load, kind, poll: Poll::new()?, connections: Vec::new(), begun: 0, tally: Tally::default() };
        hands.connections.resize_with(load.concurrency, || None);
        Ok(hands)
    }

    fn run(mut self) -> Result<Tally> {
        for slot in 0..self.connections.len() {
            self.begin(slot);
        }
        let (mut start, mut cpu) = (Instant::now(), Cpu::now()?);
        let mut settled = !self.kind.keep;
        let mut last = start;
        while !settled || start.elapsed() < self.load.time {
            let ready = self.poll.wait(Duration::from_millis(100))?;
            if !ready.is_empty() {
                last = Instant::now();
            } else if last.elapsed() > PATIENCE {
                bail!(
                    "nothing moved for {PATIENCE:?}: {} done, {} failed: {}",
                    self.tally.done,
                    self.tally.failed,
                    self.tally.error
                );
            }
            for ready in ready {
                if let Err(error) = self.step(ready.token, ready.writable, ready.readable) {
                    self.tally.failed += 1;
                    self.tally.error = error.to_string();
                    if self.tally.failed > TOLERATED && self.tally.done < TOLERATED {
                        bail!("only failures: {error}");
                    }
                    self.begin(ready.token);
                }
            }
            // The first answers of all connections: from now on it is counted.
            if !settled && self.tally.done >= 2 * self.load.concurrency {
                settled = true;
                (start, cpu) = (Instant::now(), Cpu::now()?);
                self.tally.done = 0;
            }
        }
        self.tally.seconds = start.elapsed().as_secs_f64();
        self.tally.busy = cpu.since()?;
        Ok(self.tally)
    }

    fn step(&mut self, slot: usize, writable: bool, readable: bool) -> Result<()> {
        let Some(connection) = &mut self.connections[slot] else { return Ok(()) };
        if writable && connection.connected()? {
            connection.ask(REQUEST)?;
        }
        if readable && connection.hear()?.is_some() {
            self.tally.done += 1;
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
                self.tally.failed += 1;
                self.tally.error = format!("{error:#}");
            }
        }
    }
}
