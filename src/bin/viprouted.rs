//! viprouted: hands out virtual IPs by DHCP or from a pool, and keeps their leases.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use viproute::allocator::config::{Config, DEFAULT_PATH};

/// Hands out virtual IPs by DHCP or from a pool, and keeps their leases.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// How to log, to standard error.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The error is one sentence.
fn start(arguments: &Arguments) -> Result<(), String> {
    let config = Config::load(&arguments.config).map_err(|error| match error {
        error @ viproute::allocator::config::Error::Unreadable { .. } => viproute::allocator::sentence(&error),
        error => format!("{}: {error}", arguments.config.display()),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("can't start: {error}"))?;
    runtime.block_on(viproute::allocator::run::run(config)).map_err(|error| viproute::allocator::sentence(&error))
}
