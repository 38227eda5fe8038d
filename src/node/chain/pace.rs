//! How soon viproute is put back into a network from which it is taken again and again.

use std::time::{Duration, Instant};

/// Who has left viproute in the network for so long has not fought it.
pub const QUIET: Duration = Duration::from_secs(30);
/// So many times in a row are a start and its retries, not a fight.
const HARMLESS: u32 = 5;
/// From here on the pauses grow.
const MANY: u32 = 120;
/// The first pause: within a second viproute is back.
const SHORT: Duration = Duration::from_millis(200);
/// The longest pause.
const LONG: Duration = Duration::from_secs(300);

/// How often in a row viproute was put back, each time less than [`QUIET`] after the time before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    times: u32,
    last: Option<Instant>,
}

impl Pace {
    /// It was taken out: so long from now it may be put back. Zero: at once.
    pub fn wait(&mut self, now: Instant) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let since = now.saturating_duration_since(last);
        let pause = self.pause();
        // While it is kept out of the network by a pause nobody leaves it in there.
        if since > QUIET + pause {
            *self = Self::default();
            return Duration::ZERO;
        }
        pause.saturating_sub(since)
    }

    /// It was put back.
    pub fn rejoined(&mut self, now: Instant) {
        self.times = self.times.saturating_add(1);
        self.last = Some(now);
    }

    /// Another program takes it out each time.
    pub fn is_fight(&self, now: Instant) -> bool {
        self.times >= HARMLESS
            && self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET + self.pause())
    }

    fn pause(&self) -> Duration {
        match self.times {
            ..HARMLESS => Duration::ZERO,
            HARMLESS..MANY => SHORT,
            times => (SHORT * 2).saturating_mul(1 << (times - MANY).min(12)).min(LONG),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another program takes viproute out as soon as it is in, for so long; how often it is put back.
    fn fought(pace: &mut Pace, begin: Instant, whole: Duration) -> u32 {
        let (mut now, mut times) = (begin, 0);
        while now < begin + whole {
            let wait = pace.wait(now);
            now += wait;
            if wait.is_zero() {
                pace.rejoined(now);
                times += 1;
                now += Duration::from_millis(1);
            }
        }
        times
    }

    #[test]
    fn a_fight_becomes_slow_and_ends_when_it_is_left_alone() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        assert_eq!(fought(&mut pace, begin, Duration::from_secs(10)), 54, "five at once, then five a second");
        assert!(pace.is_fight(begin + Duration::from_secs(10)));
        let (mut pace, hour) = (Pace::default(), Duration::from_secs(3600));
        let times = fought(&mut pace, begin, hour);
        assert!((120..150).contains(&times), "{times} times in an hour");
        // It stays in the network.
        let later = begin + hour + LONG + LONG;
        assert!(!pace.is_fight(later));
        assert_eq!(pace.wait(later), Duration::ZERO);
        pace.rejoined(later);
        assert!(!pace.is_fight(later) && pace.wait(later).is_zero());
    }

    #[test]
    fn a_hundred_in_a_row_are_followed_within_a_second() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            let wait = pace.wait(now);
            assert!(wait <= SHORT);
            now += wait;
            pace.rejoined(now);
        }
    }

    #[test]
    fn a_program_that_writes_now_and_then_is_no_fight() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(pace.wait(now), Duration::ZERO);
            pace.rejoined(now);
            assert!(!pace.is_fight(now));
            now += QUIET + SHORT;
        }
    }
}
