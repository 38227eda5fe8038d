//! Findings about the plugin's file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::VERSION;
use crate::ctl::child;

use super::scene::{Scene, in_dirs};
use super::{Cure, Finding, command, quoted};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (runtime, dirs) in scene.lookups() {
        match in_dirs(&dirs) {
            None => findings.push(missing(scene, runtime, &dirs)),
            // Links in one runtime's directory may lead to another's.
            Some(path) if seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) => {
                findings.extend(version(scene, &path));
            }
            Some(_) => {}
        }
    }
    findings
}

fn missing(scene: &Scene<'_>, runtime: &str, dirs: &[PathBuf]) -> Finding {
    let shown: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let what = format!("there is no plugin viproute in {}, where {runtime} looks for it", shown.join(" or "));
    let why = "The runtime can't start pods of a network that has viproute, nor remove them.";
    Finding::error(what, why, link(scene.plugin(), dirs).unwrap_or_else(|| scene.installed.again()))
}

/// One that is elsewhere will do.
fn link(plugin: Option<PathBuf>, dirs: &[PathBuf]) -> Option<Cure> {
    let (plugin, dir) = (plugin?, dirs.iter().find(|dir| dir.is_dir()).or(dirs.first())?);
    let (plugin, dir) = (quoted(&plugin), quoted(dir));
    Some(command(format!("mkdir -p {dir} && ln -sf {plugin} {dir}/viproute")))
}

/// Of programs of two versions.
pub const TWO_VERSIONS: &str = "What one of them leaves, the other may not know.";

fn version(scene: &Scene<'_>, path: &Path) -> Option<Finding> {
    let what = match version_of(path, "viproute") {
        Ok(version) if version == VERSION => return None,
        Ok(version) if version.is_empty() => {
            format!("{} is of another version than viproutectl's {VERSION}", path.display())
        }
        Ok(version) => format!("{} is of version {version}, viproutectl of {VERSION}", path.display()),
        Err(error) => {
            let why = "The runtime can't run it either: no pod of a network that has it starts.";
            let what = format!("{} can't be run: {error}", path.display());
            return Some(Finding::error(what, why, scene.installed.again()));
        }
    };
    Some(Finding::warning(what, TWO_VERSIONS, scene.installed.again()))
}

/// More than any version is long, bytes.
const LONGEST: usize = 4096;

/// What a program says to `--version`, behind its name. Empty: it doesn't know the question.
pub fn version_of(path: &Path, name: &str) -> io::Result<String> {
    let mut ask = Command::new(path);
    ask.arg("--version").env_clear();
    let asked = child::run(ask, "", LONGEST)?;
    if asked.timed_out {
        return Err(io::Error::new(io::ErrorKind::TimedOut, asked.why()));
    }
    let answer = String::from_utf8_lossy(&asked.output);
    let version = answer.trim().strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
    Ok(version.unwrap_or_default().to_owned())
}
