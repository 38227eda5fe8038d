//! The daemon: leases addresses for VIPs, reconciles the kernel's state, checks replicas.

mod resolver;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use viproute::node::arguments::Arguments;
use viproute::node::config::Config;
use viproute::node::{log, run};
use viproute::with_causes;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config.of_node(arguments.node.as_deref()),
        Err(error) => {
            // The log's form is not known yet.
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
