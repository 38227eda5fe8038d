//! The program `nft`: reads the table and carries transactions out.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::model::Family;

use super::rules::{protocol, understand};
use super::{Error, Have, LIMIT, TABLE};

/// What is there.
pub(super) fn read(family: Family) -> Result<Have, Error> {
    let output = run(&["-j", "list", "table", protocol(family), TABLE], "")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return if why.contains("No such file or directory") { Ok(Have::Nothing) } else { Err(refused(&why)) };
    }
    let listed: Value = serde_json::from_slice(&output.stdout).map_err(Error::NotJson)?;
    Ok(understand(family, &listed).unwrap_or(Have::Wrong))
}

/// Has one transaction carried out.
pub(super) fn write(transaction: &str) -> Result<(), Error> {
    let output = run(&["-f", "-"], transaction)?;
    if output.status.success() { Ok(()) } else { Err(refused(&String::from_utf8_lossy(&output.stderr))) }
}

/// The first line says it; the others repeat what was asked for.
fn refused(stderr: &str) -> Error {
    Error::Refused(stderr.lines().next().unwrap_or("no reason given").to_owned())
}

fn run(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let mut nft = Command::new("nft");
    nft.args(arguments).env("LC_ALL", "C");
    nft.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoProgram,
        _ => Error::Run(error),
    })?;
    let pid = Pid::from_raw(child.id().try_into().unwrap_or_default());
    let (done, ended) = mpsc::channel::<()>();
    let (written, output, hung) = thread::scope(|scope| {
        let watchdog = scope.spawn(move || {
            let hung = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if hung {
                // Not waited for yet, so its id is no other process's.
                let _ = kill(pid, Signal::SIGKILL);
            }
            hung
        });
        // It reads all of its input before it says anything. One that ends at once says why.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        drop(done);
        (written, output, watchdog.join().unwrap_or_default())
    });
    let output = output.map_err(Error::Run)?;
    match written {
        _ if hung && !output.status.success() => Err(Error::Hung),
        Err(error) if output.status.success() => Err(Error::Run(error)),
        _ => Ok(output),
    }
}
