//! How long syncs take, for whoever wants to know in this process: the agent for its metrics, the plugin for its report.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

type Observer = Box<dyn Fn(Duration) + Send + Sync>;

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// From now on `observer` is told of every sync of this process, done or failed. There is one observer, the first.
pub fn observe_syncs(observer: impl Fn(Duration) + Send + Sync + 'static) {
    let _ = OBSERVER.set(Box::new(observer));
}

pub(super) fn timed<T>(sync: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = sync();
    if let Some(observer) = OBSERVER.get() {
        observer(begun.elapsed());
    }
    result
}
