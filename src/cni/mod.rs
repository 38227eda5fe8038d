//! The plugin: one file per verb, and what they share. [`run`] is the table of verbs.

mod add;
pub mod annotations;
mod check;
mod del;
pub mod error;
mod gc;
mod pod_address;
pub mod protocol;
mod report;
mod status;
pub mod stderr;

use serde::Serialize;

use crate::cni::protocol::config::version_of;
use crate::cni::protocol::version::{NEWEST, SUPPORTED, Versions};
use crate::cni::protocol::{Call, Command, Config};

pub use error::Error;
use report::Report;

/// What goes to stdout, and whether the call succeeded.
#[derive(Debug)]
pub struct Answer {
    /// The text; empty where a verb has no result.
    pub stdout: String,
    /// Exit status 0.
    pub ok: bool,
}

/// Carries out one call: the environment by `variable`, and the whole of stdin.
pub fn run(variable: impl Fn(&str) -> Option<std::ffi::OsString>, stdin: &[u8]) -> Answer {
    match Call::from_env(variable).map_err(Error::from).and_then(|call| carry_out(&call, stdin)) {
        Ok(stdout) => Answer { stdout, ok: true },
        Err(error) => Answer { stdout: error_text(&error, version_of(stdin)), ok: false },
    }
}

fn carry_out(call: &Call, stdin: &[u8]) -> Result<String, Error> {
    let mut report = Report::begin();
    let result = dispatch(call, stdin, &mut report);
    report.send(call, result.as_ref().err());
    result
}

fn dispatch(call: &Call, stdin: &[u8], report: &mut Report) -> Result<String, Error> {
    let nothing = |()| String::new();
    match call.command {
        Command::Add => add::run(call, Config::parse(stdin)?, report),
        Command::Check => check::run(call, &Config::parse(stdin)?, report).map(nothing),
        Command::Del => del::run(call, &Config::parse_for_removal(stdin)?, report).map(nothing),
        Command::Gc => gc::run(&Config::parse_for_removal(stdin)?, report).map(nothing),
        Command::Status => status::run(&Config::parse(stdin)?, report).map(nothing),
        Command::Version => json(&Versions::new(version_of(stdin))),
    }
}

/// An error that stdin could not even be read for.
pub fn stdin_failed(error: std::io::Error) -> Answer {
    Answer { stdout: error_text(&Error::Io("read stdin", error), None), ok: false }
}

/// An error in the caller's version, where that is one of ours.
fn error_text(error: &Error, version: Option<String>) -> String {
    let version = version.filter(|v| SUPPORTED.contains(&v.as_str())).unwrap_or_else(|| NEWEST.to_owned());
    let error: protocol::Error = error.to_cni(&version);
    json(&error).unwrap_or_default()
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Io("encode the answer", e.into()))
}
