//! conf/viprouted.service in the sandbox that it describes.

use super::{POOL, packed};
use crate::harness::{Debian, Lan, Node, PATIENCE, until};
use crate::packaging::sources;

/// The directories of runtimes' networks, each made when viprouted has long run, as who installs a runtime or a CNI afterwards has it.
const NETWORKS: [&str; 3] = ["/etc/cni/net.d", "/opt/cni/config", "/var/lib/rancher/k3s/agent/etc/cni/net.d"];

const THEIRS: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

#[test]
#[ignore = "./install.sh test --release makes what it needs and runs it"]
fn it_may_write_where_runtimes_have_their_networks() {
    let (made_in, lan) = (sources(), Lan::new());
    let node = Node::without_allocator(&lan, 1);
    let debian = Debian::boot(&node);
    debian.copy(&packed(&made_in, "deb.sh"), "/root/viproute.deb");
    debian.sh("dpkg -i viproute.deb");
    debian.sh(&format!("cat >/etc/viproute/viprouted.toml <<'E'\n{POOL}E\nsystemctl restart viprouted"));
    let process = || debian.sh("systemctl show --value --property=MainPID viprouted").trim().to_owned();
    let filtered = debian.sh(&format!("grep ^Seccomp: /proc/{}/status", process()));
    assert_eq!(filtered.split_whitespace().last(), Some("2"), "its system calls are filtered");
    for directory in NETWORKS {
        let chain = format!("{directory}/10-n.conflist");
        // As a base CNI writes it.
        let write = |plugin: &str| debian.write(&chain, &THEIRS.replace("bridge", plugin));
        let is_back = |plugin: &str| {
            until(&format!("viproute is back in {chain}"), PATIENCE, || {
                let text = debian.read(&chain);
                (text.contains(plugin) && text.contains("\"viproute\"")).then_some(())
            });
        };
        write("bridge");
        debian.sh(&format!("viproutectl node join --conf-dir {directory}"));
        write("ptp");
        is_back("ptp");
        // It was restarted once for the directory, and never again.
        let restarted = process();
        write("macvlan");
        is_back("macvlan");
        assert_eq!(process(), restarted, "{directory}: it is the same viprouted");
        debian.sh(&format!("viproutectl node leave --conf-dir {directory} && rm {chain}"));
    }
    let said = debian.sh("journalctl --unit=viprouted --no-pager");
    assert!(!said.contains("Read-only file system") && !said.contains("Operation not permitted"), "{said}");
}
