//! Keeps viproute in the runtime's chain of plugins: where `viproutectl node join` has put it into a network and another program has
//! written that network anew, it is put back.
//!
//! Each write of another program is followed by one of ours. Where a program takes viproute out again and again, the two are no longer
//! close upon each other, and it is a problem that people have to solve.

mod access;
mod pace;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::chain::{Places, Rejoined, Standing, Wrong};
use crate::registry::watch::Follower;
use crate::with_causes;

use super::Context;
use super::journal::{Journal, Kind};
use super::problems::{self, Problems};
use super::subsystems::{CHAIN, SubsystemGuard};

use access::Access;
use pace::Pace;

/// What is half written, or about to be replaced, may stay so for this long before it is a problem.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks at a network that somebody else works on at this moment.
const BUSY: Duration = Duration::from_millis(100);
/// Between two tries where something can't be done, which the kernel may allow later.
const RETRY: Duration = Duration::from_secs(30);

/// Starts the thread; it has to be told of changes.
pub fn start(context: &Context) -> io::Result<Follower> {
    let (tell, told) = channel();
    let places = Places::default();
    let keeper = Keeper {
        places: places.clone(),
        started: SystemTime::now(),
        networks: BTreeMap::new(),
        problems: context.problems.clone(),
        journal: context.journal.clone(),
    };
    context.subsystems.spawn(&CHAIN, move |guard| run(keeper, &told, &guard))?;
    Ok(Follower {
        dirs: Box::new(move || places.watched()),
        tell: Box::new(move || {
            let _ = tell.send(()); // it ends with the process
        }),
    })
}

fn run(mut keeper: Keeper, told: &Receiver<()>, guard: &SubsystemGuard) {
    loop {
        guard.turn();
        let again = keeper.look(Instant::now()).unwrap_or(guard.period()).min(guard.period());
        match told.recv_timeout(again) {
            // What has been told of meanwhile is seen by one look.
            Ok(()) => while told.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Keeper {
    places: Places,
    started: SystemTime,
    networks: BTreeMap<PathBuf, Network>,
    problems: Problems,
    journal: Journal,
}

/// What is known of a network that viproute is to stay in.
#[derive(Default)]
struct Network {
    pace: Pace,
    /// Since when it can't be joined.
    since: Option<Instant>,
    problem: Option<String>,
}

impl Keeper {
    /// Puts viproute back where it is missing; after how long to look again, if nothing changes before.
    fn look(&mut self, now: Instant) -> Option<Duration> {
        let joined = match self.places.joined() {
            Ok(joined) => joined,
            Err(error) => {
                self.problems.set(problems::CHAIN, Some(with_causes(&error)));
                return Some(RETRY);
            }
        };
        self.networks.retain(|path, _| joined.contains(path));
        let mut again = None;
        for path in joined {
            let mut network = self.networks.remove(&path).unwrap_or_default();
            let next = self.keep(&path, &mut network, now);
            again = [again, next].into_iter().flatten().min();
            self.networks.insert(path, network);
        }
        let sentences: Vec<&str> = self.networks.values().filter_map(|network| network.problem.as_deref()).collect();
        self.problems.set(problems::CHAIN, Some(sentences.join("; ")).filter(|text| !text.is_empty()));
        again
    }

    fn keep(&self, path: &Path, network: &mut Network, now: Instant) -> Option<Duration> {
        match access::to(path, self.started) {
            Access::Write => {}
            Access::AfterRestart => {
                tracing::info!(
                    "{} came after viprouted's start, which may write there after a restart: restarting",
                    path.display()
                );
                access::restart();
                return Some(RETRY);
            }
            Access::Read => return Some(network.fail(read_only(path))),
        }
        let standing = match self.places.standing(path) {
            Ok(standing) => standing,
            Err(error) => return Some(network.fail(with_causes(&error))),
        };
        match standing {
            Standing::In => {
                network.since = None;
                let fight = network.pace.is_fight(now);
                network.problem = fight.then(|| fighting(path));
                fight.then_some(pace::QUIET)
            }
            Standing::Out => {
                network.since = None;
                let wait = network.pace.wait(now);
                if !wait.is_zero() {
                    network.problem = Some(fighting(path));
                    return Some(wait);
                }
                self.rejoin(path, network, now)
            }
            Standing::Wrong(wrong) => network.unusable(now, || unusable(path, &wrong)),
            Standing::Gone(aside) => network.unusable(now, || gone(path, aside.as_deref())),
        }
    }

    fn rejoin(&self, path: &Path, network: &mut Network, now: Instant) -> Option<Duration> {
        match self.places.rejoin(path) {
            Ok(Rejoined::Done) => {
                network.pace.rejoined(now);
                let text = format!("viproute was taken out of {}, and was put back", path.display());
                tracing::info!("{text}");
                self.journal.record(Kind::Repair, None, text);
                network.problem = network.pace.is_fight(now).then(|| fighting(path));
                Some(pace::QUIET).filter(|_| network.problem.is_some())
            }
            Ok(Rejoined::Needless) => None,
            Ok(Rejoined::Busy) => Some(BUSY),
            Err(error) => Some(network.fail(with_causes(&error))),
        }
    }
}

impl Network {
    fn fail(&mut self, problem: String) -> Duration {
        self.problem = Some(problem);
        RETRY
    }

    /// A problem once it has lasted.
    fn unusable(&mut self, now: Instant, problem: impl FnOnce() -> String) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let left = SETTLE.saturating_sub(now.saturating_duration_since(since));
        self.problem = left.is_zero().then(problem);
        Some(left).filter(|left| !left.is_zero())
    }
}

fn unusable(path: &Path, wrong: &Wrong) -> String {
    format!("viproute can't be put back into {}, which another program has written: {wrong}", path.display())
}

fn read_only(path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    format!(
        "viprouted can't write to {directory}, where viproute has joined a network: under systemd add ReadWritePaths={directory} to its unit \
         (`systemctl edit viprouted`) and restart it"
    )
}

fn fighting(path: &Path) -> String {
    format!(
        "another program takes viproute out of {} each time it is put back: let it write its network with viproute, or only when it \
         starts (Cilium: cni.exclusive=false); `viproutectl node leave` ends it",
        path.display()
    )
}

fn gone(path: &Path, aside: Option<&Path>) -> String {
    match aside {
        Some(aside) => format!(
            "Cilium has set aside the network that viproute had joined, as {} (its cni.exclusive): set cni.exclusive=false, then \
             `viproutectl node join`",
            aside.display()
        ),
        None => format!(
            "the network that viproute had joined, {}, is gone: `viproutectl node join` joins the one that is used now, \
             `viproutectl node leave` ends it",
            path.display()
        ),
    }
}
