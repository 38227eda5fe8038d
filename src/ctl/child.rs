//! Runs other programs for a limited time and reads what they say to a limited length: one that hangs holds nobody up for longer.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// So long a program may take.
pub const LIMIT: Duration = Duration::from_secs(10);

/// How a command ended.
pub struct Ended {
    /// Its stdout.
    pub output: Vec<u8>,
    /// Its stderr.
    pub errors: Vec<u8>,
    /// Its exit status; none: it was killed.
    pub status: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
}

impl Ended {
    /// Why it is of no use, if it is none.
    pub fn why(&self) -> String {
        match self.status {
            _ if self.timed_out => format!("it did not end within {} s", LIMIT.as_secs()),
            Some(status) => format!("it ended with exit status {status}"),
            None => "a signal ended it".to_owned(),
        }
    }
}

/// Runs a command that is told this, and ends it with all its children when its time is over. Of what it says one byte more than `longest`
/// is kept at most.
pub fn run(mut command: Command, stdin: &str, longest: usize) -> io::Result<Ended> {
    // A group of its own, so that its children can be ended with it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let end = Instant::now() + LIMIT;
    if let Some(mut pipe) = child.stdin.take() {
        // Shorter than a pipe's buffer; one that doesn't read it has no need of it.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let (output, errors) = (
        child.stdout.take().map(|pipe| collect(pipe, longest)),
        child.stderr.take().map(|pipe| collect(pipe, longest)),
    );
    let status = wait(&mut child, end)?;
    let timed_out = status.is_none();
    let all = |pipe: Option<mpsc::Receiver<Vec<u8>>>| {
        // A child of its that got away may keep the pipe open.
        let limit = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
        pipe.and_then(|pipe| pipe.recv_timeout(limit).ok()).unwrap_or_default()
    };
    let (output, errors) = (all(output), all(errors));
    Ok(Ended { output, errors, status: status.and_then(|status| status.code()), timed_out })
}

/// None: it was killed, as its time was over.
fn wait(child: &mut Child, end: Instant) -> io::Result<Option<ExitStatus>> {
    const PAUSE: Duration = Duration::from_millis(20);
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(PAUSE);
    }
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    // Once more, so that it is no zombie; one that hangs in the kernel isn't waited for.
    thread::sleep(PAUSE);
    child.try_wait()?;
    Ok(None)
}

/// Reads to the end, but keeps no more than the longest: a command mustn't wait for its reader.
fn collect(mut pipe: impl Read + Send + 'static, longest: usize) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = (&mut pipe).take(longest as u64 + 1).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
    });
    receiver
}
