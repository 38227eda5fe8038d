//! A container image made on the spot: nothing is fetched.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::command::{Run, tool};
use super::tempdir::TempDir;

/// Its name.
pub const IMAGE: &str = "viproute.test/pause:1";

/// What an image is to have besides busybox.
pub struct Content<'a> {
    pub name: &'a str,
    pub entrypoint: &'a [&'a str],
    /// Static programs of this machine, which go to `/bin`.
    pub programs: &'a [String],
}

/// Writes an archive of an image that does nothing for a long time.
pub fn write(archive: &Path) {
    of(archive, &Content { name: IMAGE, entrypoint: &["/bin/busybox", "sleep", "1000000"], programs: &[] });
}

/// The same of one that serves a page on port 80, and ends by SIGTERM as nginx does.
pub fn server(archive: &Path, name: &str) {
    let script =
        "mkdir /www; echo a page of the server >/www/index.html; busybox httpd -f -h /www & trap 'exit 0' TERM; wait";
    of(archive, &Content { name, entrypoint: &["/bin/busybox", "sh", "-c", script], programs: &[] });
}

/// As `docker save` does it, in one layer.
pub fn of(archive: &Path, content: &Content) {
    let dir = TempDir::new();
    let bin = dir.path().join("layer/bin");
    fs::create_dir_all(&bin).expect("a directory for the layer");
    fs::copy(tool("busybox"), bin.join("busybox")).expect("copy busybox");
    for program in content.programs {
        let name = Path::new(program).file_name().expect("a program's name");
        fs::copy(program, bin.join(name)).unwrap_or_else(|error| panic!("copy {program}: {error}"));
    }
    pack(&dir, archive, content.name, content.entrypoint);
}

/// The same of what lies below `layer` in a directory.
pub fn pack(dir: &TempDir, archive: &Path, name: &str, entrypoint: &[&str]) {
    tar(&dir.path().join("layer"), &dir.path().join("layer.tar"), &["."]);
    let sum = Command::new(tool("sha256sum")).arg(dir.path().join("layer.tar")).finish("").ok();
    let digest = sum.split(' ').next().expect("a digest");
    let config = json!({
        "architecture": match std::env::consts::ARCH { "aarch64" => "arm64", _ => "amd64" },
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/usr/bin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(dir.file("config.json"), config.to_string()).expect("write config.json");
    fs::write(dir.file("manifest.json"), manifest.to_string()).expect("write manifest.json");
    tar(dir.path(), archive, &["manifest.json", "config.json", "layer.tar"]);
}

fn tar(from: &Path, archive: &Path, files: &[&str]) {
    Command::new(tool("tar")).arg("-C").arg(from).arg("-cf").arg(archive).args(files).finish("").ok();
}
