//! podman's page.

use super::{Page, SYSTEMCTL, replace};
use crate::harness::{Lan, Machine, Node, image, tool};
use crate::podman::{CONTAINERS, STORAGE};

/// Containers' cgroups are the machine's, so that they go with it.
const PODMAN: &str = "#!/bin/sh
case $1 in
    run) shift; exec /usr/bin/podman run --cgroup-parent CGROUP \"$@\" ;;
    *) exec /usr/bin/podman \"$@\" ;;
esac
";

const WAITS: [(&str, &str); 3] = [
    ("curl", "curl --silent --fail http://10.118.0.1/ >/dev/null"),
    ("podman kill", "true"),
    ("podman rm", "[ \"$(viproutectl status | grep -c ' ready ')\" = 3 ]"),
];

#[test]
fn podman() {
    for needed in ["podman", "conmon", "runc", "iptables", "curl"] {
        tool(needed);
    }
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let machine = Machine::new(&node);
    let podman = PODMAN.replace("CGROUP", &machine.cgroup());
    replace(&machine, &[("apt-get", "#!/bin/sh\n"), ("systemctl", SYSTEMCTL), ("podman", &podman)]);
    // The page's table, and what a machine like this one needs besides.
    machine.write("/etc/containers/containers.conf", CONTAINERS);
    machine.write("/etc/containers/storage.conf", STORAGE);
    image::server(&machine.path("/root/nginx.tar"), "docker.io/library/nginx:alpine");
    machine.sh("podman load --input /root/nginx.tar");

    let page = Page { name: "podman.md", blocks: 7, begin: "set -e\n", waits: &WAITS };
    let parts = [
        "\ncni\n",
        "default/web  10.118.0.1  for ever  serving  default/web-1",
        "default/web-2",
        "default/web-3",
        "a page of the server",
        "== podman rm --force web-1 web-2 web-3",
        "Removed: /usr/local/bin/viprouted",
        "== the end",
    ];
    let said = page.run(&machine, &parts);
    assert!(!machine.path("/etc/cni/net.d/podman-web.conflist").exists() && machine.attachments() == 0, "{said}");
}
