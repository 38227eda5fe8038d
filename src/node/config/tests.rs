//! The file, key by key.

use tracing::level_filters::LevelFilter;

use super::*;
use crate::model::Family;

fn complaint(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = Config::parse("").unwrap();
    assert_eq!(config.socket, Path::new("/run/viproute/viprouted.sock"));
    assert_eq!(config.state_dir, Path::new("/var/lib/viproute"));
    assert_eq!(config.data_dir, Path::new("/var/lib/cni/viproute"));
    assert_eq!(config.lease.cluster, None);
    let dhcp = Dhcp { relay: None, servers: Vec::new(), on_lost: OnLost::Withdraw };
    assert_eq!(config.lease.backend, Backend::Dhcp(dhcp));
    assert_eq!(config.lease.allow, None);
    assert_eq!(config.lease.limits, Limits { vips_per_namespace: 100, vips: 1000 });
    assert_eq!(config.lease.hold, Duration::from_secs(600));
    assert_eq!(config.announce, Announce::Arp);
    assert_eq!(config.metrics.socket.as_deref(), Some(Path::new("/run/viproute/metrics.sock")));
    assert_eq!(config.metrics.listen, None);
    assert_eq!(config.log, Log { form: Form::Text, level: LevelFilter::INFO });
    assert!(config.lease.peers.is_empty() && config.lease.pins.is_empty() && config.interface.is_none());
    assert!(config.notrack && config.express);
}

#[test]
fn the_shipped_file_is_valid() {
    let text = include_str!("../../../conf/viprouted.toml");
    assert_eq!(Config::parse(text).unwrap(), Config::parse("").unwrap());
    // What it shows in comments is valid as well.
    let uncommented: String =
        text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_string() + "\n").collect();
    let config = Config::parse(&uncommented).unwrap();
    assert_eq!(config.lease.pins.len(), 1);
    assert_eq!(config.lease.peers.len(), 2);
}

#[test]
fn ipv6_addresses_beside() {
    let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\ncidr6 = \"fd00:118::/96\"";
    let config = Config::parse(pool).unwrap();
    assert_eq!(config.lease.beside.to_string(), "fd00:118::/96");
    let pin = |address6: &str| {
        format!("{pool}\n[[pin]]\nvip = \"shop/web\"\naddress = \"10.118.0.10\"\naddress6 = \"{address6}\"")
    };
    let config = Config::parse(&pin("fd00:1::10")).unwrap();
    let pinned = config.lease.beside.of(&"shop/web".parse().unwrap(), [10, 118, 0, 10].into());
    assert_eq!(pinned, Some("fd00:1::10".parse().unwrap()));
    assert!(Config::parse("backend = \"pool\"\n[pool]").unwrap().lease.beside.is_nothing());
    assert!(Config::parse(&format!("{pool}\n[membership]")).is_ok_and(|config| !config.lease.beside.is_nothing()));
    for (text, says) in [
        (
            pool.replace("/96", "/112"),
            "pool.cidr6 = \"fd00:118::/112\": expected a network of unicast addresses with room for",
        ),
        (
            pool.replace("fd00:118::/96", "fe80::/64"),
            "pool.cidr6 = \"fe80::/64\": expected a network within: any unicast",
        ),
        (format!("allow = [\"10.0.0.0/8\"]\n{pool}"), "expected a network within: 10.0.0.0/8"),
        (pool.replace("pool\"\n", "dhcp\"\nannounce = \"none\"\n"), "expected backend = \"pool\" beside it"),
        (pin("fd00:118::10"), "pin[].address6 = \"fd00:118::10\": expected one outside cidr6 fd00:118::/96 of a pool"),
        (
            pool.replace("cidr = \"10.118.0.0/24\"\n", ""),
            "pool.cidr is missing: expected a network of IPv4 such as 10.118.0.0/24: an IPv6 address of cidr6 ends in the VIP's IPv4 \
             address, which a VIP has also where its pods ask for IPv6 alone (viproute.io/families: ipv6)",
        ),
        (pin("::1"), "pin[0].address6 = \"::1\": expected a unicast IPv6 address"),
    ] {
        assert!(complaint(&text).contains(says), "{text}: {}", complaint(&text));
    }
}

#[test]
fn ipv6_addresses_by_dhcp() {
    let config = Config::parse("[dhcp]\non_lost = \"keep\"\n[dhcp6]").unwrap();
    let dhcp = Dhcp { relay: None, servers: Vec::new(), on_lost: OnLost::Keep };
    assert_eq!(config.lease6.unwrap().backend, Backend::Dhcp(dhcp));
    assert_eq!(Config::parse("").unwrap().lease6, None);
    let pool = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp6]";
    assert!(Config::parse(pool).unwrap().lease6.is_some(), "IPv4 from a pool");
    // A pin's address of IPv6 is no longer beside the other, but takes the place of a lease.
    let pinned =
        Config::parse("[dhcp6]\n[[pin]]\nvip = \"shop/web\"\naddress = \"192.0.2.7\"\naddress6 = \"2001:db8::7\"")
            .unwrap();
    let address: IpAddr = "2001:db8::7".parse().unwrap();
    assert_eq!(pinned.lease6.unwrap().pins.into_values().collect::<Vec<_>>(), [address]);
    assert!(pinned.lease.beside.is_nothing());
    let relay = "allow = [\"10.118.0.0/16\", \"fd00:99::/64\"]\n[dhcp6.relay]\nserver = \"2001:db8::1\"\nsubnet = \"fd00:99::1\"";
    let Backend::Dhcp(dhcp) = Config::parse(relay).unwrap().lease6.unwrap().backend else { panic!() };
    assert_eq!(dhcp.relay.map(|relay| relay.server), Some("2001:db8::1".parse().unwrap()));
    for (text, says) in [
        ("[dhcp6]\nprefix = \"eth1\"", "dhcp6.prefix: no such key (there are: interface, delegate, relay)"),
        (
            "[dhcp6.relay]\nserver = \"192.0.2.1\"",
            "dhcp6.relay.server = \"192.0.2.1\": expected a unicast IPv6 address",
        ),
        ("[dhcp6.relay]\nserver = \"2001:db8::1\"", "dhcp6.relay.subnet is missing"),
        (
            "allow = [\"10.118.0.0/16\"]\n[dhcp6]",
            "allow is missing: expected the networks that VIPs' IPv6 addresses come",
        ),
        ("[dhcp6.relay]\nserver = \"2001:db8::1\"\nsubnet = \"fd00:99::1\"", "allow is missing: expected the networks"),
        (&pool.replace("[dhcp6]", "cidr6 = \"fd00:118::/96\"\n[dhcp6]"), "expected none beside [dhcp6]"),
    ] {
        assert!(complaint(text).contains(says), "{text}: {}", complaint(text));
    }
    let other = "[dhcp6]\ninterface = \"eth1\"";
    for before in
        ["announce = \"none\"", "announce = \"arp\"", "dhcp.interface = \"eth1\"", "dhcp.interface = \"eth0\""]
    {
        let text = format!("{before}\n{other}");
        assert_eq!(Config::parse(&text).unwrap().interface6.as_deref(), Some("eth1"), "{text}");
    }
    // Nodes tell each other of such leases, and Services have such addresses.
    for text in [
        "[dhcp6]\n[membership]",
        "cluster = \"k\"\npeers = [\"192.0.2.1\"]\n[dhcp6]",
        "[dhcp6]\n[kubernetes]\nenabled = true",
    ] {
        assert!(Config::parse(text).unwrap().lease6.is_some(), "{text}");
    }
}

#[test]
fn a_delegated_prefix() {
    let pool =
        "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.0/24\"\n[dhcp]\non_lost = \"keep\"\n[dhcp6]\ndelegate = true\n";
    let config = Config::parse(pool).unwrap();
    assert_eq!((config.delegate, config.lease6), (Some(OnLost::Keep), None));
    assert_eq!(Config::parse("[dhcp6]\ndelegate = false").unwrap().delegate, None);
    for (text, says) in [
        ("[dhcp6]\ndelegate = 64".to_owned(), "dhcp6.delegate = 64: expected true or false"),
        (format!("{pool}[membership]"), "dhcp6.delegate = true: expected false beside [membership]"),
        (
            format!("cluster = \"k\"\npeers = [\"192.0.2.1\"]\n{pool}[[pin]]\nvip = \"a/b\"\naddress = \"10.118.0.1\""),
            "expected false beside peers",
        ),
        (format!("{pool}[kubernetes]\nenabled = true"), "expected false beside [kubernetes]"),
        (
            format!("{pool}[dhcp6.relay]\nserver = \"2001:db8::1\"\nsubnet = \"fd00:99::1\""),
            "dhcp6.delegate = true: expected no relay beside it",
        ),
        (pool.replace("[dhcp]", "cidr6 = \"fd00:118::/96\"\n[dhcp]"), "expected none beside [dhcp6]"),
    ] {
        assert!(complaint(&text).contains(says), "{text}: {}", complaint(&text));
    }
}

#[test]
fn other_nodes() {
    assert_eq!(Config::parse("").unwrap().membership, None);
    let text = "[membership]\nseeds = [\"192.0.2.11\", \"nodes.example:9000\"]\nlisten = \"192.0.2.1:9001\"";
    let config = Config::parse(text).unwrap();
    assert_eq!(config.lease.peers, [IpAddr::from([192, 0, 2, 11])]);
    let membership = config.membership.unwrap();
    assert_eq!(membership.seeds, ["192.0.2.11:8119", "nodes.example:9000"]);
    assert_eq!((membership.listen, membership.port), (Some([192, 0, 2, 1].into()), 9001));
    assert_eq!(membership.key_file, Path::new(DEFAULT_KEY_FILE));
    let bare = Config::parse("[membership]").unwrap().membership.unwrap();
    assert_eq!((bare.listen, bare.port, bare.tunnel, bare.name.as_ref()), (None, 8119, None, None));
    for (line, says) in [
        ("seeds = [\"127.0.0.1\"]", "membership.seeds = \"127.0.0.1\": expected a node's address or name"),
        ("seeds = [\"192.0.2\"]", "membership.seeds = \"192.0.2\": expected"),
        ("seeds = [\"n1:0\"]", "membership.seeds = \"n1:0\": expected"),
        ("seeds = [\"a b\"]", "membership.seeds = \"a b\": expected"),
        ("seeds = [\"fe80::1\"]", "membership.seeds = \"fe80::1\": expected"),
        ("seeds = [\"::ffff:192.0.2.1\"]", "membership.seeds = \"::ffff:192.0.2.1\": expected"),
        ("seeds = [\"[2001:db8::1]:0\"]", "membership.seeds = \"[2001:db8::1]:0\": expected"),
        (
            "seeds = [\"192.0.2.1\", \"2001:db8::1\"]",
            "membership.seeds = […, \"2001:db8::1\"]: expected addresses of one family",
        ),
        (
            "seeds = [\"2001:db8::1\"]\nlisten = \"192.0.2.1\"",
            "membership.listen = \"192.0.2.1\": expected an address of the family",
        ),
        (
            "seeds = [\"192.0.2.1\"]\ntunnel = \"2001:db8::1\"",
            "membership.tunnel = \"2001:db8::1\": expected an address of the family",
        ),
        (
            "listen = \"192.0.2.1\"\ntunnel = \"2001:db8::1\"",
            "membership.tunnel = \"2001:db8::1\": expected an address of the family",
        ),
        ("listen = \"0.0.0.0\"", "membership.listen = \"0.0.0.0\": expected a unicast address of this node"),
        ("tunnel = \"224.0.0.1\"", "membership.tunnel"),
        ("name = \"N1\"", "membership.name = \"N1\": expected a node's name"),
        ("key = 1", "membership.key: no such key (there are: seeds, key_file, listen, tunnel, name)"),
    ] {
        let found = complaint(&format!("[membership]\n{line}"));
        assert!(found.starts_with(says), "{found}");
    }
    let six = "seeds = [\"2001:db8::11\", \"[2001:db8::12]:9000\", \"n3\"]\nlisten = \"[2001:db8::1]:9000\"\ntunnel = \"2001:db8:1::1\"";
    let six = Config::parse(&format!("[membership]\n{six}")).unwrap().membership.unwrap();
    assert_eq!(six.seeds, ["[2001:db8::11]:8119", "[2001:db8::12]:9000", "n3:8119"]);
    assert_eq!((six.listen, six.port, six.family()), (Some("2001:db8::1".parse().unwrap()), 9000, Some(Family::V6)));
    assert_eq!(bare.family(), None);
    let both = complaint("peers = [\"192.0.2.1\"]\n[membership]\nseeds = [\"n1\"]");
    assert!(both.contains("its nodes find each other (membership.seeds)"), "{both}");
}

#[test]
fn kubernetes() {
    for off in ["", "[kubernetes]", "[kubernetes]\nenabled = false\nclass = \"a/b\""] {
        assert_eq!(Config::parse(off).unwrap().kubernetes, None, "{off}");
    }
    let bare = Config::parse("[kubernetes]\nenabled = true").unwrap().kubernetes.unwrap();
    assert_eq!((bare.class.as_str(), bare.default_class), ("viproute.io/vip", false));
    assert_eq!((bare.kubeconfig, bare.node, bare.server), (None, None, None));
    let text = "[kubernetes]\nenabled = true\nkubeconfig = \"/etc/k\"\nnode = \"n1.example\"\nclass = \"vip\"\n\
        default_class = true\nignore_exclude_label = true\nnetwork_policy = \"ignore\"\nserver = \"https://192.0.2.1:6443\"";
    let full = Config::parse(text).unwrap().kubernetes.unwrap();
    assert!(full.default_class && full.ignore_exclude_label && full.ignore_policies);
    assert_eq!((full.node.as_deref(), full.server.as_deref()), (Some("n1.example"), Some("https://192.0.2.1:6443")));
    for (line, says) in [
        ("enabled = \"yes\"", "kubernetes.enabled = \"yes\": expected true or false"),
        ("kubeconfig = \"k\"", "kubernetes.kubeconfig = \"k\": expected an absolute path"),
        ("node = \"N1\"", "kubernetes.node = \"N1\": expected a node's name"),
        ("class = \"/vip\"", "kubernetes.class = \"/vip\": expected a load balancer's class"),
        ("network_policy = \"enforce\"", "kubernetes.network_policy = \"enforce\": expected \"block\" or \"ignore\""),
        ("server = \"192.0.2.1\"", "kubernetes.server = \"192.0.2.1\": expected the API server as https://HOST:PORT"),
        (
            "serve = 1",
            "kubernetes.serve: no such key (there are: enabled, default_class, ignore_exclude_label, kubeconfig, node, class, server, network_policy)",
        ),
    ] {
        let found = complaint(&format!("[kubernetes]\n{line}"));
        assert!(found.starts_with(says), "{found}");
    }
}

#[test]
fn everything_set() {
    let config = Config::parse(
        r#"
        socket = "/s"
        state_dir = "/st"
        data_dir = "/d"
        cluster = "blue"
        backend = "pool"
        allow = ["10.118.0.0/16"]
        hold = "0s"
        announce = "arp"
        peers = ["192.0.2.1", "192.0.2.2"]
        metrics = ""
        metrics_listen = "127.0.0.1:9118"
        log = "json"
        log_level = "debug"
        notrack = false
        express = "off"
        [dhcp]
        interface = "eth0"
        relay = { server = "192.0.2.9", subnet = "10.118.0.0" }
        servers = ["192.0.2.9"]
        on_lost = "keep"
        [limits]
        vips_per_namespace = 5
        vips = 50
        [pool]
        cidr = "10.118.4.0/24"
        exclude = ["10.118.4.1"]
        [[pin]]
        vip = "shop/web"
        address = "10.118.0.10"
        [[gateway]]
        kind = "bird"
        [[gateway]]
        kind = "frr"
        socket = "/run/gateway/bgpd.vty"
        "#,
    )
    .unwrap();
    assert_eq!(config.metrics, Metrics { socket: None, listen: Some("127.0.0.1:9118".parse().unwrap()) });
    assert_eq!(config.log, Log { form: Form::Json, level: LevelFilter::DEBUG });
    assert_eq!(config.lease.limits, Limits { vips_per_namespace: 5, vips: 50 });
    assert_eq!((config.lease.hold, config.notrack, config.express), (Duration::ZERO, false, false));
    assert_eq!(config.interface.as_deref(), Some("eth0"));
    assert_eq!(config.lease.pins[&"shop/web".parse().unwrap()], std::net::IpAddr::from([10, 118, 0, 10]));
    let gateways: Vec<_> = config.lease.gateways.iter().map(|g| (g.daemon, g.socket.to_str().unwrap())).collect();
    let expected = [(RoutingDaemon::Bird, "/run/bird/bird.ctl"), (RoutingDaemon::Frr, "/run/gateway/bgpd.vty")];
    assert_eq!(gateways, expected);
    let Backend::Pool(pools) = config.lease.backend else { panic!("not the pool") };
    let [pool] = &pools.iter().collect::<Vec<_>>()[..] else { panic!("{pools}") };
    assert_eq!((pool.name.as_str(), pool.auto), ("default", true));
    assert_eq!(pool.exclude, [std::net::Ipv4Addr::new(10, 118, 4, 1)]);
}

#[test]
fn several_pools() {
    let text = r#"
        backend = "pool"
        [[pool]]
        name = "public"
        cidr = ["10.118.0.0/28", "10.118.1.7-10.118.1.9"]
        auto = false
        [[pool]]
        name = "shop"
        cidr = "10.118.2.0/24"
        namespaces = ["shop", "pay"]
        labels = { tier = "gold" }
    "#;
    let of_ipv6 = text.replace("auto = false", "cidr6 = \"2001:db8:118::/96\"");
    let config = Config::parse(&format!("{of_ipv6}\n[membership]")).unwrap();
    let (web, beside) = ("shop/web".parse().unwrap(), config.lease.beside.clone());
    assert_eq!(beside.of(&web, [10, 118, 1, 8].into()), Some("2001:db8:118::10.118.1.8".parse().unwrap()));
    assert_eq!(beside.of(&web, [10, 118, 2, 8].into()), None, "of the pool without");
    assert!(config.discarded().contains(&"2001:db8:118::/96".parse().unwrap()));
    let Backend::Pool(pools) = Config::parse(text).unwrap().lease.backend else { panic!("not the pools") };
    assert_eq!(pools.to_string(), "the pools public (10.118.0.0/28, 10.118.1.7-10.118.1.9), shop (10.118.2.0/24)");
    let [public, shop] = &pools.iter().collect::<Vec<_>>()[..] else { panic!("{pools}") };
    assert!(!public.auto && shop.auto && public.namespaces.is_empty());
    assert_eq!((shop.namespaces.len(), shop.labels["tier"].as_str()), (2, "gold"));
    let pool = |lines: &str| format!("[[pool]]\nname = \"a\"\ncidr = \"10.118.0.0/24\"\n[[pool]]\n{lines}");
    for (lines, says) in [
        ("cidr = \"10.118.1.0/24\"", "pool[1].name is missing: expected a name"),
        ("name = \"b\"", "pool[1].cidr is missing: expected a network of unicast addresses such as"),
        ("name = \"b\"\ncidr6 = \"fd00::/96\"", "pool[1].cidr is missing: expected a network of IPv4 such as"),
        ("name = \"a\"\ncidr = \"10.118.1.0/24\"", "pool[1].name = \"a\": expected a name of 1 to 63"),
        ("name = \"B\"\ncidr = \"10.118.1.0/24\"", "pool[1].name = \"B\": expected a name of 1 to 63"),
        (
            "name = \"b\"\ncidr = [\"10.118.1.0/24\", \"10.118.0.9-10.118.0.9\"]",
            "pool[1].cidr = \"10.118.0.9-10.118.0.9\": expected addresses that pool a (10.118.0.0/24) doesn't have",
        ),
        (
            "name = \"b\"\ncidr = [\"10.118.1.0/24\", \"10.118.1.9-10.118.2.9\"]",
            "pool[1].cidr = \"10.118.1.9-10.118.2.9\": expected each address once",
        ),
        ("name = \"b\"\ncidr = \"10.118.1.1\"", "pool[1].cidr = \"10.118.1.1\": expected a network of"),
        ("name = \"b\"\ncidr = [7]", "pool[1].cidr = 7: expected a network of"),
        ("name = \"b\"\nauto = 1", "pool[1].auto = 1: expected true or false"),
        ("name = \"b\"\nnamespaces = [\"a/b\"]", "pool[1].namespaces = \"a/b\": expected the name of a namespace"),
        ("name = \"b\"\nlabels = { a = 1 }", "pool[1].labels = { a = 1 }: expected a table of labels"),
        (
            "name = \"b\"\ncidr = \"10.118.1.0/24\"\nprefix = 1",
            "pool[1].prefix: no such key (there are: cidr6, name, cidr, exclude, auto, namespaces, labels)",
        ),
    ] {
        let found = complaint(&pool(lines));
        assert!(found.starts_with(says), "{found}");
    }
}

#[test]
fn a_pool_on_several_nodes_has_one_who_gives_its_addresses_out() {
    let several = "backend = \"pool\"\npeers = [\"192.0.2.1\", \"192.0.2.2\"]\n";
    let found = complaint(several);
    assert!(found.starts_with("backend = \"pool\": expected \"dhcp\" on several nodes"), "{found}");
    let pin = "[[pin]]\nvip = \"shop/web\"\naddress = \"10.118.0.10\"\n";
    for fine in [pin, "[kubernetes]\nenabled = true\n"] {
        Config::parse(&format!("{several}{fine}")).unwrap();
    }
    Config::parse("backend = \"pool\"\npeers = [\"192.0.2.1\"]").unwrap();
}

#[test]
fn announce_follows_the_backend() {
    let relay = "allow = [\"10.118.0.0/16\"]\n[dhcp]\nrelay = { server = \"192.0.2.9\", subnet = \"10.118.0.0\" }";
    assert_eq!(Config::parse(relay).unwrap().announce, Announce::None);
    assert_eq!(Config::parse("backend = \"pool\"").unwrap().announce, Announce::None);
}

#[test]
fn durations() {
    for (text, seconds) in [("10m", 600), ("30s", 30), ("1h", 3600), ("0s", 0), ("1h 30m", 5400), ("2days", 172_800)] {
        assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "10", "m", "+5s", "-1s", "99999999h", "5ß", "2years"] {
        assert_eq!(duration(text), None, "{text}");
    }
}

#[test]
fn complaints_name_key_value_and_what_was_expected() {
    let pin = |vip: &str, address: &str| format!("[[pin]]\nvip = \"{vip}\"\naddress = \"{address}\"\n");
    let cases = [
        (
            "sokcet = \"/x\"".into(),
            "sokcet: no such key (there are: dhcp, membership, kubernetes, dhcp6, allow, pool, ",
        ),
        ("[dhcp]\nif = 1".into(), "dhcp.if: no such key (there are: interface, relay, servers, on_lost)"),
        ("hold = 10".into(), "hold = 10: expected a time such as \"30s\", \"10m\" or \"1h 30m\""),
        ("hold = \"10\"".into(), "hold = \"10\": expected a time such as \"30s\""),
        ("[dhcp]\nservers = [\"dhcp.lan\"]".into(), "dhcp.servers = \"dhcp.lan\": expected a unicast IPv4 address"),
        ("[limits]\nvips = 0".into(), "limits.vips = 0: expected a number from 1 on"),
        ("[limits]\nvips_per_pod = 1".into(), "limits.vips_per_pod: no such key (there are: vips_per_namespace, vips)"),
        (
            "[dhcp]\nrelay = { server = \"192.0.2.9\", subnet = \"10.118.0.0\" }".into(),
            "allow is missing: expected the networks that VIPs come from",
        ),
        ("backend = \"dns\"".into(), "backend = \"dns\": expected \"dhcp\" or \"pool\""),
        ("peers = [\"10.0.0.1\", 7]".into(), "peers = 7: expected a unicast address"),
        ("peers = [\"::1\"]".into(), "peers = \"::1\": expected a unicast address"),
        ("allow = \"10.0.0.0/8\"".into(), "allow = \"10.0.0.0/8\": expected an array of strings"),
        ("allow = [\"10.0.0.1/8\"]".into(), "allow = \"10.0.0.1/8\": expected a network such as"),
        ("socket = \"run\"".into(), "socket = \"run\": expected an absolute path"),
        ("metrics = \"run\"".into(), "metrics = \"run\": expected an absolute path of at most 107 bytes, or \"\""),
        ("metrics_listen = \"9118\"".into(), "metrics_listen = \"9118\": expected an IPv4 address and a port"),
        ("log = \"xml\"".into(), "log = \"xml\": expected \"text\" or \"json\""),
        ("log_level = \"2\"".into(), "log_level = \"2\": expected \"error\", \"warn\""),
        ("notrack = \"no\"".into(), "notrack = \"no\": expected true or false"),
        ("express = true".into(), "express = true: expected \"on\" or \"off\""),
        ("express = \"auto\"".into(), "express = \"auto\": expected \"on\" or \"off\""),
        ("dhcp = 3".into(), "dhcp = 3: expected a table"),
        ("[dhcp]\nrelay = { server = \"192.0.2.1\" }".into(), "dhcp.relay.subnet is missing: expected"),
        ("[dhcp]\ninterface = \"\"".into(), "dhcp.interface = \"\": expected an interface name"),
        ("[pool]\ncidr = \"224.0.0.0/24\"".into(), "pool.cidr = \"224.0.0.0/24\": expected a network within: any"),
        (
            "allow = [\"10.1.0.0/16\"]\n[pool]\ncidr = \"10.2.0.0/24\"".into(),
            "pool.cidr = \"10.2.0.0/24\": expected a network within: 10.1",
        ),
        (
            "backend = \"pool\"\nallow = [\"10.1.0.0/16\"]".into(),
            "pool.cidr is missing: expected a network within allow",
        ),
        (pin("web", "10.0.0.1"), "pin[0].vip = \"web\": expected a VIP, <namespace>/<name>"),
        (pin("a/b", "10.0.0.1") + &pin("a/b", "10.0.0.2"), "pin[1].vip = \"a/b\": expected each VIP pinned once"),
        (
            pin("a/b", "10.0.0.1") + &pin("a/c", "10.0.0.1"),
            "pin[1].address = \"10.0.0.1\": expected an address that isn't pinned to a/b",
        ),
        (
            "allow = [\"10.1.0.0/16\"]\n".to_string() + &pin("a/b", "10.2.0.1"),
            "pin[0].address = \"10.2.0.1\": expected one within: 10.1.0.0/16",
        ),
        ("[[gateway]]\nsocket = \"/x\"".into(), "gateway[0].kind is missing: expected \"bird\" or \"frr\""),
        ("[[gateway]]\nkind = \"quagga\"".into(), "gateway[0].kind = \"quagga\": expected \"bird\" or \"frr\""),
        (
            "[[gateway]]\nkind = \"bird\"\n[[gateway]]\nkind = \"bird\"".into(),
            "gateway[1].socket = \"/run/bird/bird.ctl\": expected each daemon's socket once",
        ),
        ("\nhold = ".into(), "line 2 is not TOML: "),
    ];
    for (text, expected) in cases {
        let complaint = complaint(&text);
        assert!(complaint.starts_with(expected), "{text}\n{complaint}\n{expected}");
        assert!(!complaint.contains('\n'), "{complaint}");
    }
}

#[test]
fn what_gateways_are_not_to_get_is_known_among_nodes_alone() {
    let text = "backend = \"pool\"\n[pool]\ncidr = \"10.118.0.10-10.118.0.13\"\n[[pin]]\nvip = \"a/b\"\naddress = \"10.118.0.11\"\n\
                [[pin]]\nvip = \"a/c\"\naddress = \"10.119.0.1\"\n";
    let discarded = |text: &str| Config::parse(text).unwrap().discarded();
    let expected = ["10.118.0.10/31", "10.118.0.12/31", "10.119.0.1/32"].map(|network| network.parse().unwrap());
    assert_eq!(discarded(&format!("{text}[membership]")), BTreeSet::from(expected));
    assert_eq!(discarded(text), BTreeSet::new());
    assert_eq!(discarded("[membership]"), BTreeSet::new(), "by DHCP");
}
