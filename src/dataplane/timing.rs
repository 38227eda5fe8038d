//! How long the reconciliation of a VIP takes: for the daemon's metrics and the plugin's report.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

type Observer = Box<dyn Fn(Duration) + Send + Sync>;

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// Calls `observer` after every reconciliation of this process, done or failed. Only the first observer counts.
pub fn observe_syncs(observer: impl Fn(Duration) + Send + Sync + 'static) {
    let _ = OBSERVER.set(Box::new(observer));
}

pub(super) fn timed<T>(reconcile: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = reconcile();
    if let Some(observer) = OBSERVER.get() {
        observer(begun.elapsed());
    }
    result
}
