//! New connections at a fixed rate, whatever becomes of those before: connect, one request, one answer, close.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::REQUEST;
use super::connection::Connection;
use super::poll::{Poll, Ready, unshare_descriptors};
use crate::stage::Netns;

/// A connection without an answer by then has timed out: a SYN is repeated after 1 s and 3 s.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for events.
const TICK: Duration = Duration::from_millis(20);

/// What became of the connections so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub begun: usize,
    /// Answered, by replica.
    pub answered: BTreeMap<String, usize>,
    pub refused: usize,
    /// Ended by the other side before an answer.
    pub reset: usize,
    pub timed_out: usize,
}

impl Count {
    /// Without an answer.
    pub fn failed(&self) -> usize {
        self.refused + self.reset + self.timed_out
    }

    /// Answered by that replica.
    pub fn of(&self, replica: &str) -> usize {
        self.answered.get(replica).copied().unwrap_or_default()
    }

    fn end(&mut self, error: ErrorKind) {
        match error {
            ErrorKind::ConnectionRefused => self.refused += 1,
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => self.timed_out += 1,
            _ => self.reset += 1,
        }
    }
}

/// They arrive in a thread of its own, until it is dropped.
pub struct Arrivals {
    stop: Arc<AtomicBool>,
    count: Arc<Mutex<Count>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Arrivals {
    /// `rate` connections a second from a namespace.
    pub fn start(from: &Netns, to: SocketAddrV4, rate: f64) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Count>>::default());
        let (over, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let interval = Duration::from_secs_f64(1.0 / rate);
        // A thread stays in the namespace it is started in.
        let thread = from.run(|| {
            thread::spawn(move || {
                unshare_descriptors()?;
                let poll = Poll::new()?;
                Clients { to, poll, open: Vec::new(), free: Vec::new(), count: counted }.run(interval, &over)
            })
        });
        Self { stop, count, thread: Some(thread) }
    }

    /// So far.
    pub fn count(&self) -> Count {
        self.count.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No more of them; waits for the answers.
    pub fn end(mut self) -> Result<Count> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok().context("the thread of new connections")??;
        }
        Ok(self.count())
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Clients {
    to: SocketAddrV4,
    poll: Poll,
    open: Vec<Option<(Connection, Instant)>>,
    /// Numbers of `open` without a connection.
    free: Vec<usize>,
    count: Arc<Mutex<Count>>,
}

impl Clients {
    fn run(mut self, interval: Duration, stop: &AtomicBool) -> Result<()> {
        let mut next = Instant::now();
        loop {
            let stopped = stop.load(Ordering::Relaxed);
            if stopped && self.free.len() == self.open.len() {
                return Ok(());
            }
            let now = Instant::now();
            while !stopped && next <= now {
                self.begin();
                next += interval;
            }
            let pause = if stopped { TICK } else { next.saturating_duration_since(now).min(TICK) };
            for ready in self.poll.wait(pause)? {
                self.step(ready);
            }
            self.time_out();
        }
    }

    fn counted(&self, count: impl FnOnce(&mut Count)) {
        count(&mut self.count.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn begin(&mut self) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.counted(|count| count.begun += 1);
        match Connection::open(self.to, &self.poll, at) {
            Ok(connection) => self.open[at] = Some((connection, Instant::now() + TIMEOUT)),
            Err(_) => self.end(at, Err(ErrorKind::HostUnreachable)),
        }
    }

    fn step(&mut self, ready: Ready) {
        let Some((connection, _)) = self.open.get_mut(ready.token).and_then(Option::as_mut) else { return };
        match advance(connection, ready) {
            Ok(None) => {}
            Ok(Some(replica)) => self.end(ready.token, Ok(replica)),
            Err(error) => self.end(ready.token, Err(error.kind())),
        }
    }

    fn end(&mut self, at: usize, outcome: std::result::Result<String, ErrorKind>) {
        self.open[at] = None;
        self.free.push(at);
        self.counted(|count| match outcome {
            Ok(replica) => *count.answered.entry(replica).or_default() += 1,
            Err(error) => count.end(error),
        });
    }

    fn time_out(&mut self) {
        let now = Instant::now();
        let late = |open: &Option<(Connection, Instant)>| open.as_ref().is_some_and(|(_, end)| *end < now);
        let late: Vec<usize> = (0..self.open.len()).filter(|at| late(&self.open[*at])).collect();
        for at in late {
            self.end(at, Err(ErrorKind::TimedOut));
        }
    }
}

/// The replica, once it has answered.
fn advance(connection: &mut Connection, ready: Ready) -> std::io::Result<Option<String>> {
    if ready.writable && connection.connected()? {
        connection.ask(REQUEST)?;
    }
    if !ready.readable {
        return Ok(None);
    }
    Ok(connection.hear()?.map(|answer| String::from_utf8_lossy(answer).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_connection_is_told_apart() {
        let mut count = Count::default();
        for error in [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::Other, ErrorKind::TimedOut] {
            count.end(error);
        }
        assert_eq!((count.refused, count.reset, count.timed_out, count.failed()), (1, 2, 1, 4));
        count.answered.insert("p1".into(), 3);
        assert_eq!((count.of("p1"), count.of("p2")), (3, 0));
    }
}
