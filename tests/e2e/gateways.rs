//! Address conflict search at the gateways: what the routing daemon of a node hears of them, and keeps out of the kernel's
//! tables.

use std::fs;
use std::path::Path;

use crate::bgp::{Speaker, announce, router};
use crate::harness::{Bird, Join, Lan, Node, PATIENCE, Sidecar, TempDir, until};

const SETTINGS: &str =
    "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\n[pool]\ncidr = \"10.118.0.0/24\"\nexclude = [\"10.118.0.100\"]";
const OPTIONS: [&str; 4] = ["--asn", "65001", "--router", "192.0.2.254:65000"];

/// The LAN's gateway, with a session with that node: a default route, the prefix that VIPs come from, and two routes to addresses in it.
fn gateway(lan: &Lan, node: u8) -> Bird {
    let conf = "router id 192.0.2.254;\nprotocol device {}\nprotocol static { ipv4;\n\
                route 0.0.0.0/0 blackhole; route 10.118.0.0/16 blackhole;\n\
                route 10.118.0.1/32 blackhole; route 10.118.0.4/30 blackhole;\n}\n\
                protocol bgp node { local 192.0.2.254 as 65000; neighbor 192.0.2.NODE as 65001; connect delay time 1;\n\
                error wait time 1, 2; ipv4 { import all; export all; }; }\n";
    Bird::start(&lan.ns, &conf.replace("NODE", &node.to_string()))
}

/// viprouted with a routing daemon to ask.
fn settings(kind: &str, socket: &str) -> String {
    format!("{SETTINGS}\n[[gateway]]\nkind = {kind:?}\nsocket = {socket:?}")
}

fn write_config(node: &Node) {
    fs::write(node.dir.path().join("viprouted.toml"), SETTINGS).expect("write viprouted.toml");
}

fn passes_over_what_the_gateway_routes(kind: &str) {
    let lan = Lan::new();
    let _gateway = gateway(&lan, 1);
    let node = Node::without_allocator(&lan, 1);
    write_config(&node);
    let speaker = Speaker::start(kind, &node, &OPTIONS);
    speaker.has_received("10.118.0.4/30");
    let sidecar = Sidecar::start(&node, &settings(kind, &speaker.socket()));
    let last = |vip: &str| sidecar.acquire(vip).unwrap_or_else(|error| panic!("{error:?}")).octets()[3];
    // .1 and .4 to .7 are routed by the gateway; .2 by its default route and the prefix of all VIPs alone.
    assert_eq!(["default/a", "default/b", "default/c"].map(last), [2, 3, 8]);
    let log = sidecar.daemon.log();
    assert!(log.contains("has a route 10.118.0.1/32 via 192.0.2.254"), "{log}");
    assert!(log.contains("has a route 10.118.0.4/30 via 192.0.2.254"), "{log}");
    let routes = node.ns.ip("route");
    assert!(!routes.contains("10.118.0.1") && !routes.contains("10.118.0.4"), "the kernel knows of it: {routes}");
}

#[test]
fn bird_is_asked_for_what_the_gateway_routes() {
    passes_over_what_the_gateway_routes("bird");
}

#[test]
fn frr_is_asked_for_what_the_gateway_routes() {
    passes_over_what_the_gateway_routes("frr");
}

/// Its own routes count too: a gateway's control socket that is shared with the node.
#[test]
fn the_gateways_own_bird_is_asked() {
    let lan = Lan::new();
    let gateway = gateway(&lan, 2);
    // Another node than the one under test has the session.
    let [node, other] = [1, 2].map(|number| Node::without_allocator(&lan, number));
    write_config(&other);
    let speaker = Speaker::start("bird", &other, &OPTIONS);
    speaker.has_received("10.118.0.4/30");
    let sidecar = Sidecar::start(&node, &settings("bird", &gateway.socket()));
    let address = sidecar.acquire("default/a").unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(address.octets()[3], 2);
    assert!(sidecar.daemon.log().contains("BIRD's static1 has a route 10.118.0.1/32"), "{}", sidecar.daemon.log());
}

/// Nothing is known, so nothing is given out; the reason is told, and over when the daemon answers.
#[test]
fn a_daemon_that_does_not_answer_is_waited_for() {
    let lan = Lan::new();
    let _gateway = gateway(&lan, 1);
    let node = Node::without_allocator(&lan, 1);
    write_config(&node);
    let dir = TempDir::new();
    let socket = dir.file("bird.ctl");
    let sidecar = Sidecar::start(&node, &settings("bird", &socket));
    let error = sidecar.acquire("default/a").unwrap_err();
    assert!(error.msg.contains(&format!("the routing daemon of [[gateway]] at {socket} can't be asked")), "{error:?}");
    let speaker = Speaker::start("bird", &node, &OPTIONS);
    speaker.has_received("10.118.0.4/30");
    std::os::unix::fs::symlink(speaker.socket(), &socket).expect("a link to BIRD's socket");
    let address = until("an address", PATIENCE, || sidecar.acquire("default/a").ok());
    assert_eq!(address.octets()[3], 2);
}

/// What the filter refuses is forgotten: the setting that is missing is named.
#[test]
fn a_daemon_that_forgets_what_it_refuses_is_no_witness() {
    for (kind, line) in
        [("bird", "    import table on;\n"), ("frr", "  neighbor 192.0.2.254 soft-reconfiguration inbound\n")]
    {
        let lan = Lan::new();
        let gateway = gateway(&lan, 1);
        let node = Node::without_allocator(&lan, 1);
        write_config(&node);
        let conf = announce(&node, kind, &OPTIONS).ok();
        assert!(conf.contains(line), "{kind}");
        let speaker = Speaker::with(kind, &node, &conf.replace(line, ""));
        until("the session is up", PATIENCE, || {
            gateway.ask("show protocols node").contains("Established").then_some(())
        });
        let sidecar = Sidecar::start(&node, &settings(kind, &speaker.socket()));
        let error = sidecar.acquire("default/a").unwrap_err();
        assert!(error.msg.contains(&format!("expected `{}`", line.trim())), "{error:?}");
    }
}

/// No session: nothing has been heard.
#[test]
fn without_a_session_nothing_is_known() {
    let lan = Lan::new();
    for kind in ["bird", "frr"] {
        let node = Node::without_allocator(&lan, if kind == "bird" { 1 } else { 2 });
        write_config(&node);
        let speaker = Speaker::start(kind, &node, &OPTIONS);
        let sidecar = Sidecar::start(&node, &settings(kind, &speaker.socket()));
        let error = sidecar.acquire("default/a").unwrap_err();
        assert!(error.msg.contains("none of the BGP sessions"), "{error:?}");
    }
}

/// The router tells each node of the other's VIP, as an address that another node has.
#[test]
fn another_nodes_vip_is_no_conflict() {
    let lan = Lan::new();
    let _router = router(&lan, &[(1, 65001), (2, 65002)]);
    let pinned = |peers: &str| {
        format!(
            "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\npeers = [{peers}]\n[pool]\ncidr = \"10.118.0.0/24\"\n\
             [[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.7\""
        )
    };
    let [one, two] = [1, 2].map(|number| Node::without_allocator(&lan, number));
    let peers = pinned("\"192.0.2.1\", \"192.0.2.2\"");
    let _sidecar = Sidecar::start(&one, &peers);
    let _pod = one.joined(&Join::annotated("web"));
    let _announces = Speaker::start("bird", &one, &OPTIONS);
    write_config(&two);
    let speaker = Speaker::start("frr", &two, &["--asn", "65002", "--router", "192.0.2.254:65000"]);
    speaker.has_received("10.118.0.7/32");
    let asked = format!("[[gateway]]\nkind = \"frr\"\nsocket = {:?}", speaker.socket());
    let error = {
        let sidecar = Sidecar::start(&two, &format!("{}\n{asked}", pinned("")));
        sidecar.acquire("default/web").unwrap_err()
    };
    let expected = "FRR's session with 192.0.2.254 has a route 10.118.0.7/32 via 192.0.2.1";
    assert!(error.msg.contains(expected), "{error:?}");
    let sidecar = Sidecar::start(&two, &format!("{peers}\n{asked}"));
    assert_eq!(sidecar.acquire("default/web").unwrap().to_string(), "10.118.0.7");
}

/// As the unit runs it: FRR's socket is for the group frrvty, and root without `CAP_DAC_OVERRIDE` is any user.
#[test]
fn the_daemons_group_opens_its_socket() {
    let unit =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/viprouted.service")).expect("the unit");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("its capabilities");
    let set = set.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let bounding = format!("--bounding-set=-all{}", set.collect::<String>());
    let lan = Lan::new();
    let _gateway = gateway(&lan, 1);
    let node = Node::without_allocator(&lan, 1);
    write_config(&node);
    let speaker = Speaker::start("frr", &node, &OPTIONS);
    speaker.has_received("10.118.0.4/30");
    let settings = settings("frr", &speaker.socket());
    let acquired = |groups: &str| {
        let sidecar = Sidecar::run_by("setpriv", &[groups, &bounding], &node, &settings);
        sidecar.acquire("default/a")
    };
    let error = acquired("--clear-groups").unwrap_err();
    assert!(error.msg.contains("SupplementaryGroups"), "{error:?}");
    assert_eq!(acquired("--groups=frrvty").unwrap_or_else(|error| panic!("{error:?}")).octets()[3], 2);
}
