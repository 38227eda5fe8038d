//! The log: lines for people, with colours on a terminal; for the journal of systemd, which has times of its own, each
//! with its priority; or JSON.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::allocator::config::{Form, Log};

/// From now on everything is logged as the configuration says, on stderr.
pub fn init(log: Log) {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(log.level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match log.form {
        Form::Json => lines.json().init(),
        Form::Text if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) => {
            lines
                .event_format(Prioritised(Format::default().without_time().with_target(false).with_level(false)))
                .init();
        }
        Form::Text => lines.init(),
    }
}

/// Whether stderr leads to the journal: `$JOURNAL_STREAM` is the `device:inode` of the socket that does, and of another one
/// where stderr was redirected since.
fn is_journal(stream: Option<&str>) -> bool {
    let stderr = std::fs::metadata("/proc/self/fd/2").map(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()));
    stream.is_some_and(|stream| stderr.is_ok_and(|stderr| stderr == stream))
}

/// Lines that begin with their priority, as `sd-daemon` has it.
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// syslog(3)'s number.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
