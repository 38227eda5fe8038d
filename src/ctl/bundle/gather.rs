//! Reads files and runs commands, each for a limited time and to a limited length, all at once: whatever hangs delays nothing else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::ctl::child::run;
use crate::ctl::probe;

use super::secrets::is_secret;

/// So long all may take, files on a disk that doesn't answer included.
const ALL: Duration = Duration::from_secs(13);
/// The longest file or answer taken, bytes.
const LONGEST: usize = 8 << 20;
/// The most files taken of one directory.
const MOST: usize = 5000;

/// Something to take along.
pub struct Item {
    /// The file it becomes, or the directory of such.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
}

/// Where something comes from.
pub enum Source {
    /// What a program says; the exit statuses that are no failure, beside 0; what it is told on stdin.
    Command { program: PathBuf, arguments: Vec<String>, statuses: &'static [i32], stdin: String },
    /// A file's content.
    File(PathBuf),
    /// All files below a directory.
    Tree(PathBuf),
    /// A page of viprouted's metrics' socket.
    Page { socket: PathBuf, path: &'static str },
}

impl Item {
    pub fn new(name: impl Into<String>, source: Source) -> Self {
        Self { name: name.into(), source }
    }
}

/// What could be had.
#[derive(Default)]
pub struct Found {
    /// By name.
    pub files: Vec<(String, String)>,
    /// What could not, and why.
    pub missing: Vec<(String, String)>,
}

impl Found {
    fn text(&mut self, name: &str, bytes: Vec<u8>) {
        let mut bytes = bytes;
        if bytes.len() > LONGEST {
            bytes.truncate(LONGEST);
            self.miss(name, format!("only its first {LONGEST} bytes"));
        }
        self.files.push((name.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
    }

    fn miss(&mut self, name: &str, why: impl Into<String>) {
        self.missing.push((name.to_owned(), why.into()));
    }
}

/// Gets all of them.
pub fn all(items: Vec<Item>) -> Found {
    let names: Vec<String> = items.iter().map(|item| item.name.clone()).collect();
    let (sender, receiver) = mpsc::channel();
    for (place, item) in items.into_iter().enumerate() {
        let sender = sender.clone();
        // One that hangs in the kernel is left behind: it ends with the process.
        thread::spawn(move || sender.send((place, get(&item))));
    }
    drop(sender);
    let end = Instant::now() + ALL;
    let mut found: Vec<Option<Found>> = names.iter().map(|_| None).collect();
    // Until all have answered, or the time is over.
    while let Ok((place, one)) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        found[place] = Some(one);
    }
    let mut all = Found::default();
    for (name, one) in names.iter().zip(found) {
        match one {
            Some(Found { files, missing }) => {
                all.files.extend(files);
                all.missing.extend(missing);
            }
            None => all.miss(name, format!("no answer within {} s", ALL.as_secs())),
        }
    }
    all
}

fn get(item: &Item) -> Found {
    let mut found = Found::default();
    let name = &item.name;
    match &item.source {
        Source::Command { program, arguments, statuses, stdin } => {
            let mut command = Command::new(program);
            command.args(arguments);
            match run(command, stdin, LONGEST) {
                Ok(ended) => {
                    let fine = ended.status.is_some_and(|status| status == 0 || statuses.contains(&status));
                    if !fine {
                        found.miss(name, ended.why());
                    }
                    found.text(name, [ended.output, ended.errors].concat());
                }
                Err(error) => found.miss(name, format!("{} can't be run: {error}", program.display())),
            }
        }
        Source::File(path) => match read(path) {
            Ok(bytes) => found.text(name, bytes),
            Err(error) => found.miss(name, format!("{} can't be read: {error}", path.display())),
        },
        Source::Tree(dir) => tree(&mut found, name, dir),
        Source::Page { socket, path } => match probe::page(socket, path, LONGEST as u64 + 1) {
            Ok(answer) => found.text(name, answer.text.into_bytes()),
            Err(error) => found.miss(name, crate::with_causes(&error)),
        },
    }
    found
}

/// Regular files alone: a FIFO or a device would be waited for.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Links that lead elsewhere are followed to files (as runtimes do), and to no directory.
fn tree(found: &mut Found, name: &str, dir: &Path) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return found.miss(name, format!("{} can't be read: {error}", dir.display())),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = format!("{name}/{file}");
        if found.files.len() >= MOST {
            return found.miss(&name, format!("only {MOST} files are taken of a directory"));
        }
        if path.is_dir() {
            if !path.is_symlink() {
                tree(found, &name, &path);
            }
        } else if is_secret(file.split('.').next().unwrap_or_default()) {
            found.miss(&name, "left out: its name says that it is a secret");
        } else {
            match read(&path) {
                Ok(bytes) => found.text(&name, bytes),
                Err(error) => found.miss(&name, format!("{} can't be read: {error}", path.display())),
            }
        }
    }
}
