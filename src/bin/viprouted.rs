//! The sidecar: hands out addresses for VIPs and keeps them.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
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
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_target(false).init();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "viprouted: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    Ok(run(&Config::load(&arguments.config)?)?)
}
