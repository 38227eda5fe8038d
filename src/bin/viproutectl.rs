//! The tool for people: looks at VIPs on this node, takes replicas out of them, finds what is wrong.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use viproute::ctl::arguments::{Arguments, Doctor, Drain, Events, Form, Output, Status, Verb, Where};
use viproute::ctl::doctor::{self, Places, Severity};
use viproute::ctl::locate::{self, Flow};
use viproute::ctl::{drain, events, manual, status, watch};
use viproute::registry::{Registry, Transport};
use viproute::with_causes;

/// drain: connections are left. doctor: there are warnings.
const LEFT: u8 = 3;
/// doctor: there are errors.
const BROKEN: u8 = 4;

/// The exit status, or what went wrong.
type Outcome = Result<ExitCode, String>;

fn main() -> ExitCode {
    let Arguments { data_dir, allocator, verb } = Arguments::parse();
    let registry = Registry::new(data_dir);
    let outcome = match verb {
        Verb::Status(question) => show_status(&registry, &allocator, &question),
        Verb::Where(question) => show_where(&registry, &question),
        Verb::Events(question) => show_events(&allocator, question),
        Verb::Drain(order) => take_out(&registry, &order),
        Verb::Undrain(order) => bring_back(&registry, &order.pod),
        Verb::Doctor(question) => examine(registry, allocator, question),
        Verb::Completions { shell } => Ok(print(manual::completions(shell).trim_end())),
        Verb::Man { dir } => written(manual::write(&dir).map_err(|e| format!("write manual pages: {e}"))),
    };
    outcome.unwrap_or_else(|sentence| {
        let _ = writeln!(std::io::stderr(), "viproutectl: {sentence}");
        ExitCode::FAILURE
    })
}

fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // nobody reads
    }
}

fn written(result: Result<(), String>) -> Outcome {
    result.map(|()| ExitCode::SUCCESS)
}

fn show_status(registry: &Registry, allocator: &Path, question: &Status) -> Outcome {
    let look = || status::read(registry, allocator).map_err(|e| with_causes(&e));
    let frame = || match question.output {
        Output::Table => look().map(|report| status::table(&report)),
        Output::Json if question.watch => serde_json::to_string(&look()?).map_err(|e| e.to_string()),
        Output::Json => json(&look()?),
    };
    if question.watch { written(watch::watch(&std::io::stdout(), frame)) } else { Ok(print(&frame()?)) }
}

fn show_where(registry: &Registry, question: &Where) -> Outcome {
    let transport = if question.udp { Transport::Udp } else { Transport::Tcp };
    let flow = Flow { client: question.client, vip: question.vip, transport };
    let place = locate::find(registry, flow).map_err(|e| with_causes(&e))?;
    Ok(match question.output {
        Form::Text => print(&place.to_string()),
        Form::Json => print(&json(&place)?),
    })
}

/// As they come, so not as one text.
fn show_events(allocator: &Path, question: Events) -> Outcome {
    let Events { vip, follow, output } = question;
    let question = events::Question { vip, follow, json: matches!(output, Form::Json) };
    written(events::print(allocator, &question, &mut std::io::stdout().lock()).map_err(|e| with_causes(&e)))
}

fn take_out(registry: &Registry, order: &Drain) -> Outcome {
    let replica = drain::set(registry, &order.pod, true).map_err(|e| with_causes(&e))?;
    let printed = print(&format!("{} gets no new connection to {}", replica.name, replica.vips()));
    if !order.wait {
        return Ok(printed);
    }
    match replica.wait(registry, order.timeout).map_err(|e| with_causes(&e))? {
        0 => Ok(print(&format!("{} has no connection left", replica.name))),
        left => {
            let time = order.timeout.as_ref().map_or(0, Duration::as_secs);
            let sentence = format!("viproutectl: {left} connections of {} are left after {time} s", replica.name);
            let _ = writeln!(std::io::stderr(), "{sentence}");
            Ok(ExitCode::from(LEFT))
        }
    }
}

fn bring_back(registry: &Registry, pod: &str) -> Outcome {
    let replica = drain::set(registry, pod, false).map_err(|e| with_causes(&e))?;
    let when = if replica.waits { ", once its check finds that it can answer" } else { "" };
    Ok(print(&format!("{} gets new connections to {} again{when}", replica.name, replica.vips())))
}

fn examine(registry: Registry, allocator: std::path::PathBuf, question: Doctor) -> Outcome {
    let Doctor { conf_dir, bin_dir, config, output } = question;
    let places = Places { registry, allocator, conf_dir, bin_dirs: bin_dir, config };
    let report = doctor::examine(&places).map_err(|e| with_causes(&e))?;
    let printed = match output {
        Form::Text => print(&report.to_string()),
        Form::Json => print(&json(&report)?),
    };
    Ok(match report.worst() {
        Some(Severity::Error) => ExitCode::from(BROKEN),
        Some(Severity::Warning) => ExitCode::from(LEFT),
        Some(Severity::Hint) | None => printed,
    })
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(value).map_err(|e| e.to_string())
}
