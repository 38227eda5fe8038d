//! The express path's generation: another one as soon as rules, routes, devices or neighbours change, whoever changes them.
//! A thread that does nothing else: what waits here is a firewall's rule.

use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::net::changes::Changes;
use crate::with_causes;

use super::subsystems::{EXPRESS, SubsystemGuard};
use super::{Context, Error, Express};

/// After a change so long passes before the next one is taken: the first of a flood has its effect at once, and the others
/// are as many as fit into this time.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two tries to listen again.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts the thread; it listens before anything is switched on.
pub fn start(context: &Context) -> Result<(), Error> {
    let changes = Changes::open()?;
    let express = context.express.clone();
    let started = context.subsystems.spawn(&EXPRESS, move |guard| run(changes, &express, &guard));
    started.map_err(|source| Error::Io { op: "start a thread", source })
}

fn run(mut changes: Changes, express: &Express, guard: &SubsystemGuard) {
    loop {
        guard.turn();
        if !wait(&changes, guard.period()) {
            continue;
        }
        match changes.take() {
            Ok(true) => express.bump(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "changes of rules and routes can't be read");
                express.bump();
                thread::sleep(AGAIN);
                if let Ok(again) = Changes::open() {
                    changes = again;
                }
                express.bump();
            }
        }
        thread::sleep(PAUSE);
    }
}

/// Until something may have changed; false: nothing has, for so long.
fn wait(changes: &Changes, most: Duration) -> bool {
    let mut fds: Vec<PollFd<'_>> = changes.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut fds, timeout), Ok(ready) if ready > 0)
}
