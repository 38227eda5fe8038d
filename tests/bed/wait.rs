//! Waiting for something to become true, with a limit. Every limit is here, for a machine that is busy with other tests;
//! `VIPROUTE_TEST_PATIENCE=3` makes all of them three times as long.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Repairs are designed for a second.
pub const REPAIRED: Duration = Duration::from_secs(3);

/// What a program does as soon as it gets to run.
pub const SOON: Duration = Duration::from_secs(10);

/// What takes some timers: a health check's failures in a row, a packet that is lost and sent again after six seconds and
/// once more after twelve, a container runtime's start.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a protocol or the kernel takes its time for: leases that end, a thousand namespaces that are torn down.
pub const LONG: Duration = Duration::from_secs(90);

/// Reconciliation tries what failed again after five seconds at the longest: what has been quiet for so long is over.
pub const QUIET: Duration = Duration::from_secs(6);

/// `limit` as the environment wants it. For limits alone: how long a test waits for something that must not happen doesn't
/// depend on the machine.
pub fn scaled(limit: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("VIPROUTE_TEST_PATIENCE") {
        Ok(text) => text.parse().ok().filter(|factor| (0.1..=100.0).contains(factor)).unwrap_or_else(|| {
            panic!("VIPROUTE_TEST_PATIENCE is {text:?}: expected a factor from 0.1 to 100");
        }),
        Err(_) => 1.0,
    });
    limit.mul_f64(*factor)
}

/// The moment at which `limit` is over.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + scaled(limit)
}

/// Polls `condition` until it yields something; a test that waits in vain fails by `what` it waited for.
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> T {
    try_until(what, limit, condition).unwrap_or_else(|error| panic!("{error}"))
}

/// The same where waiting in vain is an error.
pub fn try_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let end = deadline(limit);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        ensure!(Instant::now() < end, "waited {:?} in vain: {what}", scaled(limit));
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `value` stays the same for [`QUIET`], and returns it; what never rests fails the test by `what` it is.
pub fn quiet<T: PartialEq>(what: &str, mut value: impl FnMut() -> T) -> T {
    let (mut last, mut since) = (value(), Instant::now());
    until(&format!("an end of {what}"), LONG, || {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
            return None;
        }
        (since.elapsed() >= QUIET).then_some(now)
    })
}
