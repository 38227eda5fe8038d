//! `viproutectl import`: what it prints is what viprouted takes.

use std::fs;
use std::process::Command;

use crate::harness::{Run, TempDir, VIPROUTECTL};
use viproute::node::config::Config;

const METALLB: &str = "
kind: IPAddressPool
metadata: { name: lan, namespace: metallb-system }
spec: { addresses: [10.118.0.0/28], avoidBuggyIPs: true }
---
kind: L2Advertisement
metadata: { name: lan, namespace: metallb-system }
spec: {}
";

#[test]
fn metallbs_pools_are_taken_over() {
    let dir = TempDir::new();
    fs::write(dir.file("metallb.yaml"), METALLB).unwrap();
    let import = |file: &str, text: &str| Command::new(VIPROUTECTL).args(["import", "metallb", file]).finish(text);
    let found = import(&dir.file("metallb.yaml"), "");
    assert_eq!((found.status.code(), found.stderr.as_str()), (Some(0), ""), "{found:?}");
    assert!(
        found.stdout.contains("cidr = [\"10.118.0.0-10.118.0.15\"]\nexclude = [\"10.118.0.0\"]"),
        "{}",
        found.stdout
    );
    Config::parse(&found.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", found.stdout));

    // By standard input, with something that has no counterpart.
    let more = format!("{METALLB}---\nkind: Community\nmetadata: {{ name: mine }}\n");
    let partly = import("-", &more);
    assert_eq!(partly.status.code(), Some(3));
    assert_eq!(partly.stderr, "viproutectl: Community mine: routers are told no communities of their own\n");
    assert_eq!(partly.stdout, found.stdout);

    for (file, text, words) in [
        ("/nonexistent/file", "", "/nonexistent/file: No such file"),
        ("-", "kind: [", "-: expected YAML, as kubectl get -o yaml prints it: "),
        ("-", "{}", "-: no IPAddressPool with IPv4 addresses is in it"),
        (
            "-",
            &METALLB.replace("10.118.0.0/28", "10.118.0"),
            "IPAddressPool lan: addresses = 10.118.0: expected an IPv4",
        ),
    ] {
        let refused = import(file, text);
        assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
}
