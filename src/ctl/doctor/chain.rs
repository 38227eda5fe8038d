//! Findings about the runtime's networks: whether it calls viproute at all, and with what viproute needs.

use std::path::Path;

use serde_json::{Map, Value};

use crate::api::protocol::Directory;
use crate::chain::all_set_aside;
use crate::cni::protocol::Config;
use crate::cni::protocol::config::{ANNOTATIONS, ConfigError};
use crate::cni::protocol::version::SUPPORTED;
use crate::ctl::networks::{Content, Entry, Network, type_of};

use super::scene::Scene;
use super::{Cure, Finding, advice, command, quoted, quoted_text, restart};

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for network in &scene.networks {
        match &network.content {
            Err(wrong) => findings.push(invalid(network, wrong)),
            Ok(content) => findings.extend(of_network(scene, network, content)),
        }
    }
    findings.extend(absent(scene));
    findings.extend(all_set_aside(&scene.places.conf_dir).iter().map(|path| set_aside(path)));
    findings
}

/// What viprouted says of such a network is this finding.
fn set_aside(path: &Path) -> Finding {
    let what = format!("Cilium has set aside a network that has viproute, as {}", path.display());
    let cure = "Set Cilium's cni.exclusive=false (Helm; \"cni-exclusive\" in its ConfigMap), give the network back its name or remove it, \
                and run `viproutectl node join`.";
    Finding::error(what, NEVER_CALLED, advice(cure))
}

fn invalid(network: &Network, wrong: &str) -> Finding {
    let why = "The runtime can't use this network, and may use another one in its place, or none.";
    let what = format!("{} {wrong}", network.path.display());
    let path = quoted(&network.path);
    Finding::error(
        what,
        why,
        advice(format!("Correct or move away {path}; `jq . {path}` shows where invalid JSON breaks.")),
    )
}

/// What joins a chain (install.sh has it too).
const ENTRY: &str = r#"{"type":"viproute","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#;
/// Without viproute in the chain.
const NEVER_CALLED: &str = "The runtime never calls viproute: pods start without their VIPs.";

/// The network that a runtime takes lacks viproute.
fn absent(scene: &Scene<'_>) -> Option<Finding> {
    // One whose containers join by "vips" is asked for by its name (podman, Nomad).
    let by_name =
        |network: &Network| network.entry().is_some_and(|e| e.config.as_ref().is_ok_and(|c| !c.vips.is_empty()));
    if scene.networks.iter().any(by_name) {
        return None;
    }
    if let [runtime] = &scene.places.runtimes[..]
        && runtime.name == "podman"
    {
        let what = format!("no network in {} has viproute with \"vips\"", scene.places.conf_dir.display());
        let why =
            "podman is the only runtime here and passes no annotations: containers join by such a network's name.";
        let cure = "Put one beside podman's own: conf/podman-web.conflist is one, for `podman run --network web`.";
        return Some(Finding::warning(what, why, advice(cure)));
    }
    let Some(first) = scene.networks.first().filter(|_| !scene.networks.iter().all(Network::is_loopback)) else {
        let what = format!("{} has no network", scene.places.conf_dir.display());
        return Some(Finding::error(what, NEVER_CALLED, scene.installed.network()));
    };
    let content = first.content.as_ref().ok()?;
    if !content.entries.is_empty() {
        return None;
    }
    let path = first.path.display();
    if first.is_loopback() {
        let what = format!("{path} comes first, and gives pods nothing but a loopback");
        let cure = "Rename it so that it comes last, as 99-loopback.conf does.";
        return Some(Finding::error(what, "A runtime takes the first network by name.", advice(cure)));
    }
    if !content.is_list {
        let what = format!("{path} is no .conflist: the runtime reads a single plugin from it");
        let cure = "Put that plugin into the \"plugins\" of a .conflist, and viproute after it.";
        return Some(Finding::error(what, NEVER_CALLED, advice(cure)));
    }
    let what = format!("viproute is not in {path}, the network that containerd and CRI-O use");
    let cure = match content.version() {
        Some(_) => edited(&first.path, &format!(".plugins += [{ENTRY}]")),
        None => advice(format!("{} Then add {ENTRY} to its \"plugins\".", newer_version())),
    };
    Some(Finding::error(what, NEVER_CALLED, cure))
}

/// Raised by a command, it could be one that another plugin of the chain refuses.
fn newer_version() -> String {
    format!("Let its cniVersion be one of {}, if its other plugins take that (most take 1.0.0).", SUPPORTED.join(", "))
}

fn edited(path: &Path, program: &str) -> Cure {
    command(edit(path, program))
}

/// The file rewritten by jq, with its owner and mode: under a name that runtimes ignore, then in one step. Of a link the file
/// it leads to.
fn edit(path: &Path, program: &str) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let (path, new) = (quoted(&path), quoted(Path::new(&new)));
    format!("cp -p {path} {new} && jq {} {path} >{new} && mv {new} {path}", quoted_text(program))
}

fn of_network(scene: &Scene<'_>, network: &Network, content: &Content) -> Vec<Finding> {
    let Some(entry) = content.entries.first() else { return Vec::new() };
    let path = network.path.display();
    let mut findings = Vec::new();
    if content.version().is_none() {
        let said = content.versions.join(", ");
        let what = format!("{path} has cniVersion {said:?}: expected one of {}", SUPPORTED.join(", "));
        let why = "viproute refuses every call: no pod of this network starts.";
        findings.push(Finding::error(what, why, advice(newer_version())));
    }
    if content.entries.len() > 1 {
        let what = format!("viproute is {} times in {path}", content.entries.len());
        let why = "Its second call for a pod fails: no pod that names a VIP starts.";
        findings.push(Finding::error(what, why, advice("Leave one of them, behind the plugin that gives an address.")));
    }
    match &entry.config {
        Ok(config) => {
            findings.extend(annotations(network, content, entry, config));
            findings.extend(order(network, content, entry));
            findings.extend(elsewhere(scene, network, config));
        }
        Err(error) => {
            let why = match error {
                ConfigError::UnknownKey { .. } => "viproute refuses each pod that names a VIP.",
                _ => "viproute refuses each pod that names a VIP, or all.",
            };
            findings.push(Finding::error(format!("{path}: {error}"), why, advice("Correct viproute's entry there.")));
        }
    }
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
    let cure = if content.is_list { edited(&network.path, &program) } else { advice(program) };
    Some(Finding::error(what, why, cure))
}

/// viproute needs the pod's address, which a plugin with IPAM gives. Plugins that give none have the key too: istio-cni
/// appends itself with `"ipam": {}`.
fn order(network: &Network, content: &Content, entry: &Entry) -> Option<Finding> {
    let (before, after) = content.plugins.split_at(entry.place);
    let later = after[1..].iter().find(|plugin| has_ipam(plugin)).filter(|_| !before.iter().any(has_ipam));
    let what = match later {
        Some(plugin) => format!("viproute comes before {:?} in {}", type_of(plugin), network.path.display()),
        None if entry.place == 0 => format!("viproute is the first plugin of {}", network.path.display()),
        None => return None,
    };
    let why = "No plugin before it has given the pod an address: no pod that names a VIP starts.";
    let last = r#".plugins |= map(select(.type != "viproute")) + map(select(.type == "viproute"))"#;
    let cure = if content.plugins.len() > 1 {
        edited(&network.path, last)
    } else {
        advice("Put the plugin that gives pods their address before it, in a .conflist.")
    };
    Some(Finding::error(what, why, cure))
}

fn has_ipam(plugin: &Map<String, Value>) -> bool {
    plugin.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str).is_some_and(|kind| !kind.is_empty())
}

/// The plugin, viprouted and this tool must mean the same registry and the same socket.
fn elsewhere(scene: &Scene<'_>, network: &Network, config: &Config) -> Vec<Finding> {
    let path = network.path.display();
    let mut findings: Vec<Finding> = other_registry(scene, network, config).into_iter().collect();
    let socket = config.allocator.display();
    if scene.good_config().is_some_and(|theirs| theirs.socket != config.allocator) {
        let what = format!("{path} has allocator {socket}, and viprouted's configuration another socket");
        let why = "The plugin can't reach viprouted: no pod can join a new VIP.";
        let cure = format!("Set socket = \"{socket}\" in {}, and restart viprouted.", scene.places.config.display());
        findings.push(Finding::error(what, why, advice(cure)));
    }
    findings
}

fn other_registry(scene: &Scene<'_>, network: &Network, config: &Config) -> Option<Finding> {
    let (path, data) = (network.path.display(), config.data_dir.display());
    let is_another = |dir: &Directory| !dir.is_at(&config.data_dir);
    let why =
        "viprouted doesn't see the replicas: pods with a new VIP are refused, and nothing repairs those there are.";
    if scene.good_config().is_some_and(|theirs| is_another(&Directory::at(&theirs.data_dir))) {
        let what = format!("{path} has dataDir {data}, and viprouted's configuration another data_dir");
        let cure = format!("Set data_dir = \"{data}\" in {}, and restart viprouted.", scene.places.config.display());
        return Some(Finding::error(what, why, advice(cure)));
    }
    let running = scene.agent.as_ref().ok().and_then(|status| status.registry.as_ref());
    if let Some(theirs) = running.filter(|dir| is_another(dir)) {
        let what = format!("{path} has dataDir {data}, and viprouted runs with data_dir {}", theirs.path.display());
        let cure = match scene.good_config() {
            // The file has changed meanwhile.
            Some(_) => restart(),
            None => advice(format!("Set data_dir = \"{data}\" in viprouted's configuration, and restart it.")),
        };
        return Some(Finding::error(what, why, cure));
    }
    if is_another(&Directory::at(scene.places.registry.dir())) {
        let what = format!("{path} has dataDir {data}, not {}", scene.places.registry.dir().display());
        let why = "What doctor says of replicas is about another registry.";
        let cure = command(format!("viproutectl --data-dir {} doctor", quoted(&config.data_dir)));
        return Some(Finding::warning(what, why, cure));
    }
    None
}
