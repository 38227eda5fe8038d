//! The network configuration on stdin: our conflist entry, and what the runtime adds to it (CNI spec, section 1 and
//! section 3, "Deriving execution configuration").
//!
//! Keys are taken one by one, each with a sentence on what it may be, so that a bad one is named with its value.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::model::{AttachmentId, CheckSpec, DEFAULT_BPF_DIR, Egress, GroupSpec, NetworkSpec, check};

use super::env::is_identifier;
use super::version::SUPPORTED;

/// Under this capability runtimes hand over a pod's annotations.
pub const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// A whole configuration, checked.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a key of the conflist
pub struct Config {
    /// `cniVersion`, one of [`SUPPORTED`]; of a removal's configuration whatever it says.
    pub cni_version: String,
    /// The network's name; of a removal's configuration perhaps empty.
    pub name: String,
    /// A key that can't be used, which a pod that joins no VIP has no need of: its default is taken.
    pub flaw: Option<ConfigError>,
    /// VIPs every container of this network joins: `name` or `namespace/name`, unchecked.
    pub vips: Vec<String>,
    /// Where the registry is.
    pub data_dir: PathBuf,
    /// The allocator's socket.
    pub allocator: PathBuf,
    /// The node's address, where configured.
    pub node_ip: Option<IpAddr>,
    /// The node's gateway, where configured.
    pub gateway: Option<IpAddr>,
    /// How a VIP's flows are spread.
    pub group: GroupSpec,
    /// Where programs and maps are pinned.
    pub bpf_dir: PathBuf,
    /// Whether packets follow the socket that holds their flow.
    pub flow_owner: bool,
    /// What may leave a pod with a VIP as the source.
    pub egress: Egress,
    /// The check of pods whose annotations name none.
    pub health: Option<CheckSpec>,
    /// Bytes; `None`: that of the pod's own interface.
    pub mtu: Option<u32>,
    /// Whether VIPs are added to the result's `ips`.
    pub report_ips: bool,
    /// Whether STATUS fails where only pods with a VIP could not be served.
    pub strict_status: bool,
    /// Whether pods that name no VIP are recorded, so that they can join some later.
    pub register: bool,
    /// The pod's annotations; empty where the runtime hands none over.
    pub annotations: BTreeMap<String, String>,
    /// The result of the plugins before us, as it came.
    pub prev_result: Option<Box<RawValue>>,
    /// GC: the attachments that are still wanted.
    pub valid_attachments: Option<Vec<AttachmentId>>,
}

/// A configuration that can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing came on stdin.
    #[error("stdin is empty: expected a network configuration")]
    Empty,
    /// It isn't a JSON object.
    #[error("stdin is not a JSON object")]
    NotJson(#[source] Arc<serde_json::Error>),
    /// A version we don't speak.
    #[error("cniVersion is {0:?}: expected one of {list}", list = SUPPORTED.join(", "))]
    Version(String),
    /// A key that must be there is not.
    #[error("{0:?} is missing")]
    Missing(&'static str),
    /// A key we don't have.
    #[error("{key:?} is not a key of viproute's: expected one of {known}")]
    UnknownKey {
        /// With the object that holds it, as in `group.size`.
        key: String,
        /// The keys that exist there.
        known: String,
    },
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

/// Keys of the specification and its conventions, which are the runtime's or other plugins' business; the last two Multus
/// adds to every plugin of a delegate.
const FOREIGN_KEYS: [&str; 10] =
    ["type", "args", "dns", "ipam", "ipMasq", "capabilities", "disableCheck", "disableGC", "deviceID", "pciBusID"];

/// These decide whether a pod joins a VIP at all: without them nothing can be said of any pod.
const DECISIVE_KEYS: [&str; 3] = ["vips", "runtimeConfig", ANNOTATIONS];

/// Keys that are read and are none of ours: the specification's.
const OTHERS_KEYS: [&str; 4] = ["cniVersion", "name", "runtimeConfig", "cni.dev/valid-attachments"];

/// The longest timer taken: a day, in seconds.
const MAX_TIMER: u32 = 86_400;

/// The keys not taken yet, and the names of those that were asked for.
#[derive(Clone)]
struct Keys {
    rest: BTreeMap<String, Box<RawValue>>,
    known: Vec<&'static str>,
}

impl Keys {
    fn parse(stdin: &[u8]) -> Result<Self, ConfigError> {
        if stdin.trim_ascii().is_empty() {
            return Err(ConfigError::Empty);
        }
        serde_json::from_slice(stdin).map(Self::new).map_err(|e| ConfigError::NotJson(Arc::new(e)))
    }

    fn new(rest: BTreeMap<String, Box<RawValue>>) -> Self {
        Self { rest, known: Vec::new() }
    }

    /// Leaves a key out, named as errors name it (`group.buckets` is in `group`). False: it wasn't there.
    fn remove(&mut self, key: &str) -> bool {
        let outer = key.split('.').next().unwrap_or(key);
        self.rest.remove(key).is_some()
            || self.rest.remove(outer).is_some()
            || self.rest.remove("runtimeConfig").is_some()
    }

    /// The value of a key; `null` counts as absent.
    fn take<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        self.known.push(key);
        let Some(raw) = self.rest.remove(key) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|_| invalid(key, raw.get(), expected))
    }

    /// As [`Keys::take`], with a further condition.
    fn take_if<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        expected: &'static str,
        good: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ConfigError> {
        let shown = self.rest.get(key).map_or_else(String::new, |raw| raw.get().to_owned());
        match self.take(key, expected)? {
            Some(value) if !good(&value) => Err(invalid(key, &shown, expected)),
            other => Ok(other),
        }
    }

    fn path(&mut self, key: &'static str, default: &str) -> Result<PathBuf, ConfigError> {
        let path: Option<PathBuf> = self.take_if(key, "an absolute path", |p: &PathBuf| p.is_absolute())?;
        Ok(path.unwrap_or_else(|| default.into()))
    }

    /// An address; `""`, the default, means it is to be found out.
    fn address(&mut self, key: &'static str) -> Result<Option<IpAddr>, ConfigError> {
        const EXPECTED: &str = "an IPv4 unicast address, or \"\"";
        let good = |text: &String| text.is_empty() || text.parse().is_ok_and(is_unicast);
        let text: Option<String> = self.take_if(key, EXPECTED, good)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    fn finish(self) -> Result<(), ConfigError> {
        let known = |key: &str| FOREIGN_KEYS.contains(&key) || key.starts_with("cni.dev/");
        match self.rest.keys().find(|key| !known(key)) {
            Some(key) => Err(self.unknown(key.clone())),
            None => Ok(()),
        }
    }

    /// The error for an unknown key.
    fn unknown(&self, key: String) -> ConfigError {
        let ours = self.known.iter().filter(|key| !OTHERS_KEYS.contains(key));
        ConfigError::UnknownKey { key, known: ours.copied().collect::<Vec<_>>().join(", ") }
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
    /// Reads and checks a configuration. A pod that joins no VIP is passed through whatever viproute's own keys say; the
    /// first that can't be used is the [`Config::flaw`].
    pub fn parse(stdin: &[u8]) -> Result<Self, ConfigError> {
        let config = Self::read(Keys::parse(stdin)?, |key| !DECISIVE_KEYS.contains(&key))?;
        if !SUPPORTED.contains(&config.cni_version.as_str()) {
            return Err(ConfigError::Version(config.cni_version));
        }
        if config.name.is_empty() {
            return Err(match config.flaw {
                Some(ConfigError::Invalid { key, value, expected }) if key == "name" => {
                    ConfigError::Invalid { key, value, expected }
                }
                _ => ConfigError::Missing("name"),
            });
        }
        Ok(config)
    }

    /// For DEL and GC, which must work though the configuration was spoilt since the ADD: what can't be used is left out,
    /// of whatever version it is.
    pub fn parse_for_removal(stdin: &[u8]) -> Result<Self, ConfigError> {
        Self::read(Keys::parse(stdin)?, |_| true)
    }

    /// Leaves out what can't be used, as long as it `may_be_left_out`.
    fn read(mut keys: Keys, may_be_left_out: impl Fn(&str) -> bool) -> Result<Self, ConfigError> {
        let mut first = None;
        loop {
            let mut rest = keys.clone();
            let read = Self::take_from(&mut rest).and_then(|config| rest.finish().map(|()| config));
            let error = match read {
                Ok(config) => return Ok(Self { flaw: first, ..config }),
                Err(error) => error,
            };
            match &error {
                ConfigError::Invalid { key, .. } | ConfigError::UnknownKey { key, .. }
                    if may_be_left_out(key) && keys.remove(key) => {}
                _ => return Err(error),
            }
            first = first.or(Some(error));
        }
    }

    /// What it says of VIPs.
    pub fn network(&self) -> NetworkSpec {
        NetworkSpec {
            name: self.name.clone(),
            mtu: self.mtu,
            node_ip: self.node_ip,
            gateway: self.gateway,
            group: self.group,
            bpf_dir: self.bpf_dir.clone(),
            flow_owner: self.flow_owner,
            egress: self.egress.into(),
            health: self.health.clone().map(Into::into),
        }
    }

    fn take_from(keys: &mut Keys) -> Result<Self, ConfigError> {
        let name_rule = "letters, digits, '_', '.' and '-', a letter or digit first";
        let cni_version: Option<String> = keys.take("cniVersion", "a string")?;
        let name = keys.take_if("name", name_rule, |name: &String| is_identifier(name))?;
        let flow_owner = flow_owner(keys)?;
        Ok(Self {
            cni_version: cni_version.unwrap_or_default(),
            name: name.unwrap_or_default(),
            flaw: None,
            vips: keys.take("vips", "a list of VIP names")?.unwrap_or_default(),
            data_dir: keys.path("dataDir", "/var/lib/cni/viproute")?,
            allocator: keys.path("allocator", "/run/viproute/viprouted.sock")?,
            node_ip: keys.address("nodeIP")?,
            gateway: keys.address("gateway")?,
            group: group(keys, flow_owner)?,
            bpf_dir: keys.path("bpfDir", DEFAULT_BPF_DIR)?,
            flow_owner,
            egress: egress(keys)?,
            health: health(keys)?,
            mtu: mtu(keys)?,
            report_ips: keys.take("reportIPs", "true or false")?.unwrap_or(false),
            strict_status: keys.take("strictStatus", "true or false")?.unwrap_or(false),
            register: keys.take("register", "true or false")?.unwrap_or(false),
            annotations: annotations(keys)?,
            prev_result: keys.rest.remove("prevResult").filter(|raw| raw.get() != "null"),
            valid_attachments: valid_attachments(keys)?,
        })
    }
}

fn group(keys: &mut Keys, flow_owner: bool) -> Result<GroupSpec, ConfigError> {
    let mut group = if flow_owner { GroupSpec::default() } else { GroupSpec::PATIENT };
    let Some(inner) = keys.take::<BTreeMap<String, Box<RawValue>>>("group", "an object")? else {
        return Ok(group);
    };
    let within = |key: &str, error| match error {
        ConfigError::Invalid { value, expected, .. } => {
            ConfigError::Invalid { key: format!("group.{key}"), value, expected }
        }
        other => other,
    };
    let mut inner = Keys::new(inner);
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
    match inner.rest.keys().next() {
        Some(key) => Err(inner.unknown(format!("group.{key}"))),
        None => Ok(group),
    }
}

fn flow_owner(keys: &mut Keys) -> Result<bool, ConfigError> {
    let owner = keys.take_if("flowOwner", "\"on\" or \"off\"", |o: &String| o == "on" || o == "off")?;
    Ok(owner.is_none_or(|owner| owner == "on"))
}

fn egress(keys: &mut Keys) -> Result<Egress, ConfigError> {
    let good = |text: &String| text.parse::<Egress>().is_ok();
    let text = keys.take_if("vipEgress", "\"answer\" or \"any\"", good)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or_default())
}

fn health(keys: &mut Keys) -> Result<Option<CheckSpec>, ConfigError> {
    let text = keys.take_if("health", check::EXPECTED, |text: &String| check::parse(text).is_ok())?;
    Ok(text.and_then(|text| check::parse(&text).ok().flatten()))
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
    let mut runtime = Keys::new(runtime.unwrap_or_default());
    Ok(runtime.take(ANNOTATIONS, "an object of strings")?.unwrap_or_default())
}

fn valid_attachments(keys: &mut Keys) -> Result<Option<Vec<AttachmentId>>, ConfigError> {
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    const KEY: &str = "cni.dev/valid-attachments";
    // As Go writes an empty list: CRI-O does, for a network that no pod is on. Only a key that isn't there is none.
    let is_null = keys.rest.get(KEY).is_some_and(|raw| raw.get() == "null");
    let list: Option<Vec<Wire>> = keys.take(KEY, "a list of {\"containerID\", \"ifname\"}")?;
    let list = list.or(is_null.then(Vec::new));
    let attachment = |wire: Wire| AttachmentId { container_id: wire.container_id, ifname: wire.ifname };
    Ok(list.map(|list| list.into_iter().map(attachment).collect()))
}

#[cfg(test)]
mod tests;
