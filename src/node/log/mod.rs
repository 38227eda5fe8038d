//! The log: text lines, with colours on a terminal; for the journal of systemd, which has times of its own, each
//! with its priority; or JSON.

mod repeats;

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::node::config::{Form, Log};
use repeats::Repeats;

/// From now on everything is logged as the configuration says, on stderr; a panic too, which ends the process.
pub fn init(log: Log) {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("viprouted: {}", panic.to_string().replace('\n', " "));
        // In every build, as `panic = "abort"` has it in a release: half a daemon would be worse than none, which the service
        // manager starts again within a second while traffic goes on.
        std::process::abort();
    }));
    let format = Format::default().with_target(false).with_ansi(std::io::stderr().is_terminal());
    // `log_internal_errors` would report errors by a macro that panics where the log's reader is gone or its disk is full.
    let lines =
        tracing_subscriber::fmt().with_writer(std::io::stderr).log_internal_errors(false).with_max_level(log.level);
    match log.form {
        Form::Json => {
            lines.json().event_format(Repeats::new(format.json())).finish().with(told(log.level)).init();
        }
        Form::Text if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) => {
            let format = Prioritised(format.without_time().with_level(false));
            lines.event_format(Repeats::new(format)).finish().with(told(log.level)).init();
        }
        Form::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            lines.event_format(Repeats::new(format)).finish().with(told(log.level)).init();
        }
    }
}

/// What is logged. The Kubernetes client warns of each watch that fails, each time it is tried again: viprouted says that in its own
/// words, once for all of them.
fn told(level: LevelFilter) -> Targets {
    let client = if level >= LevelFilter::DEBUG { level } else { LevelFilter::OFF };
    Targets::new().with_default(level).with_targets(["kube_client", "kube_runtime"].map(|part| (part, client)))
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn the_kubernetes_client_warns_nobody() {
        let logs = |level, target| told(level).would_enable(target, &Level::WARN);
        assert!(logs(LevelFilter::INFO, "viproute::node") && logs(LevelFilter::INFO, "chitchat"));
        assert!(!logs(LevelFilter::INFO, "kube_runtime::watcher") && !logs(LevelFilter::WARN, "kube_client::client"));
        assert!(logs(LevelFilter::DEBUG, "kube_runtime::watcher"));
    }

    /// In a process of its own, which is this test once more.
    #[test]
    fn a_panic_in_any_thread_is_logged_and_ends_the_process() {
        const CHILD: &str = "VIPROUTE_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            init(Log { form: Form::Json, level: Level::INFO.into() });
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            std::process::exit(0);
        }
        let module = module_path!().split_once("::").unwrap().1;
        let name = format!("{module}::a_panic_in_any_thread_is_logged_and_ends_the_process");
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(Signal::SIGABRT as i32), "{output:?}");
        let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let message = line["fields"]["message"].as_str().unwrap();
        assert!(line["level"] == "ERROR" && message.contains("on purpose"), "{log}");
    }
}
