//! The sidecar: hands out addresses for VIPs and keeps them.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use viproute::agent::log;
use viproute::allocator::config::{Config, DEFAULT_PATH};
use viproute::allocator::run;
use viproute::with_causes;

/// Hands out addresses for VIPs, by DHCP or from a pool, and keeps them.
#[derive(Debug, Parser)]
#[command(name = "viprouted", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            // What the log is to look like isn't known.
            let _ = writeln!(std::io::stderr(), "viprouted: {}", with_causes(&error));
            return ExitCode::FAILURE;
        }
    };
    log::init(config.log);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("viprouted: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}
