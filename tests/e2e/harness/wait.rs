//! Waiting for something to become true, with a limit.

use std::thread;
use std::time::{Duration, Instant};

/// Polls `condition` until it yields something; a test that waits in vain fails by `what` it waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
