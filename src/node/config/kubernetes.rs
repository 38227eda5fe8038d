//! `[kubernetes]`: Services of the cluster as VIPs. Without the table, or while it isn't enabled, the API is never asked.

use std::path::PathBuf;

use super::table::Reader;
use super::{Error, path_of};

/// The class of Services unless `class` has another.
pub const CLASS: &str = "viproute.io/vip";

const NODE: &str = "a node's name as the cluster has it (kubectl get nodes)";
const CLASS_NAME: &str = "a load balancer's class, such as \"viproute.io/vip\"";
const SERVER: &str = "the API server as https://HOST:PORT";

/// How the API is reached, and which Services are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// The credentials; none: those of the pod that viprouted runs in.
    pub kubeconfig: Option<PathBuf>,
    /// What the cluster calls this node; none: the host's name.
    pub node: Option<String>,
    /// `spec.loadBalancerClass` of the Services.
    pub class: String,
    /// Services without a class too.
    pub default_class: bool,
    /// Nodes that load balancers are to pass by, as a label says, answer for VIPs all the same.
    pub ignore_exclude_label: bool,
    /// Policies of the network don't keep the pods that they select from VIPs.
    pub ignore_policies: bool,
    /// Where the API server is; none: as the credentials say, in a pod at its own address.
    pub server: Option<String>,
}

impl Kubernetes {
    /// By the credentials of the pod that this runs in.
    pub fn in_cluster() -> Self {
        let class = CLASS.to_owned();
        let (default_class, ignore_exclude_label, ignore_policies) = (false, false, false);
        Self { kubeconfig: None, node: None, class, default_class, ignore_exclude_label, ignore_policies, server: None }
    }

    pub(super) fn read(top: &mut Reader) -> Result<Option<Self>, Error> {
        let Some(mut table) = top.table("kubernetes")? else { return Ok(None) };
        let mut flag = |key| Ok(table.take(key, "true or false", toml::Value::as_bool)?.unwrap_or(false));
        let (enabled, default_class) = (flag("enabled")?, flag("default_class")?);
        let ignore_exclude_label = flag("ignore_exclude_label")?;
        let kubeconfig = table.text("kubeconfig", "an absolute path of at most 107 bytes", path_of)?;
        let node = table.text("node", NODE, node)?;
        let class = table.text("class", CLASS_NAME, class)?.unwrap_or_else(|| CLASS.to_owned());
        let server = table.text("server", SERVER, server)?;
        let ignore_policies = table.text("network_policy", "\"block\" or \"ignore\"", ignores)?.unwrap_or(false);
        table.finish()?;
        let found = Self { kubeconfig, node, class, default_class, ignore_exclude_label, ignore_policies, server };
        Ok(enabled.then_some(found))
    }
}

fn ignores(text: &str) -> Option<bool> {
    match text {
        "block" => Some(false),
        "ignore" => Some(true),
        _ => None,
    }
}

/// A DNS subdomain (RFC 1123).
fn is_subdomain(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label =
        |label: &str| !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-');
    text.len() <= 253 && text.split('.').all(label)
}

fn node(text: &str) -> Option<String> {
    is_subdomain(text).then(|| text.to_owned())
}

/// A qualified name, its prefix optional.
fn class(text: &str) -> Option<String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_name =
        name.len() <= 63 && name.chars().all(inner) && is_end(name.chars().next()) && is_end(name.chars().last());
    (is_name && prefix.is_none_or(is_subdomain)).then(|| text.to_owned())
}

fn server(text: &str) -> Option<String> {
    let host = text.strip_prefix("https://")?;
    let fine =
        !host.is_empty() && host.len() <= 260 && !host.contains(|c: char| c.is_whitespace() || "/?#@".contains(c));
    fine.then(|| text.to_owned())
}
