//! How fast messages may leave: many identities must not overflow a server's socket buffer.

use std::time::{Duration, SystemTime};

/// Messages a second, in the long run.
const RATE: f64 = 100.0;
/// Messages at once, after a rest.
const BURST: f64 = 50.0;
/// With so many messages unanswered the server is busy or away.
const SILENCE: u32 = 32;
/// Messages a second then. dnsmasq reads nothing for 18 s while it pings the first six addresses, and its socket
/// buffer holds some 130 messages: what is sent meanwhile must fit, or it waits for a retransmission.
const RATE_IN_SILENCE: f64 = 4.0;

/// A token bucket. Answers to a server's offer pass it without waiting, since the server has paced them itself, but
/// they empty it too.
#[derive(Debug)]
pub struct Pace {
    tokens: f64,
    filled: SystemTime,
    /// Messages without a reply, `SILENCE` at most.
    unanswered: u32,
}

impl Pace {
    /// A full bucket.
    pub fn new(now: SystemTime) -> Self {
        Self { tokens: BURST, filled: now, unanswered: 0 }
    }

    /// How long until a message may leave; zero: now.
    pub fn wait(&mut self, now: SystemTime) -> Duration {
        let silent = self.unanswered >= SILENCE;
        let (rate, most) = if silent { (RATE_IN_SILENCE, 1.0) } else { (RATE, BURST) };
        let rest = now.duration_since(self.filled).unwrap_or_default();
        self.filled = now;
        self.tokens = (self.tokens + rest.as_secs_f64() * rate).min(most);
        Duration::from_secs_f64((1.0 - self.tokens).max(0.0) / rate)
    }

    /// Accounts for a message that leaves.
    pub fn spend(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
        self.unanswered = SILENCE.min(self.unanswered + 1);
    }

    /// Accounts for a reply. It makes up for two messages, one of which may have been lost, and not for all: between
    /// two pings dnsmasq answers once.
    pub fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(2);
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
                pace.answered();
                sent += 1;
            }
            now += Duration::from_millis(1);
        }
        assert!((345..=351).contains(&sent), "{sent} in 3 s");
    }

    #[test]
    fn silence_slows_down_and_an_answer_ends_that() {
        let mut now = SystemTime::UNIX_EPOCH;
        let mut pace = Pace::new(now);
        let mut sent = |pace: &mut Pace, seconds: u64| {
            let ready = (0..seconds * 1000).filter(|_| {
                now += Duration::from_millis(1);
                let ready = pace.wait(now).is_zero();
                if ready {
                    pace.spend();
                }
                ready
            });
            ready.count()
        };
        let eighteen = sent(&mut pace, 18);
        assert!((100..=107).contains(&eighteen), "{eighteen}");
        for _ in 0..SILENCE {
            pace.answered();
        }
        let then = sent(&mut pace, 1);
        assert!(then > 30, "{then}");
    }
}
