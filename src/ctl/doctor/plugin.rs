//! Findings about the plugin's file.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::VERSION;

use super::scene::Scene;
use super::{Finding, command};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let Some(path) = scene.plugin() else {
        let dirs: Vec<_> = scene.places.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        let what = format!("there is no plugin viproute in {}", dirs.join(" or "));
        let why = "The runtime can't start pods of a network that has viproute, nor remove them.";
        return vec![Finding::error(what, why, command("./install.sh install"))];
    };
    let why = "What one of them leaves, the other may not know.";
    let what = match version_of(&path) {
        Ok(version) if version == VERSION => return Vec::new(),
        Ok(version) if version.is_empty() => {
            format!("{} is of another version than viproutectl's {VERSION}", path.display())
        }
        Ok(version) => format!("{} is of version {version}, viproutectl of {VERSION}", path.display()),
        Err(error) => {
            let why = "The runtime can't run it either: no pod of a network that has it starts.";
            let what = format!("{} can't be run: {error}", path.display());
            return vec![Finding::error(what, why, command("./install.sh install"))];
        }
    };
    vec![Finding::warning(what, why, command("./install.sh install"))]
}

/// Empty: it doesn't know the question.
fn version_of(path: &Path) -> std::io::Result<String> {
    let asked = Command::new(path).arg("--version").env_clear().stdin(Stdio::null()).output()?;
    let answer = String::from_utf8_lossy(&asked.stdout);
    Ok(answer.trim().strip_prefix("viproute ").unwrap_or_default().to_owned())
}
