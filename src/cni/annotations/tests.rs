use super::*;
use proptest::prelude::*;

fn member(namespace: &str, annotations: &[(&str, &str)], vips: &[&str]) -> Result<Option<Vec<Want>>, Error> {
    let config = serde_json::json!({"cniVersion": "1.0.0", "name": "net", "vips": vips});
    annotated(namespace, &config, annotations)
}

fn annotated(
    namespace: &str,
    config: &serde_json::Value,
    annotations: &[(&str, &str)],
) -> Result<Option<Vec<Want>>, Error> {
    let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
    let mut config = config.clone();
    config["runtimeConfig"] = serde_json::json!({"io.kubernetes.cri.pod-annotations": annotations});
    with_args(&format!("K8S_POD_NAMESPACE={namespace}"), &config)
}

fn with_args(args: &str, config: &serde_json::Value) -> Result<Option<Vec<Want>>, Error> {
    let env = |name: &str| {
        Some(match name {
            "CNI_COMMAND" => "ADD".into(),
            "CNI_ARGS" => args.into(),
            _ => "x".into(),
        })
    };
    read(&Call::from_env(env).unwrap(), &Config::parse(config.to_string().as_bytes()).unwrap())
}

/// A Nomad allocation of the namespace shop.
fn allocated(arguments: &str, config: &serde_json::Value) -> Result<Option<Vec<Want>>, Error> {
    with_args(&format!("IgnoreUnknown=true;{arguments};NOMAD_NAMESPACE=shop;NOMAD_GROUP_NAME=g"), config)
}

fn names(wants: Option<Vec<Want>>) -> Vec<String> {
    wants.unwrap().iter().map(|want| want.vip.to_string()).collect()
}

#[test]
fn a_pod_that_names_no_vip_is_none_of_ours() {
    assert_eq!(member("shop", &[("other.io/x", "y")], &[]).unwrap(), None);
}

#[test]
fn annotation_and_conflist_add_up() {
    let found = member("shop", &[("viproute.io/vip", " web , api")], &["dns/dns", "log"]).unwrap();
    let sources: Vec<_> = found.iter().flatten().map(|want| want.source.to_string()).collect();
    assert_eq!(sources, ["annotation", "annotation", "conflist", "conflist"]);
    assert_eq!(names(found), ["shop/web", "shop/api", "dns/dns", "shop/log"]);
    assert_eq!(names(member("", &[], &["web"]).unwrap()), ["default/web"]);
}

#[test]
fn an_annotation_cannot_reach_another_namespace() {
    let error = member("shop", &[("viproute.io/vip", "bank/web")], &[]).unwrap_err();
    assert!(error.to_string().starts_with("viproute.io/vip is \"bank/web\": expected"), "{error}");
}

#[test]
fn bad_lists_are_refused() {
    for bad in ["", "a,,b", "a,a", "Web", "a,b,c,d,e,f,g,h,i", "../x", "a b"] {
        assert!(member("shop", &[("viproute.io/vip", bad)], &[]).is_err(), "{bad:?}");
    }
    assert!(member("shop", &[("viproute.io/vip", "web")], &["shop/web"]).is_err());
    assert!(member("shop", &[("viproute.io/vip", "web"), ("viproute.io/port", "80/tcp")], &[]).is_err());
}

/// Of a pod that joins its own `web` and `api` and the conflist's `dns/dns`.
fn with(annotations: &[(&str, &str)]) -> Result<Vec<Want>, Error> {
    let mut all = vec![(VIP, "web,api")];
    all.extend(annotations);
    member("shop", &all, &["dns/dns"]).map(Option::unwrap)
}

fn ports_of(annotations: &[(&str, &str)]) -> Vec<String> {
    let wants = with(annotations).unwrap();
    let shown = |ports: &[PortMap]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    wants.iter().map(|Want { vip, ports, .. }| format!("{vip}: {}", shown(ports))).collect()
}

#[track_caller]
fn assert_refused(annotations: &[(&str, &str)], named: &str) {
    let error = with(annotations).unwrap_err();
    assert!(error.to_string().contains(named), "{annotations:?}: {error}");
    assert_eq!(error.code(), crate::cni::protocol::Code::InvalidConfig);
}

#[test]
fn a_port_is_for_all_vips_or_for_one() {
    let none = ["shop/web: ", "shop/api: ", "dns/dns: "];
    assert_eq!(ports_of(&[]), none);
    let both = ["shop/web: 80/tcp 53/udp", "shop/api: 80/tcp 53/udp", "dns/dns: 80/tcp 53/udp"];
    assert_eq!(ports_of(&[(PORTS, "80/tcp, 53/udp")]), both);
    let each = ["shop/web: 443/tcp 9/udp", "shop/api: 80/tcp 9/udp", "dns/dns: 53/udp 53/tcp 9/udp"];
    let list = "web=443/tcp, shop/api=80/tcp ,dns/dns=53/udp,dns/dns=53/tcp,9/udp";
    assert_eq!(ports_of(&[(PORTS, list)]), each);
}

#[test]
fn bad_ports_are_refused() {
    for bad in ["80", "0/tcp", "65536/tcp", "80/sctp", "+80/tcp", "80/tcp,", "", "web=", "80/tcp,web=80", "=80/tcp"] {
        assert!(with(&[(PORTS, bad)]).is_err(), "{bad}");
    }
    assert_refused(&[(PORTS, "80/tcp,443")], "viproute.io/ports is \"443\": expected a list like 80/tcp");
    assert_refused(&[(PORTS, "web=80/tcp,dns/dns=53/udp")], "names no port for VIP shop/api");
    assert_refused(&[(PORTS, "80/tcp,mail=25/tcp")], "\"mail\", which the pod doesn't join");
    assert_refused(&[(PORTS, "80/tcp,dns=53/udp")], "\"dns\", which the pod doesn't join");
    assert_refused(&[(PORTS, "80/tcp,Web=25/tcp")], "Web");
    assert_refused(&[(PORTS, "80/tcp,53/udp,80/tcp")], "names 80/tcp twice");
    assert_refused(&[(PORTS, "80/tcp,53/udp,web=080/tcp")], "names 80/tcp twice for VIP shop/web");
}

#[test]
fn a_pods_port_may_have_another_number() {
    let list = "80:8080/tcp, web=443:8443/tcp, 53:5353/udp,dns/dns=8080:80/tcp";
    let expected = [
        "shop/web: 80:8080/tcp 443:8443/tcp 53:5353/udp",
        "shop/api: 80:8080/tcp 53:5353/udp",
        "dns/dns: 80:8080/tcp 53:5353/udp 8080:80/tcp",
    ];
    assert_eq!(ports_of(&[(PORTS, list)]), expected);
    for bad in ["80:/tcp", ":80/tcp", "80:0/tcp", "80:http/tcp", "80:8080", "web=80:8080:1/tcp"] {
        assert_refused(&[(PORTS, bad)], &format!("viproute.io/ports is \"{bad}\": expected a list like 80/tcp"));
    }
    for shared in ["80:8080/tcp,443:8080/tcp", "8080/tcp,80:8080/tcp"] {
        assert!(with(&[(PORTS, shared)]).is_ok(), "two ports may have one number in the pod: {shared}");
    }
    assert_refused(&[(PORTS, "80:8080/tcp,80:9090/tcp")], "names 80/tcp twice");
    // Unbound sockets have the pod's numbers.
    let same = [(PORTS, "web=53:5353/udp,api=54:5353/udp,dns/dns=53/udp"), (UDP_REPLY, "vip")];
    assert_refused(&same, "have 5353/udp both");
}

#[test]
fn a_vip_has_64_ports_at_most() {
    let list = |count: u16| (1..=count).map(|n| format!("{n}/tcp")).collect::<Vec<_>>().join(",");
    assert_eq!(with(&[(PORTS, &list(64))]).unwrap()[1].ports.len(), 64);
    assert_refused(&[(PORTS, &list(65))], "more than 64 ports for VIP shop/web");
    let one_more = format!("{},api=70/tcp", list(64));
    assert_refused(&[(PORTS, &one_more)], "more than 64 ports for VIP shop/api");
}

#[test]
fn unbound_udp_sockets_must_know_their_vip() {
    let reply = |ports, value| [(PORTS, ports), (UDP_REPLY, value)];
    let replies = |annotations: &[_]| with(annotations).unwrap().iter().map(|want| want.udp_reply).collect::<Vec<_>>();
    assert_eq!(replies(&[(PORTS, "53/udp")]), [false, false, false]);
    assert_eq!(replies(&reply("80/tcp,dns/dns=53/udp,api=54/udp", "vip")), [false, true, true]);
    for bad in ["", "VIP", "pod", "true", "vip "] {
        assert_refused(&reply("80/tcp,web=53/udp", bad), &format!("{UDP_REPLY} is {bad:?}: expected \"vip\""));
    }
    assert_refused(&reply("80/tcp", "vip"), "viproute.io/udp-reply is \"vip\": expected UDP ports");
    assert_refused(&[(UDP_REPLY, "vip")], "viproute.io/udp-reply is \"vip\": expected UDP ports");
    assert_refused(&reply("53/udp", "vip"), "VIP shop/api and another one of the pod have 53/udp both");
    assert_refused(&reply("80/tcp,web=53/udp,api=53/udp", "vip"), "53/udp both");
}

#[test]
fn weight_and_stickiness_are_checked() {
    assert_eq!(with(&[(WEIGHT, "255")]).unwrap()[0].weight, 255);
    for bad in ["0", "256", "-1", "x", ""] {
        assert_refused(&[(WEIGHT, bad)], WEIGHT);
    }
    assert!(!with(&[]).unwrap()[0].udp_sticky);
    assert!(with(&[(UDP_STICKY, "true")]).unwrap()[0].udp_sticky);
    assert!(!with(&[(UDP_STICKY, "false")]).unwrap()[0].udp_sticky);
    for bad in ["yes", "1", "True", ""] {
        assert_refused(&[(UDP_STICKY, bad)], "viproute.io/udp-sticky");
    }
}

#[test]
fn the_families_of_all_its_vips_are_one_choice() {
    assert_eq!(with(&[]).unwrap()[0].families, None);
    for text in ["ipv6", "ipv4", "ipv4,ipv6"] {
        let families = with(&[(FAMILIES, text)]).unwrap()[0].families;
        assert_eq!(families.map(|families| families.to_string()).as_deref(), Some(text));
    }
    for bad in ["", "ipv5", "both", "ipv6,ipv6"] {
        assert_refused(&[(FAMILIES, bad)], "viproute.io/families");
    }
}

#[test]
fn a_check_has_something_to_look_at() {
    assert_eq!(with(&[]).unwrap()[0].health, None);
    assert_eq!(with(&[(HEALTH, "none")]).unwrap()[0].health, None);
    assert_eq!(with(&[(HEALTH, "http:80/ fall=2")]).unwrap()[0].health, "http:80/ fall=2".parse().ok());
    assert_eq!(with(&[(PORTS, "80/tcp"), (HEALTH, "tcp")]).unwrap()[0].health, "tcp".parse().ok());
    assert_eq!(with(&[(PORTS, "53/udp"), (HEALTH, "listen")]).unwrap()[0].health, "listen".parse().ok());
    for bad in ["", "always", "listen every=1s", "tcp interval=1"] {
        assert_refused(&[(PORTS, "80/tcp"), (HEALTH, bad)], &format!("{HEALTH} is {bad:?}: expected \"none\""));
    }
    assert_refused(&[(HEALTH, "listen")], "is \"listen\": expected a port for VIP shop/web in viproute.io/ports");
    let ports = "80/tcp,dns/dns=53/udp";
    assert!(with(&[(PORTS, ports), (HEALTH, "tcp")]).is_ok());
    let ports = "web=80/tcp,api=80/tcp,dns/dns=53/udp";
    assert_refused(&[(PORTS, ports), (HEALTH, "tcp")], "expected a TCP port for VIP dns/dns");
}

#[test]
fn an_argument_says_what_an_annotation_says() {
    let config = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "vips": ["dns/dns"], "health": "listen"});
    let arguments = "VIPROUTE_VIP=web, api;VIPROUTE_PORTS=web:80/tcp,api:81/tcp,dns/dns:53/udp;VIPROUTE_WEIGHT=3;\
                     VIPROUTE_HEALTH=http:80/ fall:2;VIPROUTE_UDP_REPLY=vip;VIPROUTE_UDP_STICKY=true;VIPROUTE_FAMILIES=ipv6";
    let wants = allocated(arguments, &config).unwrap().unwrap();
    let annotations = [
        (VIP, "web, api"),
        (PORTS, "web=80/tcp,api=81/tcp,dns/dns=53/udp"),
        (WEIGHT, "3"),
        (HEALTH, "http:80/ fall=2"),
        (UDP_REPLY, "vip"),
        (UDP_STICKY, "true"),
        (FAMILIES, "ipv6"),
    ];
    assert_eq!(wants, annotated("shop", &config, &annotations).unwrap().unwrap());
    // A number before a colon is a port.
    let arguments =
        "VIPROUTE_VIP=web,80;VIPROUTE_PORTS=80:8080/tcp,web:443:8443/tcp,shop/80:53:5353/udp,dns/dns:53/udp";
    let annotations = [(VIP, "web,80"), (PORTS, "80:8080/tcp,web=443:8443/tcp,80=53:5353/udp,dns/dns=53/udp")];
    let wants = allocated(arguments, &config).unwrap().unwrap();
    assert_eq!(wants, annotated("shop", &config, &annotations).unwrap().unwrap());
    // Without one the conflist's value counts.
    let wants = allocated("VIPROUTE_VIP=web;VIPROUTE_PORTS=80/tcp", &config).unwrap().unwrap();
    assert_eq!((wants[0].health.clone(), wants.len()), ("listen".parse().ok(), 2));
}

/// Annotations come first, then arguments, the conflist last.
#[test]
fn an_annotation_goes_before_an_argument() {
    let config = serde_json::json!({"cniVersion": "1.0.0", "name": "n",
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {VIP: "web", WEIGHT: "7"}}});
    let wants = allocated("VIPROUTE_VIP=api;VIPROUTE_WEIGHT=3;VIPROUTE_UDP_STICKY=true", &config).unwrap().unwrap();
    assert_eq!((wants[0].vip.to_string(), wants[0].weight, wants[0].udp_sticky), ("shop/web".to_owned(), 7, true));
    assert_eq!(wants.len(), 1);
}

#[test]
fn bad_arguments_are_refused_by_their_own_names() {
    let config = serde_json::json!({"cniVersion": "1.0.0", "name": "n"});
    let listed = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "vips": ["web"]});
    let cases = [
        ("VIPROUTE_VIP=bank/web", &config, "VIPROUTE_VIP is \"bank/web\": expected"),
        (
            "VIPROUTE_VIPS=web",
            &config,
            "CNI_ARGS' argument \"VIPROUTE_VIPS\" is none of viproute's: expected VIPROUTE_VIP,",
        ),
        ("VIPROUTE_VIP=web;VIPROUTE_UDPREPLY=vip", &config, "\"VIPROUTE_UDPREPLY\" is none of viproute's"),
        ("VIPROUTE_WEIGHT=1", &config, "\"VIPROUTE_WEIGHT\" without VIPROUTE_VIP"),
        ("VIPROUTE_VIP=web;VIPROUTE_PORTS=80", &config, "VIPROUTE_PORTS is \"80\": expected a list like"),
        ("VIPROUTE_VIP=web;VIPROUTE_PORTS=api:80/tcp", &config, "VIPROUTE_PORTS names VIP \"api\""),
        ("VIPROUTE_WEIGHT=0", &listed, "VIPROUTE_WEIGHT is \"0\": expected a number"),
        ("VIPROUTE_HEALTH=tcp", &listed, "VIPROUTE_HEALTH (or \"health\") is \"tcp\": expected a TCP port"),
        ("VIPROUTE_UDP_REPLY=vip", &listed, "VIPROUTE_UDP_REPLY is \"vip\": expected UDP ports in VIPROUTE_PORTS"),
        ("VIPROUTE_UDP_STICKY=yes", &listed, "VIPROUTE_UDP_STICKY is \"yes\": expected"),
        ("VIPROUTE_VIP=web", &listed, "(VIPROUTE_VIP and \"vips\" together)"),
    ];
    for (arguments, config, said) in cases {
        let error = allocated(arguments, config).expect_err(arguments).to_string();
        assert!(error.contains(said), "{arguments}: {error}");
    }
    assert_eq!(allocated("other=x", &config).unwrap(), None);
}

/// Nomad's namespaces may have capitals, a VIP's may not.
#[test]
fn a_namespace_that_can_have_no_vip_is_named() {
    let config = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "vips": ["web"]});
    let said = |args| with_args(args, &config).unwrap_err().to_string();
    let error = said("NOMAD_NAMESPACE=Shop");
    assert!(error.starts_with("NOMAD_NAMESPACE is \"Shop\": expected"), "{error}");
    let error = said("K8S_POD_NAMESPACE=Shop");
    assert!(error.starts_with("K8S_POD_NAMESPACE is \"Shop\": expected"), "{error}");
}

proptest! {
    #[test]
    fn annotation_values_never_panic(
        vip in "\\PC{0,80}", ports in "\\PC{0,40}", weight in "\\PC{0,10}", reply in "\\PC{0,5}", sticky in "\\PC{0,5}",
    ) {
        let annotations =
            [(VIP, &*vip), (PORTS, &*ports), (WEIGHT, &*weight), (UDP_REPLY, &*reply), (UDP_STICKY, &*sticky)];
        let _ = member("shop", &annotations, &[]);
        let _ = member("shop", &[(VIP, "web"), (PORTS, &ports)], &[]);
    }

    /// Whatever list is accepted: each VIP has ports, none twice, none without an item that speaks of it.
    #[test]
    fn every_vip_has_the_ports_of_its_items(
        items in proptest::collection::vec(("(web=|api=|dns/dns=|)", 1u16..20, "tcp|udp"), 1..12),
        reply: bool,
    ) {
        let list: Vec<String> = items.iter().map(|(of, number, transport)| format!("{of}{number}/{transport}")).collect();
        let list = list.join(",");
        let mut annotations = vec![(PORTS, list.as_str())];
        if reply { annotations.push((UDP_REPLY, "vip")); }
        if let Ok(wants) = with(&annotations) {
            let mut udp = Vec::new();
            for Want { vip, ports, .. } in &wants {
                let mut have: Vec<String> = ports.iter().map(ToString::to_string).collect();
                let of = [String::new(), format!("{}=", vip.name()), format!("{vip}=")];
                let mut spoken: Vec<String> = items.iter().filter(|(name, ..)| of.contains(name))
                    .map(|(_, number, transport)| format!("{number}/{transport}")).collect();
                udp.extend(have.iter().filter(|port| port.ends_with("udp")).cloned());
                have.sort();
                spoken.sort();
                prop_assert!(!have.is_empty());
                prop_assert_eq!(&have, &spoken);
                have.dedup();
                prop_assert_eq!(have.len(), spoken.len());
            }
            if reply {
                prop_assert!(!udp.is_empty());
                let all = udp.len();
                udp.sort();
                udp.dedup();
                prop_assert_eq!(udp.len(), all);
            }
        }
    }
}
