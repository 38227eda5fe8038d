//! How fast messages may leave: many identities must not overflow a server's socket buffer.

use std::time::{Duration, SystemTime};

/// Messages a second, in the long run.
const RATE: f64 = 100.0;
/// Messages at once, after a rest.
const BURST: f64 = 50.0;

/// A token bucket. Answers to a server's offer pass it without waiting, since the server has paced them itself, but
/// they empty it too.
#[derive(Debug)]
pub struct Pace {
    tokens: f64,
    filled: SystemTime,
}

impl Pace {
    /// A full bucket.
    pub fn new(now: SystemTime) -> Self {
        Self { tokens: BURST, filled: now }
    }

    /// How long until a message may leave; zero: now.
    pub fn wait(&mut self, now: SystemTime) -> Duration {
        // A clock set back gives nothing for a moment, and costs nothing.
        let rest = now.duration_since(self.filled).unwrap_or_default();
        self.filled = now;
        self.tokens = (self.tokens + rest.as_secs_f64() * RATE).min(BURST);
        Duration::from_secs_f64((1.0 - self.tokens).max(0.0) / RATE)
    }

    /// Accounts for a message that leaves.
    pub fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut now = SystemTime::UNIX_EPOCH;
        let mut pace = Pace::new(now);
        let mut sent = 0;
        for _ in 0..3000 {
            if pace.wait(now).is_zero() {
                pace.spend();
                sent += 1;
            }
            now += Duration::from_millis(1);
        }
        assert!((345..=351).contains(&sent), "{sent} in 3 s");
    }

    #[test]
    fn a_clock_set_back_stops_nothing() {
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
        let mut pace = Pace::new(later);
        for _ in 0..60 {
            pace.spend();
        }
        assert!(pace.wait(SystemTime::UNIX_EPOCH) <= Duration::from_millis(10));
        assert!(pace.wait(SystemTime::UNIX_EPOCH + Duration::from_millis(11)).is_zero());
    }
}
