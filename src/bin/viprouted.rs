//! The sidecar: hands out addresses for VIPs and keeps them.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use viproute::allocator::arguments::Arguments;
use viproute::allocator::config::Config;
use viproute::allocator::run;
use viproute::with_causes;

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
