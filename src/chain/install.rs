//! The plugin where this machine's runtimes look for it.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Error, Places, io, runtimes};

/// The plugin's file.
const NAME: &str = "viproute";
/// Everybody may read it: what it does is no secret, and a runtime need not be root's.
const MODE: u32 = 0o755;

/// Which program is to be the plugin, and where.
#[derive(Debug)]
pub struct Plugin {
    /// The program; without it one that is in a runtime's directory already will do.
    pub program: PathBuf,
    /// The directory it is copied to, as the machine names it.
    pub bin_dir: PathBuf,
}

/// What is to be done for it.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It is copied to there.
    Copy(PathBuf),
    /// A link to the plugin is made in this directory, where a runtime looks for it.
    Link(PathBuf),
}

/// A line for install.sh, with the machine's own names.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy(path) => write!(f, "copy {}", path.display()),
            Self::Link(dir) => write!(f, "link {}", dir.display()),
        }
    }
}

impl Places {
    /// What is missing; nothing where it was done already.
    pub fn missing(&self, plugin: &Plugin) -> Result<Vec<Step>, Error> {
        let installed = self.installed(plugin)?;
        let is_copied = !plugin.program.is_file() || is_same(&plugin.program, &self.below(&installed));
        let copy = (!is_copied).then(|| Step::Copy(installed.clone()));
        let home = installed.parent().unwrap_or(&installed);
        let lacking = |dir: &PathBuf| {
            let is_home = dir == home || same_dir(&self.below(home), &self.below(dir));
            !is_home && fs::read_link(self.below(dir).join(NAME)).ok().as_ref() != Some(&installed)
        };
        let links = runtimes::plugin_dirs(&self.root).into_iter().filter(lacking).map(Step::Link);
        Ok(copy.into_iter().chain(links).collect())
    }

    /// Does what is missing; what was done, a sentence each. A program that can't be run where it is to be does not take the place of
    /// one that can.
    pub fn install(&self, plugin: &Plugin) -> Result<Vec<String>, Error> {
        let installed = self.installed(plugin)?;
        let (steps, mut said) = (self.missing(plugin)?, Vec::new());
        if !steps.iter().any(|step| matches!(step, Step::Copy(_))) {
            try_out(&self.below(&installed))?;
        }
        for step in steps {
            match step {
                Step::Copy(path) => {
                    copy(&plugin.program, &self.below(&path))?;
                    said.push(format!("Installed: {}", self.below(&path).display()));
                }
                Step::Link(dir) => {
                    let dir = self.below(&dir);
                    link(&installed, &dir)?;
                    said.push(format!("Linked: {}", dir.join(NAME).display()));
                }
            }
        }
        Ok(said)
    }

    /// Takes the plugin away, and the links to it; what was done, a sentence each.
    pub fn remove_plugin(&self, bin_dir: &Path) -> Result<Vec<String>, Error> {
        let installed = bin_dir.join(NAME);
        let dirs = runtimes::plugin_dirs(&self.root).into_iter().map(|dir| self.below(&dir).join(NAME));
        let links = dirs.filter(|path| fs::read_link(path).ok().as_ref() == Some(&installed));
        let mut said = Vec::new();
        for path in links.chain([self.below(&installed)]) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => {
                    io("remove", &path, removed)?;
                    said.push(format!("Removed: {}", path.display()));
                }
            }
        }
        Ok(said)
    }

    /// Where the plugin is, or will be, as the machine names it.
    fn installed(&self, plugin: &Plugin) -> Result<PathBuf, Error> {
        let own = plugin.bin_dir.join(NAME);
        if plugin.program.is_file() {
            return Ok(own);
        }
        let dirs = runtimes::plugin_dirs(&self.root).into_iter().map(|dir| dir.join(NAME));
        let is_program = |path: &PathBuf| fs::symlink_metadata(self.below(path)).is_ok_and(|found| found.is_file());
        std::iter::once(own).chain(dirs).find(is_program).ok_or_else(|| Error::NoPlugin(plugin.program.clone()))
    }
}

fn is_same(program: &Path, installed: &Path) -> bool {
    let mode = |path| fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|found| found.mode() & 0o7777);
    mode(installed) == Some(MODE) && fs::read(program).ok() == fs::read(installed).ok()
}

fn same_dir(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

/// A runtime may call the one before at this moment: renamed into place.
fn copy(program: &Path, to: &Path) -> Result<(), Error> {
    let dir = to.parent().unwrap_or(to);
    io("make", dir, fs::create_dir_all(dir))?;
    let new = to.with_file_name("viproute.new");
    let _ = fs::remove_file(&new);
    let copied = (|| {
        let mut file = File::options().write(true).create_new(true).mode(MODE).open(&new)?;
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        std::io::copy(&mut File::open(program)?, &mut file)?;
        file.sync_all()
    })();
    let done =
        io("write", &new, copied).and_then(|()| try_out(&new)).and_then(|()| io("write", to, fs::rename(&new, to)));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

fn link(installed: &Path, dir: &Path) -> Result<(), Error> {
    io("make", dir, fs::create_dir_all(dir))?;
    let new = dir.join("viproute.new");
    let _ = fs::remove_file(&new);
    io("write", &new, std::os::unix::fs::symlink(installed, &new))?;
    let path = dir.join(NAME);
    io("write", &path, fs::rename(&new, &path))
}

/// Calls it as a runtime does: for its versions.
fn try_out(program: &Path) -> Result<(), Error> {
    let unusable = |why: String| Error::Unusable { path: program.to_owned(), why };
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let answer = command.spawn().and_then(|mut child| {
        // What ends before it has read says so by its status.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(br#"{"cniVersion":"1.0.0"}"#));
        child.wait_with_output()
    });
    let answer = answer.map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let versions =
        serde_json::from_str::<Value>(&text).ok().and_then(|answer| answer.get("supportedVersions").cloned());
    if versions.is_some_and(|versions| versions.is_array()) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    Err(unusable(format!(
        "{}, {:?}",
        answer.status,
        text.trim().chars().chain(said.trim().chars()).take(200).collect::<String>()
    )))
}
