//! The tool for people: looks at VIPs on this node.

use std::io::Write;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use viproute::ctl::events;
use viproute::ctl::locate::{self, Flow};
use viproute::ctl::status;
use viproute::registry::{Registry, Transport, VipKey};
use viproute::with_causes;

/// Looks at the VIPs of this node.
#[derive(Debug, Parser)]
#[command(name = "viproutectl", version)]
struct Arguments {
    /// The registry ("dataDir" of the conflist).
    #[arg(long, global = true, default_value = "/var/lib/cni/viproute")]
    data_dir: PathBuf,
    /// viprouted's socket ("allocator" of the conflist).
    #[arg(long, global = true, default_value = "/run/viproute/viprouted.sock")]
    allocator: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Each VIP: its address, lease and replicas, their share of flows and packets.
    Status {
        /// How to print it.
        #[arg(long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Which replica has a flow, or would get it.
    Where(Where),
    /// What has happened on this node lately: leases, replicas, calls, repairs.
    Events(Events),
}

#[derive(Debug, Args)]
struct Events {
    /// Only those about this VIP, `<namespace>/<name>`.
    #[arg(long)]
    vip: Option<VipKey>,
    /// Go on with what happens.
    #[arg(long)]
    follow: bool,
    /// How to print it; JSON is an object a line.
    #[arg(long, value_enum, default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Args)]
struct Where {
    /// Who asks, as ADDRESS:PORT.
    #[arg(value_parser = socket)]
    client: SocketAddrV4,
    /// The VIP and its port, as ADDRESS:PORT.
    #[arg(value_parser = socket)]
    vip: SocketAddrV4,
    /// A flow of UDP.
    #[arg(long)]
    udp: bool,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Text,
    Json,
}

fn socket(text: &str) -> Result<SocketAddrV4, &'static str> {
    text.parse().ok().filter(|socket: &SocketAddrV4| socket.port() != 0).ok_or("expected an IPv4 address and a port")
}

fn main() -> ExitCode {
    let Arguments { data_dir, allocator, verb } = Arguments::parse();
    let registry = Registry::new(data_dir);
    let text = match verb {
        Verb::Status { output } => show_status(&registry, &allocator, output),
        Verb::Where(question) => show_where(&registry, &question),
        Verb::Events(question) => return show_events(&allocator, question),
    };
    let text = match text {
        Ok(text) => text,
        Err(sentence) => {
            let _ = writeln!(std::io::stderr(), "viproutectl: {sentence}");
            return ExitCode::FAILURE;
        }
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // nobody reads
    }
}

/// What is to be printed, or what went wrong.
type Text = Result<String, String>;

fn show_status(registry: &Registry, allocator: &Path, output: Output) -> Text {
    let report = status::read(registry, allocator).map_err(|e| with_causes(&e))?;
    match output {
        Output::Table => Ok(status::table(&report)),
        Output::Json => json(&report),
    }
}

fn show_where(registry: &Registry, question: &Where) -> Text {
    let transport = if question.udp { Transport::Udp } else { Transport::Tcp };
    let flow = Flow { client: question.client, vip: question.vip, transport };
    let place = locate::find(registry, flow).map_err(|e| with_causes(&e))?;
    match question.output {
        Form::Text => Ok(place.to_string()),
        Form::Json => json(&place),
    }
}

/// As they come, so not as one text.
fn show_events(allocator: &Path, question: Events) -> ExitCode {
    let Events { vip, follow, output } = question;
    let question = events::Question { vip, follow, json: matches!(output, Form::Json) };
    match events::print(allocator, &question, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "viproutectl: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn json(value: &impl Serialize) -> Text {
    serde_json::to_string_pretty(value).map_err(|e| e.to_string())
}
