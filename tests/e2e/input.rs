//! What comes in is checked in full before anything is touched: the right code, a message that names it, nothing changed.

use serde_json::{Value, json};

use crate::harness::{CAPABILITY, Environment, Failure, Join, Lan, Node, Pod, TempDir};

/// A node and a pod that is about to join.
struct Scene {
    pod: Pod,
    node: Node,
    _lan: Lan,
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        Self { pod: node.pod(), node, _lan: lan }
    }

    fn environment(&self) -> Environment {
        self.node.environment("ADD", &self.pod, &Join::annotated("web"))
    }

    fn stdin(&self) -> Value {
        self.node.stdin("ADD", &self.pod, &Join::annotated("web"))
    }

    /// A call that must be refused with `code`, name `named`, and change nothing.
    fn refused(&self, environment: &Environment, stdin: &str, code: i64, named: &str) -> Failure {
        let before = self.node.snapshot(&[&self.pod]);
        let error = self.node.raw(environment, stdin).error();
        assert_eq!(error.code, code, "{error:?} for {stdin}");
        assert!(error.text().contains(named), "{named:?} isn't named: {error:?}");
        before.assert_same(&self.node.snapshot(&[&self.pod]), "a refused call");
        error
    }

    /// The same by stdin alone.
    fn refused_stdin(&self, stdin: &Value, code: i64, named: &str) {
        self.refused(&self.environment(), &stdin.to_string(), code, named);
    }

    /// An annotation's one VIP.
    fn refused_name(&self, name: &str) -> Failure {
        let join = Join::annotated(name);
        let stdin = self.node.stdin("ADD", &self.pod, &join).to_string();
        self.refused(&self.node.environment("ADD", &self.pod, &join), &stdin, 7, "")
    }

    fn refused_join(&self, join: &Join, named: &str) {
        let stdin = self.node.stdin("ADD", &self.pod, join).to_string();
        self.refused(&self.node.environment("ADD", &self.pod, join), &stdin, 7, named);
    }
}

#[test]
fn no_stdin() {
    let scene = Scene::new();
    scene.refused(&scene.environment(), "", 6, "");
}

#[test]
fn half_a_json() {
    let scene = Scene::new();
    let whole = scene.stdin().to_string();
    scene.refused(&scene.environment(), &whole[..whole.len() / 2], 6, "");
    scene.refused(&scene.environment(), "[1, 2]", 6, "");
}

#[test]
fn a_missing_variable() {
    let scene = Scene::new();
    let stdin = scene.stdin().to_string();
    let whole = scene.environment();
    let cases = [
        ("CNI_COMMAND", Environment { command: None, ..whole.clone() }),
        ("CNI_CONTAINERID", Environment { container: None, ..whole.clone() }),
        ("CNI_NETNS", Environment { netns: None, ..whole.clone() }),
        ("CNI_IFNAME", Environment { ifname: None, ..whole.clone() }),
    ];
    for (name, environment) in cases {
        scene.refused(&environment, &stdin, 4, name);
    }
}

#[test]
fn a_command_that_does_not_exist() {
    let scene = Scene::new();
    let environment = Environment { command: Some("ADDD".into()), ..scene.environment() };
    scene.refused(&environment, &scene.stdin().to_string(), 4, "ADDD");
}

#[test]
fn a_bad_container_id() {
    let scene = Scene::new();
    for id in ["", "../../etc", "-dash-first", "with space", "slash/inside", "newline\n"] {
        let environment = Environment { container: Some(id.into()), ..scene.environment() };
        scene.refused(&environment, &scene.stdin().to_string(), 4, "CNI_CONTAINERID");
    }
}

#[test]
fn a_bad_interface_name() {
    let scene = Scene::new();
    for name in ["", ".", "..", "a/b", "with space", "sixteen-letters-", "a:b"] {
        let environment = Environment { ifname: Some(name.into()), ..scene.environment() };
        scene.refused(&environment, &scene.stdin().to_string(), 4, "CNI_IFNAME");
    }
}

#[test]
fn a_path_that_is_no_network_namespace() {
    let scene = Scene::new();
    let dir = TempDir::new();
    std::fs::write(dir.file("file"), "").unwrap();
    for path in [dir.file("file"), dir.file("missing"), dir.path().display().to_string(), "/proc/self/ns/uts".into()] {
        let environment = Environment { netns: Some(path.clone()), ..scene.environment() };
        scene.refused(&environment, &scene.stdin().to_string(), 4, &path);
    }
}

#[test]
fn a_version_nobody_speaks() {
    let scene = Scene::new();
    for version in ["0.2.0", "2.0.0", "one"] {
        let mut stdin = scene.stdin();
        stdin["cniVersion"] = json!(version);
        scene.refused_stdin(&stdin, 1, version);
    }
}

#[test]
fn an_unknown_key_is_named() {
    let scene = Scene::new();
    scene.refused_join(&Join::annotated("web").key("datadir", json!("/tmp")), "datadir");
    scene.refused_join(&Join::annotated("web").key("group", json!({ "bukkets": 3 })), "bukkets");
}

#[test]
fn keys_of_the_specification_are_accepted() {
    let scene = Scene::new();
    let join = Join::annotated("web")
        .key("args", json!({ "cni": {} }))
        .key("dns", json!({ "nameservers": [] }))
        .key("ipam", json!({}))
        .key("ipMasq", json!(false))
        .key("disableCheck", json!(false))
        .key("disableGC", json!(true))
        .key("cni.dev/attachments", json!([]));
    scene.node.add(&scene.pod, &join).ok();
}

#[test]
fn a_bad_value_is_named_with_its_key() {
    let scene = Scene::new();
    let cases = [
        ("mtu", json!("big"), "mtu"),
        ("mtu", json!(-1), "mtu"),
        ("mtu", json!(1), "mtu"),
        ("nodeIP", json!("here"), "nodeIP"),
        ("gateway", json!("2001:db8::1"), "gateway"),
        ("group", json!({ "buckets": 0 }), "buckets"),
        ("group", json!({ "buckets": 70000 }), "buckets"),
        ("group", json!({ "idleTimer": "soon" }), "idleTimer"),
        ("dataDir", json!("relative/path"), "dataDir"),
        ("vips", json!("web"), "vips"),
        ("reportIPs", json!("yes"), "reportIPs"),
        ("flowOwner", json!("maybe"), "flowOwner"),
        ("health", json!("always"), "\"health\" is \"always\": expected \"none\", \"listen\""),
        ("health", json!(true), "\"health\" is true"),
    ];
    for (key, value, named) in cases {
        scene.refused_join(&Join::annotated("web").key(key, value), named);
    }
}

#[test]
fn a_bad_vip_name_is_named() {
    let scene = Scene::new();
    let long = "a".repeat(64);
    for name in ["Web", "-web", "web-", "we_b", "web.api", "../web", long.as_str(), "web\u{e9}"] {
        scene.refused_join(&Join::annotated(name), name);
        scene.refused_join(&Join::listed(&[name]), name);
    }
    scene.refused_join(&Join::listed(&["a/b/c"]), "a/b/c");
    scene.refused_join(&Join::annotated("web").namespace("Shop"), "Shop");
    for list in ["web,,api", ",web", "web,web", ""] {
        scene.refused_join(&Join::annotated(list), "viproute.io/vip");
    }
    scene.refused_join(&Join::annotated("web").key("vips", json!(["default/web"])), "web");
}

/// What a pod's owner may write into an annotation, out of ignorance or malice.
#[test]
fn annotations_that_no_vip_can_have() {
    let scene = Scene::new();
    let many = (0..1000).map(|number| format!("vip-{number}")).collect::<Vec<_>>().join(",");
    scene.refused_join(&Join::annotated(&many), "1000 VIPs");
    let nine = (0..9).map(|number| format!("vip-{number}")).collect::<Vec<_>>().join(",");
    scene.refused_join(&Join::annotated(&nine), "9 VIPs");
    for name in [
        "..",
        ".",
        "../../../etc/passwd",
        "shop/web",
        "/web",
        "web/",
        "a/../b",
        "..%2f..",
        "web\0",
        "we\nb",
        "we\tb",
        "web;ls",
        "$(reboot)",
        "`id`",
        "*",
        "web_api",
        "WEB",
        "\u{202e}bew",
        "\u{ff57}eb",
        "\u{1f980}",
        "-",
        "%s%n",
        "web@eth0",
        "--help",
    ] {
        let error = scene.refused_name(name);
        assert!(error.text().contains("viproute.io/vip"), "{error:?}");
    }
    for length in [64, 4096, 1 << 20] {
        let error = scene.refused_name(&"a".repeat(length));
        assert!(error.text().len() < 2048, "an error of {} bytes", error.text().len());
    }
    let mut join = Join::annotated("web");
    for (key, value) in
        [("ports", "80/tcp,".repeat(100_000)), ("weight", "9".repeat(1 << 20)), ("weight", "1e2".into())]
    {
        join.annotations = Some(json!({ "viproute.io/vip": "web", format!("viproute.io/{key}"): value }));
        let stdin = scene.node.stdin("ADD", &scene.pod, &join).to_string();
        let error = scene.refused(&scene.node.environment("ADD", &scene.pod, &join), &stdin, 7, key);
        assert!(error.text().len() < 2048, "an error of {} bytes", error.text().len());
    }
}

#[test]
fn bad_ports_are_named() {
    let scene = Scene::new();
    for ports in ["80", "0/tcp", "65536/tcp", "80/http", "80/tcp,,81/tcp", "eighty/tcp"] {
        let mut join = Join::annotated("web");
        join.annotations = Some(json!({ "viproute.io/vip": "web", "viproute.io/ports": ports }));
        scene.refused_join(&join, "viproute.io/ports");
    }
}

#[test]
fn bad_health_checks_are_named() {
    let scene = Scene::new();
    let cases = [
        ("", "viproute.io/health is \"\""),
        ("always", "viproute.io/health is \"always\": expected \"none\", \"listen\", \"tcp\" or \"http:PORT/PATH\""),
        ("http:80", "viproute.io/health is \"http:80\""),
        ("http:0/", "viproute.io/health is \"http:0/\""),
        ("https:443/", "viproute.io/health is \"https:443/\""),
        ("http:80/a\u{e4}", "viproute.io/health is"),
        ("listen interval=10ms", "interval=1s (100ms to 1h)"),
        ("listen interval=2h", "interval=1s (100ms to 1h)"),
        ("listen timeout=2s", "timeout=1s (10ms to 10s, not above the interval)"),
        ("listen rise=0", "rise=1 and fall=3 (1 to 100)"),
        ("listen fall=101", "rise=1 and fall=3 (1 to 100)"),
        ("listen fall=1 fall=1", "viproute.io/health is \"listen fall=1 fall=1\""),
        ("listen every=1s", "viproute.io/health is \"listen every=1s\""),
        ("none fall=1", "viproute.io/health is \"none fall=1\""),
    ];
    for (health, named) in cases {
        let web = Join::annotated("web").annotation("viproute.io/ports", "80/tcp");
        scene.refused_join(&web.annotation("viproute.io/health", health), named);
    }
    // A check of ports, without any.
    let web = Join::annotated("web");
    let of_ports = "\"listen\": expected a port for VIP default/web in viproute.io/ports";
    scene.refused_join(&web.clone().annotation("viproute.io/health", "listen"), of_ports);
    scene.refused_join(&web.clone().key("health", json!("listen")), of_ports);
    let udp = web.annotation("viproute.io/ports", "53/udp").annotation("viproute.io/health", "tcp");
    scene.refused_join(&udp, "\"tcp\": expected a TCP port for VIP default/web");
}

#[test]
fn annotations_that_are_no_map_of_strings() {
    let scene = Scene::new();
    for annotations in [json!("web"), json!({ "viproute.io/vip": ["web"] }), json!(7)] {
        let mut join = Join::annotated("web");
        join.annotations = Some(annotations);
        let stdin = scene.node.stdin("ADD", &scene.pod, &join).to_string();
        let error = scene.refused(&scene.environment(), &stdin, 7, CAPABILITY);
        assert!(!error.msg.is_empty());
    }
}

/// containerd sends `null` for a pod without annotations.
#[test]
fn null_annotations_are_none() {
    let scene = Scene::new();
    let mut join = Join::nothing();
    join.annotations = Some(Value::Null);
    let before = scene.node.snapshot(&[&scene.pod]);
    let result = scene.node.add(&scene.pod, &join).ok();
    assert_eq!(result, scene.stdin()["prevResult"]);
    before.assert_same(&scene.node.snapshot(&[&scene.pod]), "a pod with null annotations");
}

#[test]
fn no_prev_result() {
    let scene = Scene::new();
    let mut stdin = scene.stdin();
    stdin.as_object_mut().unwrap().remove("prevResult");
    scene.refused_stdin(&stdin, 7, "prevResult");
}

#[test]
fn a_pod_without_an_address() {
    let scene = Scene::new();
    scene.pod.ns.ip("addr flush dev eth0");
    let mut stdin = scene.stdin();
    stdin["prevResult"]["ips"] = json!([]);
    scene.refused_stdin(&stdin, 104, "no address");
}
