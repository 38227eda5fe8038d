//! How checks in a row make a status. Pure.

use crate::membership::admission::HealthStatus;
use crate::model::CheckSpec;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replica can answer.
    Up,
    /// It can't, and why.
    Down(String),
    /// Its network namespace is gone, and it won't come back.
    Gone,
    /// The check couldn't be made, and why: the replica may be up or down.
    Unknown(String),
}

/// The checks of one replica so far, as far as they matter. A restart of the agent begins anew: what counts until a
/// status is the state that the registry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hysteresis {
    rise: u8,
    fall: u8,
    up: u8,
    down: u8,
}

impl Hysteresis {
    /// Before the first check.
    pub fn new(check: &CheckSpec) -> Self {
        Self { rise: check.rise, fall: check.fall, up: 0, down: 0 }
    }

    /// One more check. `None`: too few in a row so far.
    pub fn count(&mut self, outcome: &Outcome) -> Option<HealthStatus> {
        match outcome {
            Outcome::Up => (self.up, self.down) = (self.up.saturating_add(1), 0),
            Outcome::Down(_) => (self.up, self.down) = (0, self.down.saturating_add(1)),
            Outcome::Gone => (self.up, self.down) = (0, self.fall),
            Outcome::Unknown(_) => return None,
        }
        if self.up >= self.rise {
            return Some(HealthStatus::Up);
        }
        (self.down >= self.fall).then_some(HealthStatus::Down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(options: &str, outcomes: &str) -> String {
        let mut hysteresis = Hysteresis::new(&format!("tcp {options}").parse().unwrap());
        let outcome = |letter| match letter {
            'u' => Outcome::Up,
            'd' => Outcome::Down(String::new()),
            'g' => Outcome::Gone,
            _ => Outcome::Unknown(String::new()),
        };
        let status = |outcome| match hysteresis.count(&outcome) {
            Some(HealthStatus::Up) => 'U',
            Some(HealthStatus::Down) => 'D',
            None => '.',
        };
        outcomes.chars().map(outcome).map(status).collect()
    }

    #[test]
    fn so_many_in_a_row() {
        for (options, outcomes, expected) in [
            ("", "ddddu", "..DDU"),
            ("", "udduddd", "U..U..D"),
            ("rise=3 fall=1", "uuduuuu", "..D..UU"),
            ("rise=2", "dduduu", ".....U"),
            ("", "ug", "UD"),
            // A check that couldn't be made neither counts nor begins the count anew.
            ("", "udd???d", "U.....D"),
        ] {
            assert_eq!(statuses(options, outcomes), expected, "{options} {outcomes}");
        }
    }

    #[test]
    fn it_never_ends() {
        let long = "u".repeat(1000) + &"d".repeat(1000);
        assert!(statuses("fall=100", &long).ends_with('D'));
    }
}
