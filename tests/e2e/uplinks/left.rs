//! What a viprouted that was killed has left on uplinks is taken off again.

use serde_json::json;

use super::{Kernel, OFF, POOL, Scene, start};
use crate::harness::{Run, TempDir, VIPROUTE, VIPROUTECTL};
use crate::install::MACHINE;

/// Killed, with its programs on eth0.
fn killed(kernel: Kernel) -> Scene {
    let mut scene = Scene::with(kernel, POOL);
    scene.is_on(&["eth0"]);
    scene.kill();
    assert_eq!(scene.ours("eth0"), ["express_in", "express_seen"], "they outlive it");
    scene
}

#[test]
fn by_the_next_one_that_is_to_have_none() {
    for &kernel in Kernel::all() {
        let mut scene = killed(kernel);
        scene.sidecar = Some(start(&scene.node, kernel, OFF));
        scene.is_off(&json!("configured"));
    }
}

#[test]
fn by_the_next_one_where_the_device_is_no_uplink_any_more() {
    for &kernel in Kernel::all() {
        let mut scene = killed(kernel);
        scene.node.ns.ip_lines(super::TO_A_BRIDGE).expect("a bridge");
        scene.sidecar = Some(start(&scene.node, kernel, POOL));
        scene.is_on(&["br0"]);
    }
}

#[test]
fn by_uninstall() {
    for &kernel in Kernel::all() {
        let (scene, temporary) = (killed(kernel), TempDir::new());
        let script = r#"unset TMPDIR; "$SOURCE/install.sh" install --no-chain && "$SOURCE/install.sh" uninstall"#;
        let mut command = scene.node.ns.cmd("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", MACHINE, script]).env_remove("DESTDIR");
        let programs = std::path::Path::new(VIPROUTE).parent().expect("a directory");
        command.env("TMPDIR", temporary.path()).env("SOURCE", env!("CARGO_MANIFEST_DIR")).env("BINARIES", programs);
        let said = command.env("THEIRS", "").env("SYSTEMD_OFFLINE", "1").finish("").ok();
        assert!(said.contains("Removed: the express path's programs on eth0\n"), "{said}");
        assert_eq!(scene.ours("eth0"), Vec::<String>::new());
        assert_eq!(scene.node.ns.cmd(VIPROUTECTL).arg("unload").finish("").ok(), "", "nothing is left to remove");
    }
}
