//! Nomad's page, as far as that is possible without Nomad: no registry has it. Its client's calls of the network are those of
//! `chains.rs`.

use super::{Page, SYSTEMCTL, replace};
use crate::harness::{Lan, Machine, Node, tool};

/// In place of Nomad: says how it was called.
const NOMAD: &str = "#!/bin/sh\necho \"nomad was called: $*\"\n";

/// The toml of the page for one client; the one for several needs a DHCP server.
const POOL: &str = "mkdir -p /etc/viproute\nprintf 'backend = \"pool\"\\n[pool]\\ncidr = \"10.118.0.0/24\"\\n' >/etc/viproute/viprouted.toml\n";

#[test]
fn nomad_without_nomad() {
    tool("iptables");
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let machine = Machine::new(&node);
    replace(&machine, &[("apt-get", "#!/bin/sh\n"), ("systemctl", SYSTEMCTL), ("nomad", NOMAD)]);
    machine.sh("mkdir -p /opt/cni/bin");

    // doctor's exit status tells of warnings: no network is in the chain of a runtime's, and that is right here.
    let page = Page { name: "nomad.md", blocks: 5, begin: POOL, waits: &[] };
    let parts = [
        "== viproutectl status",
        "nomad was called: job stop -purge web",
        "Removed: /usr/local/bin/viprouted",
        "== the end",
    ];
    let said = page.run(&machine, &parts);
    assert!(!said.contains("No such file"), "{said}");
    assert!(!machine.path("/opt/cni/config/viproute.conflist").exists(), "{said}");
}
