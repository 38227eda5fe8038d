//! The CNI plugin. Reads the call, carries it out, prints the answer: stdout is the protocol, the exit status is 0 or 1.
//! A runtime gives no arguments; `viproute --version` is for people, and for `viproutectl doctor`.

use std::io::{Read, Write};
use std::process::ExitCode;

use viproute::cni::{self, Answer};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        let told = writeln!(std::io::stdout().lock(), "viproute {}", viproute::VERSION);
        return if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    cni::stderr::warn();
    let mut stdin = Vec::new();
    let answer = match std::io::stdin().lock().read_to_end(&mut stdin) {
        Ok(_) => cni::run(|name| std::env::var_os(name), &stdin),
        Err(error) => cni::stdin_failed(error),
    };
    let Answer { stdout, ok } = answer;
    // One write of the whole: never half a result.
    let written = std::io::stdout().lock().write_all(stdout.as_bytes()).is_ok();
    if ok && !written && std::env::var_os("CNI_COMMAND").is_some_and(|command| command == "ADD") {
        // The runtime has not received the result: for it the ADD has failed, so it is undone.
        cni::run(|name| if name == "CNI_COMMAND" { Some("DEL".into()) } else { std::env::var_os(name) }, &stdin);
    }
    if ok && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
