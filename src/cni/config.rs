//! The network configuration on stdin: our conflist entry, and what the runtime adds to it (CNI spec, section 1 and
//! section 3, "Deriving execution configuration").
//!
//! Keys are taken one by one, each with a sentence on what it may be, so that a bad one is named with its value.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::env::{Attachment, is_identifier};
use super::version::SUPPORTED;
use crate::health::{self, Check};

/// Under this capability runtimes hand over a pod's annotations.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// A whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// `cniVersion`, one of [`SUPPORTED`].
    pub cni_version: String,
    /// The network's name.
    pub name: String,
    /// VIPs every container of this network joins: `name` or `namespace/name`, unchecked.
    pub vips: Vec<String>,
    /// Where the registry is.
    pub data_dir: PathBuf,
    /// The allocator's socket.
    pub allocator: PathBuf,
    /// The node's address, where configured.
    pub node_ip: Option<Ipv4Addr>,
    /// The node's gateway, where configured.
    pub gateway: Option<Ipv4Addr>,
    /// How a VIP's flows are spread.
    pub group: Group,
    /// Where programs and maps are pinned.
    pub bpf_dir: PathBuf,
    /// Whether packets follow the socket that holds their flow.
    pub flow_owner: bool,
    /// What pods that don't say it themselves are checked for.
    pub health: Option<Check>,
    /// Bytes; `None`: that of the pod's own interface.
    pub mtu: Option<u32>,
    /// Whether VIPs are added to the result's `ips`.
    pub report_ips: bool,
    /// The pod's annotations; empty where the runtime hands none over.
    pub annotations: BTreeMap<String, String>,
    /// The result of the plugins before us, as it came.
    pub prev_result: Option<Box<RawValue>>,
    /// GC: the attachments that are still wanted.
    pub valid_attachments: Option<Vec<Attachment>>,
}

/// The `group` key; also how the registry keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// How many buckets flows are hashed to.
    pub buckets: u16,
    /// Seconds.
    pub idle_timer: u32,
    /// Seconds; 0: never.
    pub unbalanced_timer: u32,
}

impl Default for Group {
    fn default() -> Self {
        Self { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 }
    }
}

impl Group {
    /// Without the flow owner a bucket that moves breaks its connections: only idle ones may.
    const PATIENT: Self = Self { buckets: 1024, idle_timer: 30, unbalanced_timer: 0 };
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing came on stdin.
    #[error("stdin is empty: expected a network configuration")]
    Empty,
    /// It isn't a JSON object.
    #[error("stdin is not a JSON object")]
    NotJson(#[source] serde_json::Error),
    /// A version we don't speak.
    #[error("cniVersion is {0:?}: expected one of {list}", list = SUPPORTED.join(", "))]
    Version(String),
    /// A key that must be there is not.
    #[error("{0:?} is missing")]
    Missing(&'static str),
    /// A key we don't have.
    #[error("{0:?} is not a key of viproute's")]
    UnknownKey(String),
    /// A value that can't be.
    #[error("{key:?} is {value}: expected {expected}")]
    Invalid {
        /// Which key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Keys of the specification and its conventions, which are the runtime's or other plugins' business.
const FOREIGN_KEYS: [&str; 8] = ["type", "args", "dns", "ipam", "ipMasq", "capabilities", "disableCheck", "disableGC"];

/// The longest timer taken: a day, in seconds.
const MAX_TIMER: u32 = 86_400;

/// The keys not looked at yet.
struct Keys(BTreeMap<String, Box<RawValue>>);

impl Keys {
    fn parse(stdin: &[u8]) -> Result<Self, ConfigError> {
        if stdin.trim_ascii().is_empty() {
            return Err(ConfigError::Empty);
        }
        serde_json::from_slice(stdin).map(Self).map_err(ConfigError::NotJson)
    }

    /// Leaves a key out, named as errors name it (`group.buckets` is in `group`). False: it wasn't there.
    fn remove(&mut self, key: &str) -> bool {
        let outer = key.split('.').next().unwrap_or(key);
        self.0.remove(key).is_some() || self.0.remove(outer).is_some() || self.0.remove("runtimeConfig").is_some()
    }

    /// The value of a key; `null` counts as absent.
    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &'static str) -> Result<Option<T>, ConfigError> {
        let Some(raw) = self.0.remove(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| invalid(key, raw.get(), expected))
    }

    /// As [`Keys::take`], with a further condition.
    fn take_if<T: DeserializeOwned>(
        &mut self,
        key: &str,
        expected: &'static str,
        good: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ConfigError> {
        let shown = self.0.get(key).map_or_else(String::new, |raw| raw.get().to_owned());
        match self.take(key, expected)? {
            Some(value) if !good(&value) => Err(invalid(key, &shown, expected)),
            other => Ok(other),
        }
    }

    fn path(&mut self, key: &str, default: &str) -> Result<PathBuf, ConfigError> {
        let path: Option<PathBuf> = self.take_if(key, "an absolute path", |p: &PathBuf| p.is_absolute())?;
        Ok(path.unwrap_or_else(|| default.into()))
    }

    /// An address; `""`, the default, means it is to be found out.
    fn address(&mut self, key: &str) -> Result<Option<Ipv4Addr>, ConfigError> {
        const EXPECTED: &str = "an IPv4 unicast address, or \"\"";
        let good = |text: &String| text.is_empty() || text.parse().is_ok_and(is_unicast);
        let text: Option<String> = self.take_if(key, EXPECTED, good)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    fn finish(self) -> Result<(), ConfigError> {
        let known = |key: &str| FOREIGN_KEYS.contains(&key) || key.starts_with("cni.dev/");
        match self.0.into_keys().find(|key| !known(key)) {
            Some(key) => Err(ConfigError::UnknownKey(key)),
            None => Ok(()),
        }
    }
}

fn invalid(key: &str, value: &str, expected: &'static str) -> ConfigError {
    const SHOWN: usize = 200;
    let mut value = value.to_owned();
    if let Some((end, _)) = value.char_indices().nth(SHOWN) {
        value.truncate(end);
        value.push('…');
    }
    ConfigError::Invalid { key: key.to_owned(), value, expected }
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast() && !address.is_loopback()
}

/// `cniVersion` alone, for answers to calls whose configuration is no good otherwise.
pub fn version_of(stdin: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Only {
        #[serde(rename = "cniVersion")]
        cni_version: String,
    }
    serde_json::from_slice(stdin).ok().map(|only: Only| only.cni_version)
}

impl Config {
    /// Reads and checks a configuration in full.
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfigError> {
        let mut keys = Keys::parse(stdin)?;
        let config = Self::take_from(&mut keys)?;
        keys.finish()?;
        Ok(config)
    }

    /// For DEL and GC, which must work though somebody has spoilt the configuration since the ADD: what can't be
    /// used is left out.
    pub fn parse_for_removal(stdin: &[u8]) -> Result<Self, ConfigError> {
        let mut keys = Keys::parse(stdin)?;
        loop {
            let mut rest = Keys(keys.0.clone());
            match Self::take_from(&mut rest) {
                Err(ConfigError::Invalid { key, .. } | ConfigError::UnknownKey(key)) if keys.remove(&key) => {}
                other => return other,
            }
        }
    }

    fn take_from(keys: &mut Keys) -> Result<Self, ConfigError> {
        let cni_version: String = keys.take("cniVersion", "a string")?.unwrap_or_default();
        if !SUPPORTED.contains(&cni_version.as_str()) {
            return Err(ConfigError::Version(cni_version));
        }
        let name_rule = "letters, digits, '_', '.' and '-', a letter or digit first";
        let flow_owner = flow_owner(keys)?;
        let name = keys.take_if("name", name_rule, |name: &String| is_identifier(name))?;
        Ok(Self {
            cni_version,
            name: name.ok_or(ConfigError::Missing("name"))?,
            vips: keys.take("vips", "a list of VIP names")?.unwrap_or_default(),
            data_dir: keys.path("dataDir", "/var/lib/cni/viproute")?,
            allocator: keys.path("allocator", "/run/viproute/viprouted.sock")?,
            node_ip: keys.address("nodeIP")?,
            gateway: keys.address("gateway")?,
            group: group(keys, flow_owner)?,
            bpf_dir: keys.path("bpfDir", "/sys/fs/bpf/viproute")?,
            flow_owner,
            health: health(keys)?,
            mtu: mtu(keys)?,
            report_ips: keys.take("reportIPs", "true or false")?.unwrap_or(false),
            annotations: annotations(keys)?,
            prev_result: keys.0.remove("prevResult").filter(|raw| raw.get() != "null"),
            valid_attachments: valid_attachments(keys)?,
        })
    }
}

fn group(keys: &mut Keys, flow_owner: bool) -> Result<Group, ConfigError> {
    let mut group = if flow_owner { Group::default() } else { Group::PATIENT };
    let Some(inner) = keys.take::<BTreeMap<String, Box<RawValue>>>("group", "an object")? else {
        return Ok(group);
    };
    let within = |key: &str, error| match error {
        ConfigError::Invalid { value, expected, .. } => {
            ConfigError::Invalid { key: format!("group.{key}"), value, expected }
        }
        other => other,
    };
    let mut inner = Keys(inner);
    if let Some(buckets) =
        inner.take_if("buckets", "a number from 1 to 65535", |n: &u16| *n > 0).map_err(|e| within("buckets", e))?
    {
        group.buckets = buckets;
    }
    for (key, timer) in [("idleTimer", &mut group.idle_timer), ("unbalancedTimer", &mut group.unbalanced_timer)] {
        let seconds = inner.take_if(key, "whole seconds from 0 to 86400", |n: &u32| *n <= MAX_TIMER);
        if let Some(seconds) = seconds.map_err(|e| within(key, e))? {
            *timer = seconds;
        }
    }
    match inner.0.into_keys().next() {
        Some(key) => Err(ConfigError::UnknownKey(format!("group.{key}"))),
        None => Ok(group),
    }
}

fn flow_owner(keys: &mut Keys) -> Result<bool, ConfigError> {
    let owner = keys.take_if("flowOwner", "\"on\" or \"off\"", |o: &String| o == "on" || o == "off")?;
    Ok(owner.is_none_or(|owner| owner == "on"))
}

fn health(keys: &mut Keys) -> Result<Option<Check>, ConfigError> {
    let text = keys.take_if("health", health::EXPECTED, |text: &String| health::read(text).is_ok())?;
    Ok(text.and_then(|text| health::read(&text).ok().flatten()))
}

/// 68 is the least an IPv4 device may have (RFC 791).
fn mtu(keys: &mut Keys) -> Result<Option<u32>, ConfigError> {
    let expected = "0 (that of the pod's interface), or 68 to 65535";
    let mtu = keys.take_if("mtu", expected, |mtu: &u32| *mtu == 0 || (68..=65_535).contains(mtu))?;
    Ok(mtu.filter(|mtu| *mtu != 0))
}

fn annotations(keys: &mut Keys) -> Result<BTreeMap<String, String>, ConfigError> {
    let expected = "an object";
    let runtime: Option<BTreeMap<String, Box<RawValue>>> = keys.take("runtimeConfig", expected)?;
    // A pod without annotations: containerd sends null.
    let mut runtime = Keys(runtime.unwrap_or_default());
    Ok(runtime.take(ANNOTATIONS, "an object of strings")?.unwrap_or_default())
}

fn valid_attachments(keys: &mut Keys) -> Result<Option<Vec<Attachment>>, ConfigError> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let expected = "a list of {\"containerID\", \"ifname\"}";
    let list: Option<Vec<Wire>> = keys.take("cni.dev/valid-attachments", expected)?;
    let attachment = |wire: Wire| Attachment { container_id: wire.container_id, ifname: wire.ifname };
    Ok(list.map(|list| list.into_iter().map(attachment).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(rest: &str) -> Result<Config, ConfigError> {
        let comma = if rest.is_empty() { "" } else { "," };
        Config::parse(format!(r#"{{"cniVersion":"1.0.0","name":"net","type":"viproute"{comma}{rest}}}"#).as_bytes())
    }

    fn message(rest: &str) -> String {
        parse(rest).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_those_of_the_readme() {
        let config = parse("").unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/var/lib/cni/viproute"));
        assert_eq!(config.allocator, PathBuf::from("/run/viproute/viprouted.sock"));
        assert_eq!(config.group, Group { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 });
        assert!(config.flow_owner && !config.report_ips);
        assert_eq!(config.health, None);
        let patient = Group { buckets: 1024, idle_timer: 30, unbalanced_timer: 0 };
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
        let config =
            parse(r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"viproute.io/vip":"web"}}"#).unwrap();
        assert_eq!(config.annotations["viproute.io/vip"], "web");
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected() {
        assert_eq!(message(r#""mtu":12"#), r#""mtu" is 12: expected 0 (that of the pod's interface), or 68 to 65535"#);
        assert_eq!(message(r#""nodeIP":"x""#), r#""nodeIP" is "x": expected an IPv4 unicast address, or """#);
        assert_eq!(message(r#""dataDir":"here""#), r#""dataDir" is "here": expected an absolute path"#);
        assert_eq!(message(r#""group":{"buckets":0}"#), r#""group.buckets" is 0: expected a number from 1 to 65535"#);
        assert_eq!(message(r#""flowOwner":"yes""#), r#""flowOwner" is "yes": expected "on" or "off""#);
        assert_eq!(message(r#""health":"yes""#), format!("\"health\" is \"yes\": expected {}", health::EXPECTED));
        assert_eq!(message(r#""vips":"web""#), r#""vips" is "web": expected a list of VIP names"#);
    }

    #[test]
    fn an_unknown_key_is_named() {
        assert_eq!(message(r#""datadir":"/x""#), r#""datadir" is not a key of viproute's"#);
        assert_eq!(message(r#""group":{"bucket":1}"#), r#""group.bucket" is not a key of viproute's"#);
    }

    #[test]
    fn a_removal_works_with_a_spoilt_configuration() {
        let spoilt = br#"{"cniVersion":"1.0.0","name":"net","mtu":"x","vips":7,"nonsense":1,"dataDir":"/d",
            "group":{"bucket":1},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":7}}"#;
        assert_eq!(Config::parse_for_removal(spoilt).unwrap().data_dir, PathBuf::from("/d"));
        assert!(Config::parse(spoilt).is_err());
    }

    #[test]
    fn versions_and_names_are_checked() {
        for bad in [r#"{"name":"a"}"#, r#"{"cniVersion":"2.0.0","name":"a"}"#, r#"{"cniVersion":"0.3.1","name":"a"}"#] {
            assert!(matches!(Config::parse(bad.as_bytes()), Err(ConfigError::Version(_))), "{bad}");
        }
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
}
