//! The quickstarts' commands, run as they stand. What fetches, installs or starts something is replaced: there are no registry, no apt and
//! no systemd in a test.

mod nomad;
mod podman;

use crate::harness::{Lan, Machine, Node, PATIENCE, Run, blocks, image, script, tool, until};

/// In place of Debian's: a package that is there already, a unit.
const SYSTEMCTL: &str = r#"#!/bin/sh
[ "$*" = "restart viprouted" ] || exit 1
[ ! -e /run/viprouted.pid ] || kill "$(cat /run/viprouted.pid)"
mkdir -p /run/viproute
/usr/local/bin/viprouted --config /etc/viproute/viprouted.toml </dev/null >>/var/log/viprouted.log 2>&1 &
echo $! >/run/viprouted.pid
until /usr/local/bin/viproutectl events >/dev/null 2>&1; do sleep 0.05; done
"#;

/// In place of the registry's image one made here.
const CTR: &str = "#!/bin/sh
export CONTAINERD_SNAPSHOTTER=native
[ \"$1 $2\" != \"image pull\" ] || exec /usr/bin/ctr image import /root/nginx.tar
exec /usr/bin/ctr \"$@\"
";

/// An overlay can't lie on another one.
const CONTAINERD: &str =
    "version = 2\noom_score = 0\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"/var/lib/containerd/opt\"\n";

/// Before the block that begins so, people wait for this.
const WAITS: [(&str, &str); 2] = [
    ("viproutectl status", "[ \"$(viproutectl status | grep -c ' ready ')\" = 2 ]"),
    ("ip route show", "curl --silent --fail http://10.118.0.1/ >/dev/null"),
];

/// Puts these in the place of programs that a test has not, or that would reach out of it.
fn replace(machine: &Machine, programs: &[(&str, &str)]) {
    for (name, text) in programs {
        let path = format!("/usr/local/bin/{name}");
        machine.write(&path, text);
        machine.sh(&format!("chmod 755 {path}"));
    }
}

/// A page's commands.
struct Page {
    name: &'static str,
    /// It has so many blocks of them at least.
    blocks: usize,
    /// What goes before them.
    begin: &'static str,
    waits: &'static [(&'static str, &'static str)],
}

impl Page {
    /// Runs them, and returns what they say, which has these parts.
    fn run(&self, machine: &Machine, parts: &[&str]) -> String {
        let blocks = blocks(self.name);
        assert!(blocks.len() >= self.blocks, "{blocks:#?}");
        let begin = format!("cd \"$SOURCE\"\nPATH=/usr/local/bin:$PATH\n{}", self.begin);
        machine.write("/root/quickstart.sh", &(begin + &script(&blocks, self.waits)));
        // What goes on in the background must not hold a pipe of this test's.
        machine.sh("bash /root/quickstart.sh >/root/said 2>&1 </dev/null || { cat /root/said >&2; exit 1; }");
        let said = machine.read("/root/said");
        for part in parts {
            assert!(said.contains(part), "no {part:?} in\n{said}");
        }
        said
    }
}

#[test]
fn containerd() {
    for needed in ["containerd", "ctr", "runc", "jq", "curl"] {
        tool(needed);
    }
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let mut machine = Machine::new(&node);
    replace(&machine, &[("apt-get", "#!/bin/sh\n"), ("systemctl", SYSTEMCTL), ("ctr", CTR)]);
    machine.write("/etc/containerd/config.toml", CONTAINERD);
    image::server(&machine.path("/root/nginx.tar"), "docker.io/library/nginx:alpine");
    machine.start("containerd", "containerd --config /etc/containerd/config.toml");
    until("containerd answers", PATIENCE, || {
        machine.cmd("/usr/bin/ctr").arg("version").finish("").status.success().then_some(())
    });

    let page = Page { name: "containerd.md", blocks: 6, begin: "", waits: &WAITS };
    let parts = [
        "== the end",
        // The one that has come first is above.
        "default/web  10.118.0.1  for ever  serving  default-web-",
        "default-web-1@eth0",
        "default-web-2@eth0",
        "10.118.0.1 nhid",
        "a page of the server",
        "Removed: /usr/local/bin/viprouted",
        "Leases stay in",
    ];
    let said = page.run(&machine, &parts);
    assert!(!said.contains("error"), "{said}");
}
