//! A machine's files, as seen from here: below the root of its first process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;

pub struct Root {
    /// The machine's first process, as seen from here.
    pub init: String,
}

impl Root {
    /// What the script that makes the machine says first. Empty: it has ended.
    pub fn of(outside: &mut Child) -> Self {
        let mut init = String::new();
        let stdout = outside.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut init).expect("read from the machine");
        Self { init: init.trim().into() }
    }

    /// The path from here of a file in the machine.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init)).join(inside.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("make a directory in the machine");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("read {path} in the machine: {error}"))
    }
}
