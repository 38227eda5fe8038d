//! What is taken from a configuration, and what is refused.

use super::*;
use proptest::prelude::*;

fn parse(rest: &str) -> Result<Config, ConfigError> {
    let comma = if rest.is_empty() { "" } else { "," };
    Config::parse(format!(r#"{{"cniVersion":"1.0.0","name":"net","type":"viproute"{comma}{rest}}}"#).as_bytes())
}

/// The error of an unusable key, for a pod that joins a VIP.
fn message(rest: &str) -> String {
    parse(rest).map_or_else(Some, |config| config.flaw).expect("a flaw").to_string()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = parse("").unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/cni/viproute"));
    assert_eq!(config.allocator, PathBuf::from("/run/viproute/viprouted.sock"));
    assert_eq!(config.group, GroupSpec { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 });
    assert!(config.flow_owner && config.egress == Egress::Answer && !config.report_ips);
    assert_eq!(parse(r#""vipEgress":"any""#).unwrap().egress, Egress::Any);
    assert_eq!(parse(r#""vipEgress":"answer""#).unwrap().egress, Egress::Answer);
    assert_eq!(config.health, None);
    let patient = GroupSpec { buckets: 1024, idle_timer: 30, unbalanced_timer: 0 };
    assert_eq!(parse(r#""flowOwner":"off""#).unwrap().group, patient);
    assert_eq!(parse(r#""flowOwner":"off","group":{"idleTimer":5}"#).unwrap().group.idle_timer, 5);
    assert_eq!((config.mtu, config.node_ip, config.gateway), (None, None, None));
}

#[test]
fn what_runtimes_send_beside_our_keys_is_taken() {
    // containerd: capital keys, a null map; podman: aliases as an object.
    parse(r#""capabilities":{"io.kubernetes.cri.pod-annotations":true},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}"#).unwrap();
    parse(r#""runtimeConfig":{"portMappings":[{"HostPort":8081}],"aliases":{"net":["a"]}},"dns":{"Servers":[]}"#)
        .unwrap();
    parse(r#""args":{"cni":{}},"disableCheck":true,"cni.dev/attachments":[],"ipMasq":true,"ipam":{}"#).unwrap();
}

#[test]
fn annotations_are_read() {
    let config = parse(r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"viproute.io/vip":"web"}}"#).unwrap();
    assert_eq!(config.annotations["viproute.io/vip"], "web");
}

#[test]
fn a_bad_value_is_named_with_what_was_expected() {
    assert_eq!(message(r#""mtu":12"#), r#""mtu" is 12: expected 0 (that of the pod's interface), or 68 to 65535"#);
    assert_eq!(message(r#""nodeIP":"x""#), r#""nodeIP" is "x": expected an IPv4 unicast address, or """#);
    assert_eq!(message(r#""dataDir":"here""#), r#""dataDir" is "here": expected an absolute path"#);
    assert_eq!(message(r#""group":{"buckets":0}"#), r#""group.buckets" is 0: expected a number from 1 to 65535"#);
    assert_eq!(message(r#""vipEgress":"none""#), r#""vipEgress" is "none": expected "answer" or "any""#);
    assert_eq!(message(r#""flowOwner":"yes""#), r#""flowOwner" is "yes": expected "on" or "off""#);
    assert_eq!(message(r#""health":"yes""#), format!("\"health\" is \"yes\": expected {}", check::EXPECTED));
    assert_eq!(message(r#""vips":"web""#), r#""vips" is "web": expected a list of VIP names"#);
}

#[test]
fn an_unknown_key_is_named() {
    let unknown = message(r#""datadir":"/x""#);
    assert!(unknown.starts_with(r#""datadir" is not a key of viproute's: expected one of "#), "{unknown}");
    assert!(unknown.contains(" dataDir,") && !unknown.contains("cniVersion"), "{unknown}");
    let expected = r#""group.bucket" is not a key of viproute's: expected one of buckets, idleTimer, unbalancedTimer"#;
    assert_eq!(message(r#""group":{"bucket":1}"#), expected);
}

#[test]
fn a_removal_works_with_a_spoilt_configuration() {
    let spoilt = br#"{"cniVersion":"1.0.0","name":"net","mtu":"x","vips":7,"nonsense":1,"dataDir":"/d",
        "group":{"bucket":1},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":7}}"#;
    assert_eq!(Config::parse_for_removal(spoilt).unwrap().data_dir, PathBuf::from("/d"));
    assert!(Config::parse(spoilt).is_err());
    for version in ["", r#""cniVersion":"0.1.0","#, r#""cniVersion":"9.0.0","#, r#""cniVersion":7,"#] {
        let text = format!(r#"{{{version}"type":"viproute","dataDir":"/d"}}"#);
        assert_eq!(Config::parse_for_removal(text.as_bytes()).unwrap().data_dir, PathBuf::from("/d"), "{text}");
    }
}

#[test]
fn a_flaw_is_told_only_where_nothing_but_vips_needs_the_key() {
    let config = parse(r#""mtu":12,"datadir":"/x","dataDir":"/d""#).unwrap();
    assert_eq!((config.data_dir, config.mtu), ("/d".into(), None));
    assert!(matches!(config.flaw, Some(ConfigError::Invalid { key, .. }) if key == "mtu"));
    assert!(parse(r#""deviceID":"0000:3b:02.1","pciBusID":"0000:3b:02.1""#).unwrap().flaw.is_none());
    assert!(matches!(parse(r#""vips":7"#), Err(ConfigError::Invalid { .. })));
    assert!(matches!(
        parse(r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":7}"#),
        Err(ConfigError::Invalid { .. })
    ));
}

#[test]
fn null_attachments_are_none_and_a_missing_list_is_no_list() {
    let gc = |rest: &str| parse(rest).unwrap().valid_attachments;
    assert_eq!(gc(r#""cni.dev/valid-attachments":null"#), Some(Vec::new()));
    assert_eq!(gc(r#""cni.dev/valid-attachments":[]"#), Some(Vec::new()));
    assert_eq!(gc(""), None);
}

#[test]
fn versions_and_names_are_checked() {
    for bad in [r#"{"name":"a"}"#, r#"{"cniVersion":"2.0.0","name":"a"}"#, r#"{"cniVersion":"0.2.0","name":"a"}"#] {
        assert!(matches!(Config::parse(bad.as_bytes()), Err(ConfigError::Version(_))), "{bad}");
    }
    for good in SUPPORTED {
        let text = format!(r#"{{"cniVersion":"{good}","name":"a"}}"#);
        assert!(Config::parse(text.as_bytes()).is_ok(), "{good}");
    }
    assert!(matches!(Config::parse(br#"{"cniVersion":"1.0.0","name":"a b"}"#), Err(ConfigError::Invalid { .. })));
    assert!(matches!(Config::parse(br#"{"cniVersion":"1.0.0"}"#), Err(ConfigError::Missing("name"))));
    assert!(matches!(Config::parse(b" \n"), Err(ConfigError::Empty)));
    assert!(matches!(Config::parse(br#"{"cniVer"#), Err(ConfigError::NotJson(_))));
}

proptest! {
    #[test]
    fn arbitrary_input_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,200}") {
        let _ = Config::parse(&bytes);
        let _ = Config::parse_for_removal(text.as_bytes());
    }
}
