//! The Debian package's life under systemd, with live connections.

use std::path::PathBuf;
use std::process::Command;

use super::{POOL, VIP, containers, packed, remove};
use crate::harness::{Crowd, Debian, Flows, Lan, Netns, Node, PATIENCE, Run, Storm, TempDir, VIPROUTE, tool, until};
use crate::packaging::sources;

const LIVE: usize = 300;

/// The same package of a later version, with programs of another build.
fn later(deb: &PathBuf, dir: &TempDir) -> PathBuf {
    let script = r#"
        dpkg-deb -R "$DEB" tree
        sed -i 's/^Version: .*/&.1/' tree/DEBIAN/control
        install -m 755 "$BINARIES/viproute" tree/usr/lib/cni/
        install -m 755 "$BINARIES/viprouted" "$BINARIES/viproutectl" tree/usr/sbin/
        dpkg-deb --root-owner-group -Zgzip -z1 -b tree later.deb"#;
    let mut command = Command::new(tool("sh"));
    command.current_dir(dir.path()).args(["-euc", script]).env("DEB", deb);
    command.env("BINARIES", PathBuf::from(VIPROUTE).parent().unwrap()).finish("").ok();
    dir.path().join("later.deb")
}

/// What goes on all the time.
struct Traffic {
    flows: Flows,
    storm: Storm,
}

impl Traffic {
    fn start(client: &Netns) -> Self {
        Self { flows: Flows::open("the client", client, VIP, LIVE), storm: Storm::start(client, VIP, 200) }
    }

    /// No live connection is broken, and no new one failed.
    fn is_well(&mut self, when: &str) {
        self.flows.ask();
        self.flows.hear();
        assert_eq!(self.flows.complaint(&[]), None, "{when}");
        let live: usize = self.flows.live().values().sum();
        let seen = self.storm.next(100);
        assert_eq!((live, seen.failed), (LIVE, Vec::new()), "{when}");
        eprintln!(
            "{when}: {live} of {LIVE} live connections answered, {} new ones, 0 failed",
            self.storm.seen().answers()
        );
    }
}

fn process(debian: &Debian) -> String {
    debian.sh("systemctl show --value --property=MainPID viprouted").trim().to_owned()
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn it_is_installed_upgraded_downgraded_and_purged_under_live_connections() {
    crate::harness::allow_many_files();
    let (made_in, other, lan) = (sources(), TempDir::new(), Lan::new());
    let deb = packed(&made_in, "deb.sh");
    let node = Node::without_allocator(&lan, 1);
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let debian = Debian::boot(&node);
    debian.copy(&deb, "/root/viproute.deb");
    debian.copy(&later(&deb, &other), "/root/later.deb");
    debian.sh("apt-get install containerd runc containernetworking-plugins nftables iptables jq");
    let before = debian.tree();

    let said = debian.sh("dpkg -i viproute.deb");
    assert!(said.contains("viproutectl node join"), "{said}");
    debian.sh(&format!("cat >/etc/viproute/viprouted.toml <<'E'\n{POOL}E\nsystemctl restart viprouted"));
    let pods = containers(&debian, 4, "/usr/share/doc/viproute/examples/10-viproute.conflist");
    let servers: Vec<_> = pods.iter().map(Crowd::start).collect();
    let mut traffic = Traffic::start(&client);
    traffic.is_well("before");

    for (package, when) in [("later.deb", "upgraded"), ("viproute.deb", "downgraded")] {
        let old = process(&debian);
        debian.sh(&format!("dpkg -i {package} 2>&1"));
        assert_ne!(process(&debian), old, "{when}: viprouted is another process");
        until("viprouted answers", PATIENCE, || {
            debian.cmd("viproutectl").arg("status").finish("").status.success().then_some(())
        });
        traffic.is_well(when);
        let doctor = debian.cmd("viproutectl").arg("doctor").finish("").stdout;
        assert!(!doctor.contains("differ"), "{when}: {doctor}");
    }
    let refused = debian.cmd("dpkg").args(["-r", "viproute"]).finish("");
    assert!(!refused.status.success() && refused.stderr.contains("4 pods are attached"), "{refused:?}");
    traffic.is_well("its removal refused");

    drop((traffic, servers));
    remove(&debian, &pods);
    debian.sh("rm /etc/cni/net.d/10-viproute.conflist && dpkg -r viproute && dpkg -P viproute");
    is_as_before(&debian, &before);
}

/// But for what containers and these tests themselves have left.
fn is_as_before(debian: &Debian, before: &[String]) {
    const OTHERS: [&str; 6] =
        ["/etc/cni", "/opt/cni", "/var/lib/containerd", "/var/lib/cni", "/opt/containerd", "/var/lib/private"];
    let after = debian.tree();
    let differ = |line: &&String| !OTHERS.iter().any(|path| line.starts_with(path));
    let left: Vec<_> = after.iter().filter(|line| !before.contains(line)).filter(differ).collect();
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).filter(differ).collect();
    assert!(left.is_empty() && gone.is_empty(), "left: {left:#?}\ngone: {gone:#?}");
    assert!(!debian.path("/opt/cni/bin/viproute").exists() && !debian.path("/var/lib/cni/viproute").exists());
    assert!(!debian.path("/sys/fs/bpf/viproute").exists());
    let tables = debian.sh("nft list tables");
    assert!(!tables.contains("viproute"), "{tables}");
}
