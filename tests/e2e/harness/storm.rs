//! New connections without end, and who answers them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::load::Connection;
use super::netns::Netns;
use super::traffic::PORT;
use super::wait::{LONG, until};

const THREADS: usize = 8;

/// Connections that ask once, so many a second or as many as the machine makes, from when it is started to when it is
/// dropped.
pub struct Storm {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    over: AtomicBool,
    next: AtomicUsize,
    seen: Mutex<Seen>,
}

/// What came of connections.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Answers by replica.
    pub names: BTreeMap<String, usize>,
    /// How connections without one ended.
    pub failed: Vec<String>,
}

impl Seen {
    pub fn answers(&self) -> usize {
        self.names.values().sum()
    }

    pub fn of(&self, name: &str) -> usize {
        self.names.get(name).copied().unwrap_or_default()
    }
}

impl Storm {
    pub fn start(ns: &Netns, vip: impl Into<IpAddr>, rate: u32) -> Self {
        Self::on(ns, (vip, PORT), rate)
    }

    pub fn on(ns: &Netns, to: (impl Into<IpAddr>, u16), rate: u32) -> Self {
        // A connection's port rests for a minute when it was closed; with timestamps another connection may have it at once.
        ns.set_sysctl("net/ipv4/ip_local_port_range", "1024 65535");
        ns.set_sysctl("net/ipv4/tcp_tw_reuse", "1");
        let (over, next, seen) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::default());
        let state = Arc::new(State { over, next, seen });
        let (to, start) = (SocketAddr::from((to.0.into(), to.1)), Instant::now());
        let work = |state: Arc<State>| move || state.blow(to, start, rate);
        let threads = ns.run(|| (0..THREADS).map(|_| thread::spawn(work(state.clone()))).collect());
        Self { state, threads }
    }

    /// What came of all connections so far.
    pub fn seen(&self) -> Seen {
        self.state.seen.lock().unwrap().clone()
    }

    /// What comes of connections from now on, until at least so many are answered.
    pub fn next(&self, answers: usize) -> Seen {
        let before = self.seen();
        let target = before.answers() + answers;
        let mut after = until("answers to new connections", LONG, || {
            Some(self.seen()).filter(|seen| seen.answers() >= target || seen.failed.len() > before.failed.len())
        });
        for (name, count) in before.names {
            *after.names.get_mut(&name).expect("who has answered once") -= count;
        }
        after.failed.drain(..before.failed.len());
        after
    }
}

impl State {
    fn blow(&self, to: SocketAddr, start: Instant, rate: u32) {
        while !self.over.load(Ordering::Relaxed) {
            let number = u32::try_from(self.next.fetch_add(1, Ordering::Relaxed)).expect("few connections");
            let due = Duration::from_secs(1) * number / rate;
            thread::sleep(due.saturating_sub(start.elapsed()));
            let answer = Connection::open(to).and_then(|mut connection| connection.ask());
            let mut seen = self.seen.lock().unwrap();
            match answer {
                Ok(answer) => *seen.names.entry(answer.name).or_default() += 1,
                Err(error) => seen.failed.push(error.to_string()),
            }
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
