//! The tool for people: looks at VIPs on this node.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use viproute::ctl::status;
use viproute::registry::Registry;
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
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Verb::Status { output } = arguments.verb;
    let text = match status::read(&Registry::new(arguments.data_dir), &arguments.allocator) {
        Ok(report) => match output {
            Output::Table => status::table(&report),
            Output::Json => serde_json::to_string_pretty(&report).unwrap_or_default(),
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "viproutectl: {}", with_causes(&error));
            return ExitCode::FAILURE;
        }
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // nobody reads
    }
}
