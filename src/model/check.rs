//! What a pod can ask to be checked for before it gets connections: `viproute.io/health`, and `health` of the conflist.
//! This is the text itself; `node::health` makes the checks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// No check: the replica is ready when its ADD is done.
pub const NONE: &str = "none";

/// What a check may be, for messages.
pub const EXPECTED: &str = "\"none\", \"listen\", \"tcp\" or \"http:PORT/PATH\", then perhaps interval=1s (100ms to 1h), \
    timeout=1s (10ms to 10s, not above the interval), rise=1 and fall=3 (1 to 100)";

const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
/// A server that does not answer takes a place among the running checks for so long.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Unless the interval is shorter still.
const USUAL_TIMEOUT: Duration = Duration::from_secs(1);
/// In a row.
const MOST: u8 = 100;
/// Bytes of a path.
const LONGEST_PATH: usize = 1024;

/// A check, and how often it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// What is probed.
    pub probe: Probe,
    /// From one time to the next.
    pub interval: Duration,
    /// No answer within this is a failure; never longer than the interval.
    pub timeout: Duration,
    /// So many successes in a row make the replica ready.
    pub rise: u8,
    /// So many failures in a row end that.
    pub fall: u8,
}

/// What a check probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A socket listens on every port.
    Listen,
    /// Every TCP port takes a connection.
    Tcp,
    /// A GET is answered by a status from 200 to 399.
    Http {
        /// The port, one of those the VIP serves or not.
        port: u16,
        /// From the first `/` on.
        path: String,
    },
}

/// A text that is no check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct BadCheck;

/// Reads what a pod or a network asks for; [`NONE`] is no check.
pub fn parse(text: &str) -> Result<Option<CheckSpec>, BadCheck> {
    if text.trim_ascii() == NONE { Ok(None) } else { text.parse().map(Some) }
}

impl CheckSpec {
    fn of(probe: Probe) -> Self {
        Self { probe, interval: Duration::from_secs(1), timeout: USUAL_TIMEOUT, rise: 1, fall: 3 }
    }
}

impl FromStr for CheckSpec {
    type Err = BadCheck;

    fn from_str(text: &str) -> Result<Self, BadCheck> {
        let mut words = text.split_ascii_whitespace();
        let mut check = Self::of(words.next().ok_or(BadCheck)?.parse()?);
        let (mut timeout, mut seen) = (None, Vec::new());
        for word in words {
            let (key, value) = word.split_once('=').ok_or(BadCheck)?;
            if seen.contains(&key) {
                return Err(BadCheck);
            }
            seen.push(key);
            match key {
                "interval" => check.interval = duration(value, SHORTEST_INTERVAL, LONGEST_INTERVAL)?,
                "timeout" => timeout = Some(duration(value, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)?),
                "rise" => check.rise = count(value)?,
                "fall" => check.fall = count(value)?,
                _ => return Err(BadCheck),
            }
        }
        // A check is over before the next one is due.
        check.timeout = timeout.unwrap_or(USUAL_TIMEOUT.min(check.interval));
        if check.timeout <= check.interval { Ok(check) } else { Err(BadCheck) }
    }
}

impl FromStr for Probe {
    type Err = BadCheck;

    fn from_str(text: &str) -> Result<Self, BadCheck> {
        match text {
            "listen" => return Ok(Self::Listen),
            "tcp" => return Ok(Self::Tcp),
            _ => {}
        }
        let rest = text.strip_prefix("http:").ok_or(BadCheck)?;
        let (port, path) = rest.split_at(rest.find('/').ok_or(BadCheck)?);
        let port = digits(port)?.parse().ok().filter(|port| *port > 0).ok_or(BadCheck)?;
        // As it goes into the request: what isn't visible has to be written as %20 and the like.
        if path.len() > LONGEST_PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadCheck);
        }
        Ok(Self::Http { port, path: path.to_owned() })
    }
}

/// `parse` would take a sign.
fn digits(text: &str) -> Result<&str, BadCheck> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { Ok(text) } else { Err(BadCheck) }
}

fn count(text: &str) -> Result<u8, BadCheck> {
    digits(text)?.parse().ok().filter(|count| (1..=MOST).contains(count)).ok_or(BadCheck)
}

/// `500ms`, `2s`, `1m`, `1h`.
fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, BadCheck> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let unit = UNITS.iter().find_map(|(unit, length)| Some((text.strip_suffix(unit)?, *length)));
    let (number, length) = unit.ok_or(BadCheck)?;
    let number: u32 = digits(number)?.parse().map_err(|_| BadCheck)?;
    let duration = Duration::from_millis(u64::from(number) * length);
    if (least..=most).contains(&duration) { Ok(duration) } else { Err(BadCheck) }
}

/// As it can be read again; options only where they differ from what they are by themselves.
impl fmt::Display for CheckSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::of(self.probe.clone());
        write!(f, "{}", self.probe)?;
        if self.interval != usual.interval {
            write!(f, " interval={}", Span(self.interval))?;
        }
        if self.timeout != USUAL_TIMEOUT.min(self.interval) {
            write!(f, " timeout={}", Span(self.timeout))?;
        }
        if self.rise != usual.rise {
            write!(f, " rise={}", self.rise)?;
        }
        if self.fall != usual.fall {
            write!(f, " fall={}", self.fall)?;
        }
        Ok(())
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen => f.write_str("listen"),
            Self::Tcp => f.write_str("tcp"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
        }
    }
}

/// A length of time as it is written: whole seconds, or milliseconds.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        text.parse::<CheckSpec>().unwrap_or_else(|error| panic!("{text}: {error}")).to_string()
    }

    #[test]
    fn options_have_defaults() {
        let second = Duration::from_secs(1);
        let check = CheckSpec { probe: Probe::Listen, interval: second, timeout: second, rise: 1, fall: 3 };
        assert_eq!("listen".parse(), Ok(check.clone()));
        assert_eq!(" listen  interval=1s fall=3 rise=1 timeout=1000ms ".parse(), Ok(check));
        assert_eq!(parse(" none "), Ok(None));
        assert_eq!(
            shown("tcp interval=2s timeout=500ms rise=2 fall=10"),
            "tcp interval=2s timeout=500ms rise=2 fall=10"
        );
        assert_eq!(shown("http:8080/healthz?a=b interval=1m"), "http:8080/healthz?a=b interval=60s");
        // A shorter interval alone shortens the time-out too.
        let often: CheckSpec = "http:80/ interval=200ms".parse().unwrap();
        assert_eq!(often.timeout, Duration::from_millis(200));
    }

    #[test]
    fn what_is_no_check_is_refused() {
        for bad in [
            "",
            " ",
            "Listen",
            "always",
            "none interval=1s",
            "http",
            "http:",
            "http:80",
            "http:/",
            "http:0/",
            "http:65536/",
            "http:+80/",
            "http:80/a\u{e4}",
            "https:443/",
            "http://localhost/",
            "tcp:80",
            "listen interval",
            "listen interval=",
            "listen interval=1",
            "listen interval=99ms",
            "listen interval=61m",
            "listen interval=1.5s",
            "listen interval=-1s",
            "listen interval=1d",
            "tcp timeout=9ms",
            "tcp timeout=11s interval=1m",
            "tcp timeout=2s",
            "tcp timeout=300ms interval=200ms",
            "tcp rise=0",
            "tcp rise=101",
            "tcp fall=0",
            "tcp fall=x",
            "tcp fall=+3",
            "tcp fall=3 fall=3",
            "tcp falls=3",
            "tcp,fall=3",
        ] {
            assert_eq!(parse(bad), Err(BadCheck), "{bad:?}");
        }
        assert_eq!(parse(&format!("http:80/{}", "a".repeat(LONGEST_PATH))), Err(BadCheck));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_parse(
            probe in prop_oneof![
                Just(Probe::Listen),
                Just(Probe::Tcp),
                (1u16.., "/[!-~]{0,20}").prop_map(|(port, path)| Probe::Http { port, path }),
            ],
            interval in 100u64..3_600_000, part in 1u64..=100, rise in 1u8..=100, fall in 1u8..=100,
        ) {
            let timeout = Duration::from_millis((interval * part / 100).clamp(10, 10_000));
            let check = CheckSpec { probe, interval: Duration::from_millis(interval), timeout, rise, fall };
            prop_assert_eq!(check.to_string().parse(), Ok(check));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}", option in "\\PC{0,20}") {
            let _ = parse(&text);
            let _ = parse(&format!("tcp {option}"));
        }
    }
}
