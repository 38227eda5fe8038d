//! packaging/image.sh: an image that podman and containerd take, with what viproute needs and nothing else.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::{built, sources};
use crate::harness::{Containerd, Lan, Node, Run, TempDir, tool};

/// Makes the image; its path.
fn image(sources: &TempDir, umask: &str) -> PathBuf {
    let script = format!("umask {umask}; exec packaging/image.sh {}", std::env::consts::ARCH);
    let mut command = Command::new(tool("sh"));
    command.current_dir(sources.path()).args(["-c", &script]).env("BINARIES", built("viproute").parent().unwrap());
    sources.path().join(command.finish("").ok().trim())
}

#[test]
fn an_image_is_the_same_wherever_it_is_made_and_small() {
    // Of programs that aren't optimized as a whole (install.sh): a release's are smaller.
    const LARGEST: u64 = 18 << 20;
    let places = [sources(), sources()];
    let made = [image(&places[0], "022"), image(&places[1], "077")];
    assert!(fs::read(&made[0]).unwrap() == fs::read(&made[1]).unwrap(), "two images of one source differ");
    let size = fs::metadata(&made[0]).unwrap().len();
    assert!(size <= LARGEST, "{size} bytes");
}

/// As a `DaemonSet`'s init container calls it, with the node's files below `/host`; nothing but the image's is in its root.
const INIT: &str = r#"
root=$(podman image mount localhost/viproute:VERSION)
[ ! -e "$root/bin" ] && [ -z "$(find "$root" -name '*sh' -type f)" ]
mount -t tmpfs tmpfs /mnt
cp -r "$root" /mnt/image
mkdir /mnt/image/host /mnt/image/proc
mount -t proc proc /mnt/image/proc
mount --rbind / /mnt/image/host
inside() { chroot /mnt/image "$@"; }
inside /usr/sbin/nft --version
inside /usr/local/bin/viprouted --version
inside /usr/local/bin/viproutectl node install --root /host
inside /usr/local/bin/viproutectl node install --root /host
cmp "$root/usr/local/bin/viproute" /opt/cni/bin/viproute
"#;

#[test]
fn podman_and_containerd_take_an_image_whose_init_container_installs_the_plugin() {
    let (made_in, lan) = (sources(), Lan::new());
    let made = image(&made_in, "022");
    let node = Node::without_allocator(&lan, 1);
    let theirs = r#"{"cniVersion":"1.0.0","name":"theirs","plugins":[{"type":"bridge"}]}"#;
    let containerd = Containerd::with_network(&node, theirs);
    let machine = &containerd.machine;
    fs::copy(made, machine.path("/root/viproute.tar")).unwrap();
    let said = Command::new(built("viproutectl")).arg("--version").finish("").ok();
    let version = said.split(' ').nth(1).unwrap();
    let tag = version.replace('+', "-");
    let name = format!("localhost/viproute:{tag}");

    machine.sh("ctr -n k8s.io images import --snapshotter native /root/viproute.tar");
    let listed = machine.sh("ctr -n k8s.io images ls -q");
    assert!(listed.lines().any(|line| line == name), "{listed}");

    machine.write(
        "/etc/containers/storage.conf",
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/podman\"\nrunroot = \"/run/podman\"\n",
    );
    let loaded = machine.sh("podman load --input /root/viproute.tar");
    assert!(loaded.contains(&name), "{loaded}");
    let inspected: Value = serde_json::from_str(&machine.sh(&format!("podman image inspect {name}"))).unwrap();
    assert_eq!(inspected[0]["Config"]["Entrypoint"], json!(["/usr/local/bin/viprouted"]));
    let labels = &inspected[0]["Labels"];
    assert_eq!(labels["org.opencontainers.image.version"], json!(version));
    assert_eq!(labels["org.opencontainers.image.licenses"], json!("Apache-2.0"));

    let said = machine.sh(&INIT.replace("VERSION", &tag));
    assert!(said.contains("nftables v") && said.contains(&format!("viprouted {version}")), "{said}");
    assert!(said.contains("Installed: /host/opt/cni/bin/viproute\n"), "{said}");
    assert!(said.contains("Linked: /host/usr/lib/cni/viproute\n"), "{said}");
    assert!(said.contains("Joined: /host/etc/cni/net.d/10-theirs.conflist"), "{said}");
    assert!(said.ends_with("Nothing was done: /host/etc/cni/net.d/10-theirs.conflist has viproute.\n"), "{said}");
    assert!(machine.read("/etc/cni/net.d/10-theirs.conflist").contains("\"viproute\""));
    assert_eq!(fs::read_link(machine.path("/usr/lib/cni/viproute")).unwrap().to_str(), Some("/opt/cni/bin/viproute"));
    // viprouted finds what the init container has kept, by the machine's own name.
    let kept = fs::read_link(machine.path("/etc/viproute/10-theirs.conflist.network")).unwrap();
    assert_eq!(kept.to_str(), Some("/etc/cni/net.d/10-theirs.conflist"));
}
