//! Requests at a fixed rate. How long an answer took counts from the moment its request was *due*, not from when the client
//! got round to sending it: a path that stalls doesn't get fewer questions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::REQUEST;
use super::client::Load;
use super::connection::Connection;
use super::poll::{Poll, unshare_descriptors};

/// How long stragglers are waited for at the end.
const GRACE: Duration = Duration::from_secs(2);
/// Connections are made before anything is asked; they must come about within this time.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_NANOSECONDS: u64 = 60_000_000_000;

/// Latencies in nanoseconds of `rate` requests a second over `load`'s connections.
pub fn paced(load: &Load<'_>, rate: f64) -> Result<Histogram<u64>> {
    load.from.try_run(|| {
        unshare_descriptors()?;
        let mut paced = Paced::connect(load)?;
        paced.run(load.time, Duration::from_secs_f64(1.0 / rate))?;
        Ok(paced.latencies)
    })
}

struct Paced {
    poll: Poll,
    connections: Vec<Connection>,
    /// When what each connection waits for was due.
    due: Vec<Instant>,
    idle: VecDeque<usize>,
    latencies: Histogram<u64>,
}

impl Paced {
    fn connect(load: &Load<'_>) -> Result<Self> {
        let mut poll = Poll::new()?;
        let open = |slot| Connection::open(load.to[slot % load.to.len()], &poll, slot);
        let mut connections = (0..load.concurrency).map(open).collect::<Result<Vec<_>>>()?;
        let mut idle = VecDeque::new();
        let start = Instant::now();
        while idle.len() < connections.len() {
            if start.elapsed() > TIMEOUT {
                bail!("{} of {} connections came about", idle.len(), connections.len());
            }
            for ready in poll.wait(Duration::from_millis(10))?.iter().filter(|ready| ready.writable) {
                if connections[ready.token].connected()? {
                    idle.push_back(ready.token);
                }
            }
        }
        let latencies = Histogram::new_with_bounds(1, MAX_NANOSECONDS, 3)?;
        Ok(Self { poll, due: vec![start; connections.len()], connections, idle, latencies })
    }

    fn run(&mut self, time: Duration, interval: Duration) -> Result<()> {
        let start = Instant::now();
        let mut next = start;
        let end = start + time;
        let busy = |this: &Self| this.idle.len() < this.connections.len();
        while next < end || (busy(self) && Instant::now() < end + GRACE) {
            let now = Instant::now();
            while next <= now && next < end {
                // All are waiting: what is due stays due, and is late.
                let Some(slot) = self.idle.pop_front() else { break };
                self.due[slot] = next;
                self.connections[slot].ask(REQUEST)?;
                next += interval;
            }
            let pause = if next < end && !self.idle.is_empty() { next.saturating_duration_since(now) } else { GRACE };
            for ready in self.poll.wait(pause.min(Duration::from_millis(100)))? {
                if ready.readable && self.connections[ready.token].hear()?.is_some() {
                    let latency = self.due[ready.token].elapsed().as_nanos();
                    self.latencies.saturating_record(u64::try_from(latency).unwrap_or(MAX_NANOSECONDS));
                    self.idle.push_back(ready.token);
                }
            }
            if Instant::now() > end + GRACE {
                bail!("{:.0} requests/s are more than this path carries", 1.0 / interval.as_secs_f64());
            }
        }
        if busy(self) {
            bail!("{} requests were never answered", self.connections.len() - self.idle.len());
        }
        Ok(())
    }
}
