//! The CNI plugin. Reads the call, carries it out, prints the answer: stdout is the protocol, the exit status is 0 or 1.

use std::io::{Read, Write};
use std::process::ExitCode;

use viproute::plugin::{self, Answer};

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let answer = match std::io::stdin().lock().read_to_end(&mut stdin) {
        Ok(_) => plugin::run(|name| std::env::var_os(name), &stdin),
        Err(error) => plugin::stdin_failed(error),
    };
    let Answer { stdout, ok } = answer;
    // One write of the whole: never half a result. With nobody to read it there is nobody to tell.
    let written = std::io::stdout().lock().write_all(stdout.as_bytes()).is_ok();
    if ok && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
