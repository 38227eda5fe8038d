//! The quickstarts from nothing: a bare Debian and a release's archive. Their commands as they stand, with the real apt-get and systemctl; only what
//! asks a registry is replaced. apt-get has its packages on the disk: what fetching them takes is the network's.

use std::time::{Duration, Instant};

use super::{server, unpack};
use crate::harness::{Debian, Lan, Node, PATIENCE, Run, blocks, scaled, script, until};

/// An overlay can't lie on another one, there is no registry, and the machine's own cgroups have no controller where the kernel's are of version 1.
const CTR: &str = "#!/bin/sh
export CONTAINERD_SNAPSHOTTER=native
[ \"$1\" != run ] || { shift; exec /usr/bin/ctr run --cpu-shares 0 \"$@\"; }
[ \"$1 $2\" != \"image pull\" ] || exec /usr/bin/ctr image import /root/nginx.tar
exec /usr/bin/ctr \"$@\"
";
const NOMAD: &str = "#!/bin/sh\necho \"nomad was called: $*\"\n";
/// Without limits, for which the machine has no controllers.
const PODMAN: &str = "#!/bin/sh
case $1 in
    run) shift; exec /usr/bin/podman run --cgroups=disabled --pids-limit=-1 \"$@\" ;;
    *) exec /usr/bin/podman \"$@\" ;;
esac
";
/// The page's table, and what this machine needs besides.
const SETTINGS: &str = "mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<'EOF'
[network]
network_backend = \"cni\"
EOF
cat >/etc/containers/storage.conf <<'EOF'
[storage]
driver = \"vfs\"
graphroot = \"/var/lib/podman\"
runroot = \"/run/podman\"
EOF
podman load --quiet --input /root/nginx.tar
";

struct Page {
    name: &'static str,
    /// Programs in place of others, by name.
    replaced: &'static [(&'static str, &'static str)],
    waits: &'static [(&'static str, &'static str)],
    /// Has what the page asks people to write by hand, after its first block.
    written: &'static str,
    /// What says that somebody answered.
    answer: &'static str,
}

impl Page {
    /// From the bare machine to the answer, and on to the page's end.
    fn is_right(&self) {
        const LIMIT: Duration = Duration::from_secs(300);
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let debian = Debian::boot(&node);
        let here = unpack(&debian);
        server(&debian);
        debian.sh(&format!("rm -r {here}"));
        for (name, text) in self.replaced {
            debian.write(&format!("/usr/local/bin/{name}"), text);
            debian.sh(&format!("chmod 755 /usr/local/bin/{name}"));
        }
        let blocks = blocks(self.name);
        let (first, rest) = blocks.split_first().expect("blocks");
        let begin = format!("cd /root\ntar -xzf viproute.tar.gz\ncd {here}\n");
        let text = begin + &script(std::slice::from_ref(first), &[]) + self.written + &script(rest, self.waits);
        debian.write("/root/quickstart.sh", &text);
        let begin = Instant::now();
        debian.sh("systemd-run --quiet --unit=quickstart --property=StandardOutput=file:/root/said --property=StandardError=file:/root/said bash -x /root/quickstart.sh");
        let said = || std::fs::read_to_string(debian.path("/root/said")).unwrap_or_default();
        let ended = || !debian.cmd("systemctl").args(["-q", "is-active", "quickstart"]).finish("").status.success();
        until(&format!("{}: an answer", self.name), LIMIT, || {
            assert!(!ended() || said().contains(self.answer), "{}", said());
            said().contains(self.answer).then_some(())
        });
        let taken = begin.elapsed();
        eprintln!("{}: from a bare Debian to the first answer in {taken:.1?}", self.name);
        assert!(taken < scaled(LIMIT), "{taken:?}");
        until(&format!("{}: the end", self.name), PATIENCE, || ended().then_some(()));
        assert!(said().contains("\n== the end\n"), "{}", said());
    }
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn containerd() {
    let waits = &[
        ("viproutectl status", "[ \"$(viproutectl status | grep -c ' ready ')\" = 2 ]"),
        ("ip route show", "curl --silent --fail http://10.118.0.1/ >/dev/null"),
    ];
    Page { name: "containerd.md", replaced: &[("ctr", CTR)], waits, written: "", answer: "\na page of the server\n" }
        .is_right();
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn podman() {
    let waits = &[
        ("curl", "curl --silent --fail http://10.118.0.1/ >/dev/null"),
        ("podman rm", "[ \"$(viproutectl status | grep -c ' ready ')\" = 3 ]"),
    ];
    Page {
        name: "podman.md",
        replaced: &[("podman", PODMAN)],
        waits,
        written: SETTINGS,
        answer: "\na page of the server\n",
    }
    .is_right();
}

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn nomad_without_nomad() {
    Page {
        name: "nomad.md",
        replaced: &[("nomad", NOMAD)],
        waits: &[],
        written: "printf 'backend = \"pool\"\\n[pool]\\ncidr = \"10.118.0.0/24\"\\n' >/etc/viproute/viprouted.toml\n",
        answer: "nomad was called",
    }
    .is_right();
}
