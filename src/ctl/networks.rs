//! A runtime's network configurations, read as libcni reads them (`ConfFiles`, `ConfListFromFile`, `ConfFromFile` in
//! libcni/conf.go).

use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;
use serde_json::{Map, Value};

use crate::cni::protocol::Config;
use crate::cni::protocol::config::ConfigError;
use crate::cni::protocol::version::SUPPORTED;

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
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        // A link to a directory is taken, and can't be read then.
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
        let mut paths: Vec<_> = files.map(|entry| entry.path()).filter(|path| ending(path).is_some()).collect();
        paths.sort();
        paths.into_iter().map(|path| Self { content: Content::read(&path), path }).collect()
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

/// What is behind the last dot, where it is a configuration's. A name may begin with that dot.
fn ending(path: &Path) -> Option<&'static str> {
    let (_, ending) = path.file_name()?.to_str()?.rsplit_once('.')?;
    ["conflist", "conf", "json"].into_iter().find(|known| *known == ending)
}

impl Content {
    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("can't be read: {e}"))?;
        Self::parse(&text, ending(path) == Some("conflist"))
    }

    /// What libcni makes of it.
    pub fn parse(text: &str, is_list: bool) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|e| format!("is not valid JSON: {e}"))?;
        let whole = whole.as_object().ok_or("is not a JSON object")?;
        let plugins = if is_list { list(whole)? } else { single(whole)? };
        let versions = versions(whole)?;
        let entry = |(place, plugin): (usize, &Map<String, Value>)| {
            (type_of(plugin) == "viproute").then(|| Entry { place, config: configuration(whole, plugin, &versions) })
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

fn list(whole: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    if whole.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("has no \"name\"".to_owned());
    }
    let plugins =
        whole.get("plugins").ok_or("has no \"plugins\"")?.as_array().ok_or("has \"plugins\" that are no list")?;
    if plugins.is_empty() {
        return Err("has no plugin in \"plugins\"".to_owned());
    }
    let objects = plugins.iter().map(|plugin| plugin.as_object().cloned());
    let plugins: Vec<_> = objects.collect::<Option<_>>().ok_or("has a plugin that is no object")?;
    if plugins.iter().any(|plugin| type_of(plugin).is_empty()) {
        return Err("has a plugin without \"type\"".to_owned());
    }
    Ok(plugins)
}

fn single(whole: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    if !type_of(whole).is_empty() {
        return Ok(vec![whole.clone()]);
    }
    Err(if whole.contains_key("plugins") {
        "is a list of plugins, which runtimes take from a .conflist only".to_owned()
    } else {
        "has no \"type\"".to_owned()
    })
}

fn versions(whole: &Map<String, Value>) -> Result<Vec<String>, String> {
    let text =
        |value: &Value, key: &str| value.as_str().map(str::to_owned).ok_or(format!("has a {key:?} that is no text"));
    let mut versions = Vec::new();
    if let Some(version) = whole.get("cniVersion") {
        versions.push(text(version, "cniVersion")?);
    }
    if let Some(list) = whole.get("cniVersions") {
        let list = list.as_array().ok_or("has \"cniVersions\" that are no list")?;
        for version in list {
            versions.push(text(version, "cniVersions")?);
        }
    }
    Ok(versions)
}

/// A plugin's `type`.
pub fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The entry as a runtime hands it to the plugin. Its version is a finding of its own.
fn configuration(
    whole: &Map<String, Value>,
    entry: &Map<String, Value>,
    versions: &[String],
) -> Result<Config, ConfigError> {
    let mut entry = entry.clone();
    entry.insert("cniVersion".to_owned(), spoken(versions).unwrap_or(SUPPORTED[0]).into());
    entry.extend(whole.get("name").map(|name| ("name".to_owned(), name.clone())));
    let config = Config::parse(Value::Object(entry).to_string().as_bytes())?;
    match config.flaw {
        Some(flaw) => Err(flaw),
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, is_list: bool) -> String {
        Content::parse(text, is_list).err().unwrap_or_else(|| panic!("{text} was taken"))
    }

    #[test]
    fn what_libcni_refuses() {
        for (text, wrong) in [
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#, "has no \"name\""),
            (r#"{"name":"n"}"#, "has no \"plugins\""),
            (r#"{"name":"n","plugins":{}}"#, "has \"plugins\" that are no list"),
            (r#"{"name":"n","plugins":[]}"#, "has no plugin in \"plugins\""),
            (r#"{"name":"n","plugins":[7]}"#, "has a plugin that is no object"),
            (r#"{"name":"n","plugins":[{"type":"ptp"},{}]}"#, "has a plugin without \"type\""),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"ptp"}]}"#, "has a \"cniVersion\" that is no text"),
            (
                r#"{"name":"n","cniVersions":"1.0.0","plugins":[{"type":"ptp"}]}"#,
                "has \"cniVersions\" that are no list",
            ),
            ("[]", "is not a JSON object"),
        ] {
            assert_eq!(refused(text, true), wrong, "{text}");
        }
        assert!(refused("", true).starts_with("is not valid JSON"));
        assert!(refused(r#"{"name":"n","plugins":[{"type":"ptp"}]}"#, false).starts_with("is a list of plugins"));
        assert_eq!(refused("{}", false), "has no \"type\"");
        assert_eq!(Content::parse(r#"{"type":"ptp"}"#, false).map(|content| content.plugins.len()), Ok(1));
    }

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
    fn names_of_files() {
        let of = |name: &str| ending(Path::new("/d").join(name).as_path());
        assert_eq!(
            (of("10-a.conflist"), of(".10-a.conf"), of(".json")),
            (Some("conflist"), Some("conf"), Some("json"))
        );
        assert_eq!((of("conflist"), of("10-a.conflist.orig"), of("10-a.CONF")), (None, None, None));
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
