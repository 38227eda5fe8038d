//! A pod's server and its load client, for the demo and for a look by hand.
//!
//! ```text
//! peer serve   --name p1 --port 8080 [--address 0.0.0.0] [--udp]
//! peer connect --to 10.118.0.7:8080 --count 3000 [--rate 1000] [--concurrency 8]
//! ```
//! `serve` answers each line it reads with `<name> <client ip:port>`. `connect` opens connections, asks each once,
//! and prints who answered how often.

// The tests' own; not every item is used here.
#[path = "../../tests/bed/load.rs"]
#[allow(dead_code)]
mod load;
#[path = "../../tests/bed/serve.rs"]
#[allow(dead_code)]
mod serve;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

const USAGE: &str = "usage: peer serve --name NAME --port PORT [--address ADDRESS] [--udp]
       peer connect --to ADDRESS:PORT --count N [--rate PER_SECOND] [--concurrency THREADS]";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let result = options(arguments).and_then(|options| match command.as_str() {
        "serve" => serve(&options),
        "connect" => connect(&options),
        _ => Err(USAGE.to_string()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// `--key value` pairs; `--udp` alone stands for itself.
fn options(mut arguments: impl Iterator<Item = String>) -> Result<HashMap<String, String>, String> {
    let mut options = HashMap::new();
    while let Some(argument) = arguments.next() {
        let key = argument.strip_prefix("--").ok_or(USAGE)?.to_string();
        let value = if key == "udp" { String::new() } else { arguments.next().ok_or(USAGE)? };
        options.insert(key, value);
    }
    Ok(options)
}

fn number<T: std::str::FromStr>(options: &HashMap<String, String>, key: &str) -> Result<Option<T>, String> {
    options
        .get(key)
        .map(|value| value.parse().map_err(|_| format!("--{key} {value}: not understood\n{USAGE}")))
        .transpose()
}

fn serve(options: &HashMap<String, String>) -> Result<(), String> {
    let name = options.get("name").ok_or(USAGE)?;
    let address: IpAddr = number(options, "address")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let listen = SocketAddr::new(address, number(options, "port")?.ok_or(USAGE)?);
    let log = |client: SocketAddr| say(&format!("client {client}"));
    let server = serve::Server::start(name, listen, options.contains_key("udp"), log)
        .map_err(|error| format!("can't listen on {listen}: {error}"))?;
    say("ready");
    server.wait();
    Ok(())
}

fn connect(options: &HashMap<String, String>) -> Result<(), String> {
    let load = load::Load {
        to: number(options, "to")?.ok_or(USAGE)?,
        count: number(options, "count")?.ok_or(USAGE)?,
        rate: number(options, "rate")?,
        concurrency: number(options, "concurrency")?.unwrap_or(1),
    };
    let tally = load.run();
    say(&tally.to_json());
    if tally.failed == 0 {
        Ok(())
    } else {
        Err(format!("{} of {} connections failed: {}", tally.failed, load.count, tally.error))
    }
}

/// One line on stdout, at once: whoever started this program waits for it. A reader gone away is no failure.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
