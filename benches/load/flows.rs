//! Live connections that know which replica they began with.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::REQUEST;
use super::connection::{Connection, Phase};
use super::poll::Poll;
use crate::stage::Netns;

/// An answer that takes longer doesn't come any more. After an outage of two seconds TCP sends again within four.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Connections begun at the same time, so that no queue of unaccepted ones overflows.
const WINDOW: usize = 100;

pub struct Flows {
    poll: Poll,
    flows: Vec<Flow>,
}

struct Flow {
    connection: Connection,
    /// The replica that answered first; empty until then.
    replica: String,
    broken: bool,
}

impl Flows {
    /// Opens `count` connections; each must be answered.
    pub fn open(from: &Netns, to: SocketAddrV4, count: usize) -> Result<Self> {
        // Made inside, used outside: a socket stays in the namespace it was made in.
        from.try_run(|| {
            let mut flows = Self { poll: Poll::new()?, flows: Vec::with_capacity(count) };
            while flows.flows.len() < count {
                for slot in flows.flows.len()..count.min(flows.flows.len() + WINDOW) {
                    let connection = Connection::open(to, &flows.poll, slot)?;
                    flows.flows.push(Flow { connection, replica: String::new(), broken: false });
                }
                flows.hear()?;
            }
            match flows.broken() {
                0 => Ok(flows),
                broken => bail!("{broken} of {count} connections didn't come about"),
            }
        })
    }

    /// Puts a question on every connection that isn't broken; doesn't wait for the answers.
    pub fn ask(&mut self) {
        for flow in self.flows.iter_mut().filter(|flow| !flow.broken && flow.connection.phase == Phase::Idle) {
            flow.broken = flow.connection.ask(REQUEST).is_err();
        }
    }

    /// Waits for the answers. A connection without one, or with another replica's, is broken for good.
    pub fn hear(&mut self) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        let open = |flow: &Flow| !flow.broken && flow.connection.phase != Phase::Idle;
        let mut left = self.flows.iter().filter(|flow| open(flow)).count();
        while left > 0 && Instant::now() < deadline {
            for ready in self.poll.wait(Duration::from_millis(20))? {
                self.flows[ready.token].step(ready.writable, ready.readable);
            }
            left = self.flows.iter().filter(|flow| open(flow)).count();
        }
        for flow in self.flows.iter_mut().filter(|flow| open(flow)) {
            flow.broken = true;
        }
        Ok(())
    }

    /// So many are broken.
    pub fn broken(&self) -> usize {
        self.flows.iter().filter(|flow| flow.broken).count()
    }

    /// So many are broken that began with others than `removed`.
    pub fn broken_without(&self, removed: &str) -> usize {
        self.flows.iter().filter(|flow| flow.broken && flow.replica != removed).count()
    }

    /// So many began with that replica.
    pub fn of(&self, replica: &str) -> usize {
        self.flows.iter().filter(|flow| flow.replica == replica).count()
    }
}

impl Flow {
    fn step(&mut self, writable: bool, readable: bool) {
        if !self.broken {
            self.broken = self.go_on(writable, readable).is_err();
        }
    }

    fn go_on(&mut self, writable: bool, readable: bool) -> Result<()> {
        if writable && self.connection.connected()? {
            self.connection.ask(REQUEST)?;
        }
        if readable && let Some(answer) = self.connection.hear()? {
            let replica = String::from_utf8_lossy(answer);
            if self.replica.is_empty() {
                self.replica = replica.into_owned();
            } else if *self.replica != *replica {
                bail!("{replica} answered");
            }
        }
        Ok(())
    }
}
