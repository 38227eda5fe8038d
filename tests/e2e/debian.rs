//! On a bare Debian 12 that systemd has booted: what a release's archive and package do there, in the unit's own sandbox, and how long it takes from
//! nothing to a first answer. tests/debian.sh makes it; `./install.sh test --release` runs these.

mod archive;
mod package;
mod quickstart;
mod unit;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use crate::harness::{Debian, PATIENCE, Pod, Run, TempDir, image, until};
use crate::packaging::{built, sources};

/// What one of the scripts of packaging/ makes of the programs as they are released.
fn packed(sources: &TempDir, script: &str) -> PathBuf {
    let mut command = Command::new(sources.path().join(format!("packaging/{script}")));
    command.arg(std::env::consts::ARCH).env("BINARIES", built("viproute").parent().unwrap());
    sources.path().join(command.finish("").ok().trim())
}

/// The release's archive, unpacked as people unpack it; where.
fn unpack(debian: &Debian) -> String {
    let made_in = sources();
    debian.copy(&packed(&made_in, "tarball.sh"), "/root/viproute.tar.gz");
    debian.sh("tar -xzf viproute.tar.gz && cd viproute-* && pwd").trim().to_owned()
}

/// In place of a registry's.
const SERVER: &str = "docker.io/library/nginx:alpine";

fn server(debian: &Debian) {
    image::server(&debian.path("/root/nginx.tar"), SERVER);
}

const POOL: &str = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 118, 0, 1);

/// The network that viproute's own example is, with a VIP for every container.
const NETWORK: &str =
    "mkdir -p /etc/cni/net.d && jq '.plugins[-1].vips = [\"web\"]' \"$1\" >/etc/cni/net.d/10-viproute.conflist";

/// containerd with this many containers of a network that ends in viproute; the example of that network is at `example`.
fn containers(debian: &Debian, count: usize, example: &str) -> Vec<Pod> {
    debian.sh(&format!("set -- {example}; {NETWORK}"));
    debian.sh("for plugin in ptp host-local portmap loopback; do ln -sf /usr/lib/cni/$plugin /opt/cni/bin/; done");
    server(debian);
    debian.sh("ctr image import --snapshotter native nginx.tar");
    (1..=count).map(|number| container(debian, &format!("web-{number}"))).collect()
}

/// Until it has joined. For a container in the background ctr never calls DEL, and no unit's end ends it.
fn container(debian: &Debian, name: &str) -> Pod {
    let run = format!(
        "systemd-run --quiet --unit=run-{name} ctr run --cpu-shares 0 --snapshotter native --rm --cni {SERVER} {name}"
    );
    debian.sh(&run);
    let attached = || debian.sh("viproutectl status").contains(&format!("default-{name}@eth0")).then_some(());
    until(&format!("{name} has joined"), PATIENCE, attached);
    let listed = debian.sh("ctr task ls");
    let line = listed.lines().find(|line| line.starts_with(&format!("{name} "))).expect("its task");
    let process = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("its process");
    Pod {
        ns: debian.netns_of(process),
        id: name.into(),
        name: name.into(),
        base: Mutex::default(),
        result: Mutex::default(),
    }
}

/// As ctr's user ends them: each with its DEL.
fn remove(debian: &Debian, pods: &[Pod]) {
    for pod in pods {
        debian.sh(&format!("ctr task kill {0}; while systemctl -q is-active run-{0}; do sleep 0.05; done", pod.name));
    }
}
