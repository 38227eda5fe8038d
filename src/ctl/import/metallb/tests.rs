use super::*;
use crate::lease::settings::Backend;
use crate::node::config::Config;

const FILE: &str = "metallb.yaml";

fn imported(text: &str) -> Imported {
    import(Path::new(FILE), text).unwrap_or_else(|error| panic!("{}", crate::with_causes(&error)))
}

fn pools(imported: &Imported) -> crate::lease::pools::Pools {
    match Config::parse(&imported.toml).map(|config| config.lease.backend) {
        Ok(Backend::Pool(pools)) => pools,
        other => panic!("{other:?}\n{}", imported.toml),
    }
}

const WHOLE: &str = r#"
apiVersion: v1
kind: List
items:
- apiVersion: metallb.io/v1beta1
  kind: IPAddressPool
  metadata: { name: everybody, namespace: metallb-system }
  spec: { addresses: [192.168.10.0/24, 192.168.9.1-192.168.9.5, "fd00:10::1/64"] }
- apiVersion: metallb.io/v1beta1
  kind: IPAddressPool
  metadata: { name: shop, namespace: metallb-system, labels: { zone: east } }
  spec:
    addresses: ["192.168.20.10/28"]
    avoidBuggyIPs: true
    serviceAllocation:
      priority: 50
      namespaces: [shop, pay]
      serviceSelectors:
      - matchLabels: { tier: gold }
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: named, namespace: metallb-system }
spec: { addresses: [10.0.0.254/31], autoAssign: false }
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: { name: lan, namespace: metallb-system }
spec: { ipAddressPools: [everybody, named], interfaces: [eth1] }
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: { name: routers, namespace: metallb-system }
spec:
  aggregationLength: 32
  ipAddressPoolSelectors: [{ matchLabels: { zone: east } }]
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: { name: tor, namespace: metallb-system }
spec: { myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.254, peerPort: 179 }
"#;

#[test]
fn pools_and_announcements_become_viprouted_toml() {
    let found = imported(WHOLE);
    assert_eq!(found.left, [""; 0], "all of it has a counterpart");
    let config = Config::parse(&found.toml).unwrap();
    assert_eq!(config.lease.beside.to_string(), "fd00:10::/64");
    assert_eq!((config.announce, config.interface.as_deref()), (crate::node::config::Announce::Arp, Some("eth1")));
    assert!(
        found.toml.contains("viproutectl announce bird --asn 64512 --router 192.0.2.254:64513\n"),
        "{}",
        found.toml
    );
    let pools = pools(&found);
    let shown: Vec<String> = pools.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "shop (192.168.20.0-192.168.20.15)",
            "everybody (192.168.10.0-192.168.10.255, 192.168.9.1-192.168.9.5)",
            "named (10.0.0.254-10.0.0.255)"
        ]
    );
    let [shop, everybody, named] = &pools.iter().collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!((shop.size(), everybody.size(), named.size()), (15, 261, 2), "the first and last ones too");
    assert!(shop.auto && everybody.auto && !named.auto);
    assert_eq!((shop.namespaces.len(), shop.labels["tier"].as_str()), (2, "gold"));
}

#[test]
fn what_has_no_counterpart_is_named() {
    let object = |kind: &str, spec: &str| format!("---\nkind: {kind}\nmetadata: {{ name: x }}\nspec: {spec}\n");
    let pool = |allocation: &str| {
        object("IPAddressPool", &format!("{{ addresses: [192.0.2.0/28], serviceAllocation: {allocation} }}"))
    };
    for (text, words) in [
        (object("Community", "{ communities: [] }"), "Community x: routers are told no communities"),
        (object("ConfigMap", "{}"), "ConfigMap x: the form of before MetalLB 0.13"),
        (object("AddressPool", "{}"), "AddressPool x: the form of before"),
        (object("Service", "{}"), "Service x: it is no pool or announcement"),
        (object("BFDProfile", "{}"), "BFDProfile x: set BFD in the routing daemon's"),
        (
            object("IPAddressPool", "{ addresses: [\"fd00::/64\"] }"),
            "IPAddressPool x: fd00::/64: a pool of IPv6 alone has no counterpart",
        ),
        (
            object("IPAddressPool", "{ addresses: [10.0.0.0/24, \"fd00::/112\"] }"),
            "IPAddressPool x: fd00::/112: expected a network of /96 or shorter",
        ),
        (pool("{ namespaceSelectors: [{ matchLabels: { a: b } }] }"), "namespaceSelectors can't be said here"),
        (pool("{ serviceSelectors: [{}, {}] }"), "more than one of serviceSelectors can't be said here"),
        (
            pool("{ serviceSelectors: [{ matchExpressions: [{ key: a, operator: Exists }] }] }"),
            "matchExpressions of serviceSelectors can't be said here",
        ),
        (pool("{}"), "IPAddressPool x: nothing announces it there"),
        (
            object("L2Advertisement", "{ nodeSelectors: [{}] }"),
            "L2Advertisement x: nodeSelectors: give the other nodes",
        ),
        (object("L2Advertisement", "{ interfaces: [a, b] }"), "L2Advertisement x: interfaces: VIPs are announced on"),
        (object("BGPAdvertisement", "{ localPref: 100 }"), "BGPAdvertisement x: localPref: set it"),
        (object("BGPAdvertisement", "{ aggregationLength: 24 }"), "BGPAdvertisement x: aggregationLength: each VIP"),
        (object("BGPAdvertisement", "{ communities: [a] }"), "BGPAdvertisement x: communities: set them"),
        (object("BGPAdvertisement", "{ peers: [a] }"), "BGPAdvertisement x: peers: each router"),
        (object("BGPPeer", "{ bfdProfile: fast }"), "BGPPeer x: bfdProfile: set BFD"),
        (object("BGPPeer", "{ dynamicASN: external }"), "BGPPeer x: dynamicASN: name"),
        (object("BGPPeer", "{ passwordSecret: { name: p } }"), "BGPPeer x: passwordSecret: write it into"),
    ] {
        let found = imported(&format!(
            "{text}{}",
            object("IPAddressPool", "{ addresses: [10.0.0.0/24] }").replace("name: x", "name: y")
        ));
        assert!(found.left.iter().any(|line| line.contains(words)), "{words}: {found:?}");
        if words.contains("can't be said here") {
            assert!(!pools(&found).iter().next().unwrap().auto, "whom it limits it to isn't known: {}", found.toml);
        }
    }
}

#[test]
fn what_cant_be_read_is_refused() {
    let refused = |text: &str| crate::with_causes(&import(Path::new(FILE), text).unwrap_err());
    for (text, words) in [
        ("", "no IPAddressPool with IPv4 addresses is in it"),
        ("kind: ConfigMap\nmetadata: { name: config }", "is in it: ConfigMap config: the form of before MetalLB 0.13"),
        ("a: [", "metallb.yaml: expected YAML"),
        (
            "kind: IPAddressPool\nmetadata: { name: x }\nspec: { addresses: [192.0.2.9-192.0.2.1] }",
            "metallb.yaml: IPAddressPool x: addresses = 192.0.2.9-192.0.2.1: expected an IPv4 network",
        ),
        ("kind: IPAddressPool\nmetadata: { name: x }\nspec: { addresses: 7 }", "IPAddressPool x: spec = "),
    ] {
        let found = refused(text);
        assert!(found.contains(words), "{text:?}: {found}");
    }
}
