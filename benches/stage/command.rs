//! Running programs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Where the base CNI plugins are.
const CNI_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A program of the project, as it was built.
pub fn program(name: &str) -> PathBuf {
    // Beside this program's directory, target/release/examples; BINARIES where they were brought along.
    let built = || std::env::current_exe().ok().and_then(|own| Some(own.parent()?.parent()?.to_owned()));
    std::env::var_os("BINARIES").map(PathBuf::from).or_else(built).unwrap_or_default().join(name)
}

/// A base CNI plugin.
pub fn base_plugin(name: &str) -> Result<PathBuf> {
    let found = CNI_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    found.with_context(|| format!("the plugin {name} is missing (Debian: containernetworking-plugins)"))
}

/// What a program is made to do.
pub trait Run {
    /// Runs it with `input` on stdin; its stdout. Anything but success is an error that tells what it said.
    fn output_of(&mut self, input: &str) -> Result<String>;
}

impl Run for Command {
    fn output_of(&mut self, input: &str) -> Result<String> {
        self.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = self.get_program().to_string_lossy().into_owned();
        let mut child = self.spawn().with_context(|| format!("can't start {name}"))?;
        let stdin = child.stdin.take();
        let output = thread::scope(|scope| {
            // A program that doesn't read its input closes the pipe early; that is its right.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let arguments: Vec<_> = self.get_args().map(|argument| argument.to_string_lossy()).collect();
            bail!("{name} {}: {}: {}{}", arguments.join(" "), output.status, stdout.trim(), said.trim());
        }
        Ok(stdout)
    }
}

/// Waits until `done` gives something.
pub fn until<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = done() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
