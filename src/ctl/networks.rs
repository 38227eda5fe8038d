//! A runtime's network configurations with viproute's part in them, as the plugin gets it.

use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;
use serde_json::{Map, Value};

use crate::chain::networks;
use crate::cni::protocol::Config;
use crate::cni::protocol::config::ConfigError;
use crate::cni::protocol::version::SUPPORTED;

pub use crate::chain::networks::type_of;

/// A network configuration of the runtime's.
pub struct Network {
    /// Its file.
    pub path: PathBuf,
    /// What it says, or why libcni refuses it.
    pub content: Result<Content, String>,
}

/// What a network configuration says.
pub struct Content {
    /// It is a list, by its file's name.
    pub is_list: bool,
    /// Its plugins, in order.
    pub plugins: Vec<Map<String, Value>>,
    /// `cniVersion`, and `cniVersions`: a runtime takes the newest it knows.
    pub versions: Vec<String>,
    /// viproute among them, as often as it is there.
    pub entries: Vec<Entry>,
    /// It is one that podman made.
    pub is_podmans: bool,
}

/// viproute's part of a network.
pub struct Entry {
    /// How many plugins come before it.
    pub place: usize,
    /// Its configuration, or what is wrong with that.
    pub config: Result<Config, ConfigError>,
}

impl Network {
    /// All of them, in the order a runtime takes them. The first is containerd's and CRI-O's.
    pub fn read_all(dir: &Path) -> Vec<Self> {
        networks::files(dir).into_iter().map(|path| Self { content: Content::read(&path), path }).collect()
    }

    /// viproute's part, where it has one.
    pub fn entry(&self) -> Option<&Entry> {
        self.content.as_ref().ok()?.entries.first()
    }

    /// It gives a pod no network.
    pub fn is_loopback(&self) -> bool {
        self.content.as_ref().is_ok_and(|content| content.plugins.iter().all(|plugin| type_of(plugin) == "loopback"))
    }
}

impl Network {
    /// The ranges that its plugins give pods their addresses from, as far as they say so there.
    pub fn ranges(&self) -> Vec<Ipv4Network> {
        let plugins = self.content.iter().flat_map(|content| &content.plugins);
        plugins.filter_map(|plugin| plugin.get("ipam")).flat_map(ranges_of).collect()
    }
}

/// As host-local (`ranges`, `subnet`), whereabouts (`range`, `ipRanges`), Calico (`ipv4_pools`) and static (`addresses`) write
/// them; what is no IPv4 network is passed over.
fn ranges_of(ipam: &Value) -> Vec<Ipv4Network> {
    let mut found = Vec::new();
    for (key, value) in ipam.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("subnet" | "range", Value::String(text)) => found.extend(network(text)),
            ("ranges" | "ipRanges", Value::Array(list)) => found.extend(list.iter().flat_map(nested)),
            ("ipv4_pools", Value::Array(list)) => {
                found.extend(list.iter().filter_map(Value::as_str).filter_map(network));
            }
            _ => {}
        }
    }
    found
}

/// Lists of lists of objects, or of objects.
fn nested(value: &Value) -> Vec<Ipv4Network> {
    match value {
        Value::Array(list) => list.iter().flat_map(nested).collect(),
        other => ranges_of(other),
    }
}

/// whereabouts' `192.168.2.225-192.168.2.230/28` has the prefix at its end.
fn network(text: &str) -> Option<Ipv4Network> {
    let text = text.split_once('-').map_or(text, |(_, last)| last);
    let network: Ipv4Network = text.parse().ok()?;
    Ipv4Network::new(network.network(), network.prefix()).ok()
}

impl Content {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("can't be read: {e}"))?;
        Self::parse(&text, networks::is_list(path))
    }

    /// What libcni makes of it, and what the plugin makes of its part.
    pub fn parse(text: &str, is_list: bool) -> Result<Self, String> {
        let networks::Content { is_list, name, plugins, versions } = networks::Content::parse(text, is_list)?;
        let entry = |(place, plugin): (usize, &Map<String, Value>)| {
            let config = || configuration(name.as_deref(), plugin, &versions);
            (type_of(plugin) == "viproute").then(|| Entry { place, config: config() })
        };
        let entries = plugins.iter().enumerate().filter_map(entry).collect();
        Ok(Self { is_list, entries, is_podmans: text.contains("podman"), plugins, versions })
    }

    /// The newest version that viproute speaks; `None`: the plugin refuses every call.
    pub fn version(&self) -> Option<&'static str> {
        spoken(&self.versions)
    }
}

fn spoken(versions: &[String]) -> Option<&'static str> {
    SUPPORTED.into_iter().rev().find(|version| versions.iter().any(|said| said == version))
}

/// The entry as a runtime hands it to the plugin. Its version is a finding of its own.
fn configuration(name: Option<&str>, entry: &Map<String, Value>, versions: &[String]) -> Result<Config, ConfigError> {
    let mut entry = entry.clone();
    entry.insert("cniVersion".to_owned(), spoken(versions).unwrap_or(SUPPORTED[0]).into());
    entry.extend(name.map(|name| ("name".to_owned(), name.into())));
    let config = Config::parse(Value::Object(entry).to_string().as_bytes())?;
    match config.flaw {
        Some(flaw) => Err(flaw),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_spoken_counts() {
        let version = |versions: &str| {
            let text = format!(r#"{{"name":"n",{versions}"plugins":[{{"type":"viproute"}}]}}"#);
            Content::parse(&text, true).unwrap().version()
        };
        assert_eq!(version(r#""cniVersion":"0.3.1","#), Some("0.3.1"));
        assert_eq!(version(r#""cniVersions":["0.4.0","1.1.0","1.0.0","9.0.0"],"#), Some("1.1.0"));
        assert_eq!(version(r#""cniVersion":"0.2.0","cniVersions":["0.3.1"],"#), Some("0.3.1"));
        assert_eq!(version(r#""cniVersion":"0.2.0","#), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn ranges_are_found_as_plugins_write_them() {
        let cases = [
            (r#"{"type":"host-local","ranges":[[{"subnet":"10.9.0.0/16"}],[{"subnet":"fd00::/64"}]]}"#, "10.9.0.0/16"),
            (r#"{"type":"host-local","subnet":"10.8.1.0/24","routes":[{"dst":"0.0.0.0/0"}]}"#, "10.8.1.0/24"),
            (r#"{"type":"whereabouts","range":"192.168.2.225-192.168.2.230/28"}"#, "192.168.2.224/28"),
            (r#"{"type":"whereabouts","ipRanges":[{"range":"10.7.0.0/24"}]}"#, "10.7.0.0/24"),
            (r#"{"type":"calico-ipam","ipv4_pools":["10.6.0.0/24","default"]}"#, "10.6.0.0/24"),
        ];
        for (ipam, want) in cases {
            let found = ranges_of(&serde_json::from_str(ipam).unwrap());
            assert_eq!(found, [want.parse().unwrap()], "{ipam}");
        }
        assert_eq!(ranges_of(&Value::Null), []);
    }
}
