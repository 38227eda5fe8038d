//! What containerd, podman and other plugins send, through the project's own types. The crate cni-plugin 0.2.1 refuses or
//! changes each of these (docs/design/cni-plugin-crate.md).

use serde_json::value::RawValue;
use serde_json::{Value, json};
use viproute::cni::protocol::result::Addresses;
use viproute::cni::protocol::{Call, Command, Config, PrevResult};

/// A call with these variables beside, or in place of, those of an ordinary ADD.
fn call(variables: &[(&str, &str)]) -> Call {
    let ordinary = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let find = |list: &[(&str, &str)], name: &str| list.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into());
    Call::from_env(|name| find(variables, name).or_else(|| find(&ordinary, name)))
        .unwrap_or_else(|error| panic!("{variables:?}: {error}"))
}

/// An entry with this beside the required keys.
fn config(extra: &Value) -> Config {
    let mut entry = json!({ "cniVersion": "1.0.0", "name": "net", "type": "viproute" });
    entry.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    Config::parse(entry.to_string().as_bytes()).unwrap_or_else(|error| panic!("{extra}: {error}"))
}

fn result(text: &str) -> PrevResult {
    PrevResult::parse(&RawValue::from_string(text.to_owned()).unwrap())
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn container_ids_may_have_capitals() {
    let attachment = call(&[("CNI_CONTAINERID", "Web_1.A-b")]).attachment.unwrap();
    assert_eq!(attachment.container_id, "Web_1.A-b");
}

#[test]
fn the_verbs_of_cni_1_1_are_known() {
    assert_eq!(call(&[("CNI_COMMAND", "GC")]).command, Command::Gc);
    assert_eq!(call(&[("CNI_COMMAND", "STATUS")]).command, Command::Status);
}

/// go-cni, in containerd and Nomad, for a pod without ports and for one whose ports Go wrote; podman's aliases; what a
/// service mesh adds to every entry.
#[test]
fn what_runtimes_put_into_the_configuration() {
    for extra in [
        json!({ "runtimeConfig": { "portMappings": null } }),
        json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": null } }),
        json!({ "runtimeConfig": { "portMappings": [{ "HostPort": 8081, "ContainerPort": 80, "Protocol": "tcp" }] } }),
        json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 1, "containerPort": 1, "protocol": "sctp" }] } }),
        json!({ "runtimeConfig": { "aliases": { "web": ["alias", "0123456789ab"] } } }),
        json!({ "runtimeConfig": { "dns": { "Servers": ["10.0.0.10"], "Searches": [], "Options": ["ndots:5"] } } }),
        json!({ "dns": { "nameservers": ["fe80::1%eth0"] } }),
        json!({ "ipam": {} }),
    ] {
        assert!(config(&extra).annotations.is_empty());
    }
}

/// As ptp of containernetworking-plugins 1.1.1 answered: its host veth has no sandbox, and there is no dns.
#[test]
fn a_host_end_has_no_sandbox() {
    let ptp = r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"d2:90:ff:8f:77:80","name":"veth9f5aa0c1"},
        {"mac":"2e:9d:98:ef:8d:78","name":"eth0","sandbox":"/run/netns/a"}],
        "ips":[{"address":"172.26.118.2/24","gateway":"172.26.118.1","interface":1}]}"#;
    let result = result(ptp);
    assert_eq!(result.addresses("eth0").of_interface, Some([172, 26, 118, 2].into()));
}

#[test]
fn a_result_may_have_nothing_or_null() {
    for text in [
        "{}",
        r#"{"cniVersion":"1.0.0","interfaces":null,"ips":null,"routes":null}"#,
        r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"","sandbox":"/x"}],"dns":{}}"#,
        r#"{"cniVersion":"1.0.0","ips":[{"address":"2001:db8::2/64","gateway":""}]}"#,
    ] {
        assert_eq!(result(text).addresses("eth0"), Addresses::default(), "{text}");
    }
}

/// What the plugins before wrote reaches the runtime to the letter, of older and newer versions too.
#[test]
fn nothing_of_a_result_is_lost() {
    for part in [
        r#"{"version":"4","address":"10.1.0.2/24"}"#,
        r#"{"name":"eth0","mtu":1400,"sandbox":"/x","socketPath":"/s"}"#,
        r#"{"dst":"0.0.0.0/0","mtu":1400,"table":5}"#,
        "1.50",
        "123456789012345678901",
    ] {
        for key in ["ips", "interfaces", "routes", "x-other"] {
            let text = format!(r#"{{"cniVersion":"1.0.0","{key}":[{part}]}}"#);
            let again = result(&text).to_json(if part.contains("version") { "0.4.0" } else { "1.0.0" }).unwrap();
            assert!(again.contains(part), "{text} became {again}");
        }
    }
}
