//! SIGKILL for a program at a moment of its life.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::command::Run;

/// Runs `command` and kills it `delay` after its start. True: it was still at work then.
pub fn killed_after(command: &mut Command, stdin: &str, delay: Duration) -> bool {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).dies_with_us();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
    // What a runtime writes fits into the pipe; nothing waits here.
    let _ = child.stdin.take().expect("stdin is a pipe").write_all(stdin.as_bytes());
    thread::sleep(delay);
    let _ = child.kill();
    child.wait().expect("wait for a killed program").code().is_none()
}
