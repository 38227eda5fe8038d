//! A directory that goes when the test does.

use std::fs;
use std::path::{Path, PathBuf};

pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let template = std::env::temp_dir().join("viproute-test-XXXXXX");
        Self(nix::unistd::mkdtemp(&template).expect("mkdtemp"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of `name` inside, as text: most users of it are command lines and configuration files.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a temporary directory with a UTF-8 name").to_string()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
