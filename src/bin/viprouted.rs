//! The sidecar: hands out addresses for VIPs and keeps them.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use viproute::agent::log;
use viproute::allocator::arguments::Arguments;
use viproute::allocator::config::Config;
use viproute::allocator::run;
use viproute::with_causes;

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
