//! The same line again and again is counted, not written: a pod that is refused each second must not push everything
//! else out of the log.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// So often a line may come within [`WINDOW`].
const BURST: u32 = 5;
/// From a line's first time on.
const WINDOW: Duration = Duration::from_secs(60);
/// So many different lines are remembered. With more of them all are forgotten, which lets some through again.
const REMEMBERED: usize = 1000;

/// Lets through what `inner` formats, except what came too often; how often that was is said when it may come again, or
/// with the next line of another kind once its time is over.
#[derive(Debug)]
pub struct Repeats<F> {
    inner: F,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen(HashMap<String, Line>);

#[derive(Debug)]
struct Line {
    since: Instant,
    times: u32,
}

/// What is to be done with a line.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Write,
    Count,
}

impl<F> Repeats<F> {
    /// Around that format.
    pub fn new(inner: F) -> Self {
        Self { inner, seen: Mutex::default() }
    }
}

impl Seen {
    fn decide(&mut self, line: &str, now: Instant) -> Decision {
        if let Some(known) = self.0.get_mut(line) {
            known.times += 1;
            return if known.times > BURST { Decision::Count } else { Decision::Write };
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(line.to_owned(), Line { since: now, times: 1 });
        Decision::Write
    }

    /// Lines whose time is over, and how often they were kept back.
    fn expire(&mut self, now: Instant) -> Vec<(String, u32)> {
        let mut over = Vec::new();
        self.0.retain(|text, line| {
            let lasts = now.saturating_duration_since(line.since) < WINDOW;
            if !lasts && line.times > BURST {
                over.push((text.clone(), line.times - BURST));
            }
            lasts
        });
        over
    }
}

impl<S, N, F> FormatEvent<S, N> for Repeats<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let text = text_of(event);
        let (decision, expired) = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let expired = if is_about_repeats(event) { Vec::new() } else { seen.expire(Instant::now()) };
            (seen.decide(&text, Instant::now()), expired)
        };
        // Events of their own, so that they have whatever form the log has. The lock is released: they come by here.
        for (line, times) in expired {
            tracing::info!(target: REPEATS, line, times, "repeated within a minute, not written");
        }
        if decision == Decision::Count { Ok(()) } else { self.inner.format_event(context, writer, event) }
    }
}

const REPEATS: &str = "viproute::repeats";

fn is_about_repeats(event: &Event<'_>) -> bool {
    event.metadata().target() == REPEATS
}

/// Level, message and fields.
fn text_of(event: &Event<'_>) -> String {
    struct Text(String);
    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // A string takes whatever is written.
            let _ = match field.name() {
                "message" => write!(self.0, " {value:?}"),
                name => write!(self.0, " {name}={value:?}"),
            };
        }
    }
    let mut text = Text(event.metadata().level().to_string());
    event.record(&mut text);
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_time_within_a_minute_is_counted() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let decisions: Vec<_> = (0..8).map(|_| seen.decide("WARN x", now)).collect();
        assert_eq!(decisions.iter().filter(|decision| **decision == Decision::Write).count(), 5);
        assert_eq!(seen.decide("WARN y", now), Decision::Write);
        assert_eq!(seen.expire(now + WINDOW / 2), []);
        assert_eq!(seen.expire(now + WINDOW), [("WARN x".to_owned(), 3)]);
        assert_eq!(seen.decide("WARN x", now + WINDOW), Decision::Write);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        for number in 0..10 * REMEMBERED {
            seen.decide(&number.to_string(), now);
        }
        assert!(seen.0.len() <= REMEMBERED);
    }
}
