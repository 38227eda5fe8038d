//! A release's archive, where there is neither network nor compiler.

use std::time::{Duration, Instant};

use super::unpack;
use crate::harness::{Debian, Lan, Node, scaled};

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn it_comes_works_and_goes_within_ten_seconds() {
    const LIMIT: Duration = Duration::from_secs(10);
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let debian = Debian::boot(&node);
    let here = unpack(&debian);
    debian.sh(&format!("rm -r {here}"));
    let before = debian.tree();

    let begin = Instant::now();
    debian.sh(&format!(
        "tar -xzf viproute.tar.gz && cd {here} && sha256sum --check --quiet --strict SHA256SUMS && ./install.sh install"
    ));
    let installed = begin.elapsed();
    let status = debian.sh("systemctl is-active viprouted && viproutectl status");
    assert!(status.starts_with("active\n"), "{status}");
    debian.sh(&format!("cd {here} && ./install.sh uninstall"));
    let taken = begin.elapsed();
    eprintln!("unpacked and installed in {installed:?}; with `status` and `uninstall` in {taken:?}");
    assert!(taken < scaled(LIMIT), "{taken:?}");

    let after = debian.tree();
    let left: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    // "Leases stay in /var/lib/viproute, the registry in /var/lib/cni/viproute", it says.
    let stays = |line: &str| line.starts_with("/var/lib/viproute") || line.starts_with("/var/lib/cni");
    assert!(left.iter().all(|line| stays(line)), "{left:#?}");
    assert!(gone.is_empty(), "{gone:#?}");
}
