//! Findings about the runtime's networks: whether it calls viproute at all, and with what viproute needs.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::cni::Config;
use crate::cni::config::{ANNOTATIONS, ConfigError};
use crate::cni::version::SUPPORTED;

use super::scene::Scene;
use super::{Cure, Finding, advice, command, quoted, quoted_text};

/// A network configuration of the runtime's.
pub struct Network {
    /// Its file.
    pub path: PathBuf,
    /// What it says, or what is wrong with it.
    pub content: Result<Content, String>,
}

/// What a network configuration says.
pub struct Content {
    /// Its plugins, in order.
    plugins: Vec<Map<String, Value>>,
    /// viproute among them.
    entry: Option<Entry>,
    /// It is one that podman made.
    is_podmans: bool,
}

/// viproute's part of a network.
pub struct Entry {
    /// How many plugins come before it.
    place: usize,
    /// Its configuration, or what is wrong with that.
    pub config: Result<Config, ConfigError>,
}

impl Network {
    /// All of them, in the order a runtime takes them. The first is containerd's and CRI-O's.
    pub fn read_all(dir: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_network = |path: &PathBuf| {
            path.extension().is_some_and(|ending| ending == "conflist" || ending == "conf" || ending == "json")
        };
        let mut paths: Vec<_> = entries.filter(is_network).collect();
        paths.sort();
        let content = |path: &PathBuf| Content::parse(&std::fs::read_to_string(path).map_err(|e| e.to_string())?);
        paths.into_iter().map(|path| Self { content: content(&path), path }).collect()
    }

    /// viproute's part, where it has one.
    pub fn entry(&self) -> Option<&Entry> {
        self.content.as_ref().ok()?.entry.as_ref()
    }
}

impl Content {
    fn parse(text: &str) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|e| format!("is not valid JSON: {e}"))?;
        let whole = whole.as_object().ok_or("is not a JSON object")?;
        let plugins = match whole.get("plugins") {
            Some(plugins) => plugins.as_array().cloned().ok_or("has \"plugins\" that are no list")?,
            None => vec![Value::Object(whole.clone())],
        };
        let objects = plugins.iter().map(|plugin| plugin.as_object().cloned());
        let plugins: Vec<_> = objects.collect::<Option<_>>().ok_or("has a plugin that is no object")?;
        let place = plugins.iter().position(|plugin| type_of(plugin) == "viproute");
        let entry = place.map(|place| Entry { place, config: configuration(whole, &plugins[place]) });
        Ok(Self { plugins, entry, is_podmans: text.contains("podman") })
    }
}

fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The entry as a runtime hands it to the plugin.
fn configuration(whole: &Map<String, Value>, entry: &Map<String, Value>) -> Result<Config, ConfigError> {
    let mut entry = entry.clone();
    for key in ["cniVersion", "name"] {
        entry.extend(whole.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    Config::parse(Value::Object(entry).to_string().as_bytes())
}

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for network in &scene.networks {
        match &network.content {
            Err(wrong) => findings.push(invalid(network, wrong)),
            Ok(content) => {
                findings.extend(content.entry.iter().flat_map(|entry| of_entry(scene, network, content, entry)));
            }
        }
    }
    findings.extend(absent(scene));
    findings
}

fn invalid(network: &Network, wrong: &str) -> Finding {
    let why = "The runtime can't use this network, and may use another one in its place.";
    let what = format!("{} {wrong}", network.path.display());
    Finding::error(what, why, advice(format!("Put it right; `jq . {}` shows where it breaks.", quoted(&network.path))))
}

/// What joins a chain (install.sh has it too).
const ENTRY: &str = r#"{"type":"viproute","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#;

/// The network that a runtime takes lacks viproute.
fn absent(scene: &Scene<'_>) -> Option<Finding> {
    let why = "The runtime never calls viproute: pods start without their VIPs.";
    let Some(first) = scene.networks.first() else {
        let what = format!("{} has no network", scene.places.conf_dir.display());
        return Some(Finding::error(what, why, command("./install.sh install")));
    };
    // One whose containers join by "vips" is asked for by its name (podman, Nomad).
    let by_name =
        |network: &Network| network.entry().is_some_and(|e| e.config.as_ref().is_ok_and(|c| !c.vips.is_empty()));
    if first.content.is_err() || first.entry().is_some() || scene.networks.iter().any(by_name) {
        return None;
    }
    let path = &first.path;
    if path.extension().is_none_or(|ending| ending != "conflist") {
        let what = format!("{} is no .conflist: the runtime reads a single plugin from it", path.display());
        return Some(Finding::error(
            what,
            why,
            advice("Put that plugin into the \"plugins\" of a .conflist, and viproute after it."),
        ));
    }
    let what = format!("viproute is not in {}, the network that containerd and CRI-O use", path.display());
    Some(Finding::error(what, why, edited(path, &format!(".plugins += [{ENTRY}]"))))
}

fn edited(path: &Path, program: &str) -> Cure {
    command(edit(path, program))
}

/// The file rewritten by jq: under a name that runtimes ignore, then in one step.
fn edit(path: &Path, program: &str) -> String {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let (path, new) = (quoted(path), quoted(Path::new(&new)));
    format!("jq {} {path} >{new} && mv {new} {path}", quoted_text(program))
}

fn of_entry(scene: &Scene<'_>, network: &Network, content: &Content, entry: &Entry) -> Vec<Finding> {
    let path = network.path.display();
    let config = match &entry.config {
        Ok(config) => config,
        Err(ConfigError::Version(version)) => {
            let what = format!("{path} has cniVersion {version:?}: expected one of {}", SUPPORTED.join(", "));
            let why = "viproute refuses every call: no pod of this network starts.";
            return vec![Finding::error(what, why, edited(&network.path, r#".cniVersion = "1.0.0""#))];
        }
        Err(error) => {
            let why = "viproute refuses every call: no pod of this network starts.";
            return vec![Finding::error(format!("{path}: {error}"), why, advice("Put viproute's entry there right."))];
        }
    };
    let mut findings: Vec<Finding> = annotations(network, content, entry, config).into_iter().collect();
    findings.extend(order(network, content, entry));
    findings.extend(elsewhere(scene, network, config));
    findings
}

/// Whether pods of this network can name their VIPs.
fn annotations(network: &Network, content: &Content, entry: &Entry, config: &Config) -> Option<Finding> {
    if !config.vips.is_empty() {
        return None;
    }
    let path = network.path.display();
    if content.is_podmans {
        let what = format!("{path} is podman's and has no \"vips\"");
        let why = "podman passes no annotations to plugins: no container can join a VIP.";
        let vips = r#"(.plugins[] | select(.type == "viproute")).vips = ["NAME"]"#;
        let cure = format!("With your VIP's name as NAME: {}", edit(&network.path, vips));
        return Some(Finding::warning(what, why, advice(cure)));
    }
    let capabilities = content.plugins[entry.place].get("capabilities");
    if capabilities.and_then(|capabilities| capabilities.get(ANNOTATIONS)) == Some(&Value::Bool(true)) {
        return None;
    }
    let what = format!("viproute's entry in {path} lacks \"capabilities\": {{{ANNOTATIONS:?}: true}}");
    let why = "The runtime keeps the pods' annotations to itself: no pod can name a VIP.";
    let program = format!(r#"(.plugins[] | select(.type == "viproute")).capabilities += {{{ANNOTATIONS:?}: true}}"#);
    Some(Finding::error(what, why, edited(&network.path, &program)))
}

/// viproute needs the pod's address, which a plugin with IPAM gives.
fn order(network: &Network, content: &Content, entry: &Entry) -> Option<Finding> {
    let later = content.plugins[entry.place + 1..].iter().find(|plugin| plugin.contains_key("ipam"));
    let what = match later {
        Some(plugin) => format!("viproute comes before {:?} in {}", type_of(plugin), network.path.display()),
        None if entry.place == 0 => format!("viproute is the first plugin of {}", network.path.display()),
        None => return None,
    };
    let why = "No plugin before it has given the pod an address: no pod that names a VIP starts.";
    let last = r#".plugins |= map(select(.type != "viproute")) + map(select(.type == "viproute"))"#;
    Some(Finding::error(what, why, edited(&network.path, last)))
}

/// The plugin, viprouted and this tool must mean the same registry and the same socket.
fn elsewhere(scene: &Scene<'_>, network: &Network, config: &Config) -> Vec<Finding> {
    let path = network.path.display();
    let mut findings = Vec::new();
    let (data, socket) = (config.data_dir.display(), config.allocator.display());
    let theirs = scene.good_config().map(|config| (&config.data_dir, &config.socket));
    if theirs.is_some_and(|(data_dir, _)| *data_dir != config.data_dir) {
        let what = format!("{path} has dataDir {data}, and viprouted's configuration another data_dir");
        let why = "viprouted doesn't see the replicas: their leases are let go, and nobody looks after them.";
        let cure = format!("Set data_dir = \"{data}\" in {}, and restart viprouted.", scene.places.config.display());
        findings.push(Finding::error(what, why, advice(cure)));
    } else if scene.places.registry.dir() != config.data_dir {
        let what = format!("{path} has dataDir {data}, not {}", scene.places.registry.dir().display());
        let why = "What doctor says of replicas is about another registry.";
        findings.push(Finding::warning(
            what,
            why,
            command(format!("viproutectl --data-dir {} doctor", quoted(&config.data_dir))),
        ));
    }
    if theirs.is_some_and(|(_, socket)| *socket != config.allocator) {
        let what = format!("{path} has allocator {socket}, and viprouted's configuration another socket");
        let why = "The plugin can't reach viprouted: no pod can join a new VIP.";
        let cure = format!("Set socket = \"{socket}\" in {}, and restart viprouted.", scene.places.config.display());
        findings.push(Finding::error(what, why, advice(cure)));
    }
    findings
}
