//! The clock of leases: the wall clock's when this process started, carried on by `CLOCK_BOOTTIME`. It goes
//! on while the machine is suspended, and setting the wall clock doesn't move it: a step forward ends no lease, a step back
//! makes none last longer than its server thinks.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// When this process first asked: by the wall clock, and since boot.
static START: OnceLock<(SystemTime, Duration)> = OnceLock::new();

/// The time.
pub fn now() -> SystemTime {
    let (wall, boot) = *START.get_or_init(|| (SystemTime::now(), since_boot()));
    wall + since_boot().saturating_sub(boot)
}

/// Seconds since 1970 of this clock, as the wall clock counts them now: for people and for files.
pub fn to_wall(seconds: u64) -> u64 {
    shifted(seconds, signed(SystemTime::now()) - signed(now()))
}

/// What the wall clock said, or would have said, when the machine started: seconds since 1970. It moves when the clock is
/// set, and with nothing else.
pub fn wall_at_boot() -> i64 {
    signed(SystemTime::now() - since_boot())
}

/// What this clock said then.
pub fn at_boot() -> i64 {
    signed(now() - since_boot())
}

/// `seconds` and some more, or less.
pub fn shifted(seconds: u64, by: i64) -> u64 {
    seconds.saturating_add_signed(by)
}

/// The nearest second.
fn signed(time: SystemTime) -> i64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from((millis + 500) / 1000).unwrap_or(i64::MAX)
}

/// Where the clock can't be read (it always can), no time passes.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_agrees_with_a_wall_clock_that_isnt_set() {
        let before = now();
        std::thread::sleep(Duration::from_millis(20));
        let passed = now().duration_since(before).unwrap();
        assert!(passed >= Duration::from_millis(20), "{passed:?}");
        let seconds = 1_790_000_000;
        assert!(to_wall(seconds).abs_diff(seconds) <= 1);
        assert!(wall_at_boot().abs_diff(at_boot()) <= 1);
    }
}
