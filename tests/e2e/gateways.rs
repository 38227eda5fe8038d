//! Address conflict search at the gateways: what the routing daemon of a node hears of them, and keeps out of the kernel's
//! tables.

use std::fs;
use std::path::Path;

use crate::bgp::{Speaker, announce, router};
use crate::harness::{Bird, Families, Join, Lan, Node, PATIENCE, Sidecar, TempDir, until};

const SETTINGS: &str =
    "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\n[pool]\ncidr = \"10.118.0.0/24\"\nexclude = [\"10.118.0.100\"]";
const OPTIONS: [&str; 4] = ["--asn", "65001", "--router", "192.0.2.254:65000"];

/// The same of VIPs of both families.
const DUAL: &str = "backend = \"pool\"\nallow = [\"10.118.0.0/16\", \"fd00:118::/64\"]\n[pool]\ncidr = \"10.118.0.0/24\"\n\
                    cidr6 = \"fd00:118::/96\"\nexclude = [\"10.118.0.100\"]";
const DUAL_OPTIONS: [&str; 6] = ["--asn", "65001", "--router", "192.0.2.254:65000", "--router", "[2001:db8::fe]:65000"];

/// The LAN's gateway, with a session with that node, and one by IPv6: default routes, the prefixes that VIPs come from, and three routes to
/// addresses in them.
fn gateway(lan: &Lan, node: u8) -> Bird {
    let conf = "router id 192.0.2.254;\nprotocol device {}\nprotocol static { ipv4;\n\
                route 0.0.0.0/0 blackhole; route 10.118.0.0/16 blackhole;\n\
                route 10.118.0.1/32 blackhole; route 10.118.0.4/30 blackhole;\n}\n\
                protocol static { ipv6; route ::/0 blackhole; route fd00:118::/64 blackhole;\n\
                route fd00:118::a76:3/128 blackhole;\n}\n\
                protocol bgp node6 { local 2001:db8::fe as 65000; neighbor 2001:db8::NODE as 65001; connect delay time 1;\n\
                error wait time 1, 2; ipv6 { import all; export all; }; }\n\
                protocol bgp node { local 192.0.2.254 as 65000; neighbor 192.0.2.NODE as 65001; connect delay time 1;\n\
                error wait time 1, 2; ipv4 { import all; export all; }; }\n";
    lan.has_ipv6();
    Bird::start(&lan.ns, &conf.replace("NODE", &node.to_string()))
}

/// viprouted with a routing daemon to ask.
fn settings(kind: &str, socket: &str) -> String {
    asking(SETTINGS, kind, socket)
}

fn asking(settings: &str, kind: &str, socket: &str) -> String {
    format!("{settings}\n[[gateway]]\nkind = {kind:?}\nsocket = {socket:?}")
}

fn write_config(node: &Node) {
    write_settings(node, SETTINGS);
}

fn write_settings(node: &Node, settings: &str) {
    fs::write(node.dir.path().join("viprouted.toml"), settings).expect("write viprouted.toml");
}

fn passes_over_what_the_gateway_routes(kind: &str) {
    let lan = Lan::new();
    let _gateway = gateway(&lan, 1);
    let node = Node::without_allocator(&lan, 1).with_ipv6(&lan);
    write_settings(&node, DUAL);
    let speaker = Speaker::start(kind, &node, &DUAL_OPTIONS);
    speaker.has_received("10.118.0.4/30");
    speaker.has_received("fd00:118::a76:3/128");
    let sidecar = Sidecar::start(&node, &asking(DUAL, kind, &speaker.socket()));
    let last = |vip: &str| sidecar.acquire(vip).unwrap_or_else(|error| panic!("{error:?}")).octets()[3];
    // .1 and .4 to .7 are routed by the gateway, and the IPv6 address that goes with .3; the others by its default routes and the
    // prefixes of all VIPs alone.
    assert_eq!(["default/a", "default/b", "default/c"].map(last), [2, 8, 9]);
    let log = sidecar.daemon.log();
    for route in
        ["10.118.0.1/32 via 192.0.2.254", "10.118.0.4/30 via 192.0.2.254", "fd00:118::a76:3/128 via 2001:db8::fe"]
    {
        assert!(log.contains(&format!("has a route {route}")), "{log}");
    }
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
    let _router = router(&lan, &[(1, 65001), (2, 65002)], Families::Both);
    let pinned = |peers: &str| {
        format!("{DUAL}\n[[pin]]\nvip = \"default/web\"\naddress = \"10.118.0.7\"").replacen(
            "[pool]",
            &format!("peers = [{peers}]\n[pool]"),
            1,
        )
    };
    let [one, two] = [1, 2].map(|number| Node::without_allocator(&lan, number).with_ipv6(&lan));
    let peers = pinned("\"192.0.2.1\", \"192.0.2.2\", \"2001:db8::1\", \"2001:db8::2\"");
    let _sidecar = Sidecar::start(&one, &peers);
    let _pod = one.joined(&Join::annotated("web"));
    let _announces = Speaker::start("bird", &one, &DUAL_OPTIONS);
    write_settings(&two, DUAL);
    let options = DUAL_OPTIONS.map(|option| if option == "65001" { "65002" } else { option });
    let speaker = Speaker::start("frr", &two, &options);
    speaker.has_received("10.118.0.7/32");
    speaker.has_received("fd00:118::a76:7/128");
    let asked = |settings: &str| asking(settings, "frr", &speaker.socket());
    let error = {
        let sidecar = Sidecar::start(&two, &asked(&pinned("")));
        sidecar.acquire("default/web").unwrap_err()
    };
    for (router, route) in
        [("192.0.2.254", "10.118.0.7/32 via 192.0.2.1"), ("2001:db8::fe", "fd00:118::a76:7/128 via 2001:db8::1")]
    {
        assert!(error.msg.contains(&format!("FRR's session with {router} has a route {route}")), "{error:?}");
    }
    let sidecar = Sidecar::start(&two, &asked(&peers));
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
