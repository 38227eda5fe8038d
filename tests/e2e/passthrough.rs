//! A pod that names no VIP: out as it came in, and next to nothing done.

use crate::harness::{Join, Lan, Node, VIPROUTE, tool};

/// Odd but valid: spaces, key order, numbers a parser might rewrite, unknown keys.
const ODD: &str = r#"{"zeta": 1.0, "cniVersion":"1.0.0",  "big":12345678901234567890123,"ips":[ {"address":"10.1.1.2/24"} ],
  "alpha":{"b":1,"a":1e2,"escaped":"\u00e9\/"},"dns":{}}"#;

fn stdin(node: &Node) -> String {
    let conf = node.conf(&Join::nothing()).to_string();
    format!("{},\"prevResult\":{ODD}}}", conf.strip_suffix('}').unwrap())
}

#[test]
fn the_result_is_prev_result_as_it_came() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let pod = node.pod();
    let before = node.snapshot(&[&pod]);
    let reply = node.raw(&node.environment("ADD", &pod, &Join::nothing()), &stdin(&node));
    reply.ok();
    assert_eq!(reply.0.stdout.trim_end(), ODD);
    for verb in ["CHECK", "DEL", "DEL"] {
        node.raw(&node.environment(verb, &pod, &Join::nothing()), &stdin(&node)).ok();
    }
    before.assert_same(&node.snapshot(&[&pod]), "a pod passed through");
}

/// By its system calls: no socket of any kind, no file of ours, nothing made, nothing locked, no namespace entered.
#[test]
fn nothing_is_opened_and_nothing_is_asked() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let pod = node.pod();
    let trace = node.dir.file("trace");
    let mut command = node.ns.cmd(tool("strace").to_str().unwrap());
    command.args(["-f", "-o", &trace, VIPROUTE]);
    node.run(&mut command, &node.environment("ADD", &pod, &Join::nothing()), &stdin(&node)).ok();
    let calls = std::fs::read_to_string(&trace).unwrap();
    assert!(calls.contains("execve(") && calls.contains("write(1"), "strace saw the plugin:\n{calls}");
    for forbidden in [
        "socket(",
        "connect(",
        "flock(",
        "mkdir",
        "setns(",
        "unshare(",
        "clone(",
        "clone3(",
        "O_CREAT",
        "O_RDWR",
        "/proc/sys",
    ] {
        assert!(!calls.contains(forbidden), "{forbidden} in\n{calls}");
    }
    for path in [node.data(), node.socket(), pod.ns.path()] {
        assert!(!calls.contains(&path), "{path} in\n{calls}");
    }
}
