//! A replica that flaps is held down: each change of its state replaces its VIP's group and causes routing updates. Pure.

use std::time::{Duration, Instant};

/// After the second time in a row; twice as long each further time.
const FIRST: Duration = Duration::from_secs(1);
/// At most.
const LONGEST: Duration = Duration::from_secs(30);
/// A replica that has not gone down for so long begins anew.
const FORGIVEN: Duration = Duration::from_secs(120);

/// How often a replica has gone down lately. The first time costs nothing: a server that restarts is back at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldDown {
    last: Option<Instant>,
    times: u32,
}

impl HoldDown {
    /// It was ready and fails its check now.
    pub fn went_down(&mut self, now: Instant) {
        let again = self.last.is_some_and(|last| now.saturating_duration_since(last) < FORGIVEN);
        self.times = if again { self.times.saturating_add(1) } else { 0 };
        self.last = Some(now);
    }

    /// Whether it may become ready again.
    pub fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.length())
    }

    fn length(&self) -> Duration {
        match self.times {
            0 => Duration::ZERO,
            times => FIRST.saturating_mul(1 << (times - 1).min(5)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_twice_as_long() {
        let (mut hold_down, mut now) = (HoldDown::default(), Instant::now());
        assert!(hold_down.is_over(now));
        for seconds in [0, 1, 2, 4, 8, 16, 30, 30, 30] {
            hold_down.went_down(now);
            let end = now + Duration::from_secs(seconds);
            assert!(hold_down.is_over(end), "after {seconds} s");
            if let Some(almost) = seconds.checked_sub(1).filter(|_| seconds > 0) {
                assert!(!hold_down.is_over(now + Duration::from_secs(almost)), "before {seconds} s");
            }
            now = end;
        }
    }

    #[test]
    fn who_stays_up_is_forgiven() {
        let (mut hold_down, now) = (HoldDown::default(), Instant::now());
        for _ in 0..40 {
            hold_down.went_down(now);
        }
        assert!(!hold_down.is_over(now + LONGEST / 2));
        let later = now + FORGIVEN;
        hold_down.went_down(later);
        assert!(hold_down.is_over(later));
    }
}
