//! `viproutectl doctor`: what is wrong on this node, why it matters, and the command that cures it. It changes nothing.
//!
//! One file per group of findings. No finding is a result too: each group searches only for what is known to do harm.

mod agent;
mod chain;
mod express;
mod firewall;
mod flow_owner;
mod installed;
mod kube_proxy;
mod kubernetes;
mod lsm;
mod node;
mod nodes;
mod plugin;
mod registry;
mod replicas;
mod routing;
mod scene;
mod way;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::chain::runtimes::Runtime;
use crate::registry::Registry;
use crate::{dataplane, net, with_causes};

use scene::Scene;

/// Where to look.
#[derive(Debug)]
pub struct Places {
    /// The registry.
    pub registry: Registry,
    /// viprouted's socket.
    pub allocator: PathBuf,
    /// The runtime's networks.
    pub conf_dir: PathBuf,
    /// Where the runtime looks for plugins; none: where the configurations of this machine's runtimes say.
    pub bin_dirs: Vec<PathBuf>,
    /// This machine's runtimes.
    pub runtimes: Vec<Runtime>,
    /// viprouted's configuration.
    pub config: PathBuf,
}

/// Why nothing can be examined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Only root can read most of the state.
    #[error("doctor must be run as root")]
    NotRoot,
    /// The kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works; it could be better.
    Hint,
    /// It works now, or for some.
    Warning,
    /// Something doesn't work.
    Error,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cure {
    /// This, in root's shell.
    Command(String),
    /// No command does it.
    Advice(String),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do about it.
    pub cure: Cure,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, why: impl Into<String>, cure: Cure) -> Self {
        Self { severity, what: what.into(), why: why.into(), cure }
    }

    fn error(what: impl Into<String>, why: impl Into<String>, cure: Cure) -> Self {
        Self::new(Severity::Error, what, why, cure)
    }

    fn warning(what: impl Into<String>, why: impl Into<String>, cure: Cure) -> Self {
        Self::new(Severity::Warning, what, why, cure)
    }

    fn hint(what: impl Into<String>, why: impl Into<String>, cure: Cure) -> Self {
        Self::new(Severity::Hint, what, why, cure)
    }
}

fn command(text: impl Into<String>) -> Cure {
    Cure::Command(text.into())
}

fn advice(text: impl Into<String>) -> Cure {
    Cure::Advice(text.into())
}

/// `sysctl -w NAME=VALUE`
fn sysctl(name: &str, value: i64) -> Cure {
    command(format!("sysctl -w {name}={value}"))
}

/// A restart reads configuration and registry anew, and repairs the kernel's state.
fn restart() -> Cure {
    command("systemctl restart viprouted")
}

/// A key of viprouted's configuration, above its tables.
fn set(scene: &Scene<'_>, key: &str, value: &str) -> Cure {
    let config = quoted(&scene.places.config);
    command(format!(
        "{{ echo '{key} = {value}'; sed '/^ *{key} *=/d' {config}; }} >{config}.new && mv {config}.new {config} && \
         systemctl restart viprouted"
    ))
}

/// A path as a shell has to be given it.
fn quoted(path: &Path) -> String {
    quoted_text(&path.to_string_lossy())
}

/// Paths and JSON have no NUL, the one thing a shell can't be given.
fn quoted_text(text: &str) -> String {
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

/// `shop/web`, or `150 VIPs (shop/a, shop/b, shop/c and 147 more)`: many with one cause are one finding.
fn vips(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut names = names.to_vec();
    names.sort_unstable();
    match &names[..] {
        [name] => name.clone(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} VIPs ({} and {} more)", names.len(), names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// In the order in which things depend on each other.
    pub findings: Vec<Grouped>,
}

/// A finding, and what it is about.
#[derive(Debug, Serialize)]
pub struct Grouped {
    /// The group's name.
    pub group: &'static str,
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
}

/// Looks for one group of findings.
type Look = fn(&Scene<'_>) -> dataplane::Result<Vec<Finding>>;

const GROUPS: [(&str, Look); 13] = [
    ("node", node::look),
    ("firewall", |scene| Ok(firewall::look(scene))),
    ("network", |scene| Ok(chain::look(scene))),
    ("plugin", |scene| Ok(plugin::look(scene))),
    ("viprouted", |scene| Ok(agent::look(scene))),
    ("nodes", |scene| Ok(nodes::look(scene))),
    ("kubernetes", |scene| Ok(kubernetes::look(scene))),
    ("flow owner", flow_owner::look),
    ("express", |scene| Ok(express::look(scene))),
    ("registry", registry::look),
    ("replicas", replicas::look),
    ("way", way::look),
    ("routing", |scene| Ok(routing::look(scene))),
];

/// Runs all checks.
pub fn examine(places: &Places) -> Result<Report, Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let scene = Scene::read(places)?;
    let mut findings = Vec::new();
    for (group, look) in GROUPS {
        let found = look(&scene).unwrap_or_else(|e| {
            let why = "What is wrong there, if anything, is not known.";
            vec![Finding::error(with_causes(&e), why, advice("Put that right, and ask again."))]
        });
        findings.extend(found.into_iter().map(|finding| Grouped { group, finding }));
    }
    Ok(Report { findings })
}

impl Report {
    /// The worst of it; none where nothing was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|grouped| grouped.finding.severity).max()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return f.write_str("Nothing is wrong.");
        }
        for (number, Grouped { group, finding }) in self.findings.iter().enumerate() {
            let Finding { severity, what, why, cure } = finding;
            let severity = match severity {
                Severity::Hint => "hint",
                Severity::Warning => "warning",
                Severity::Error => "ERROR",
            };
            let (Cure::Command(cure) | Cure::Advice(cure)) = cure;
            let blank = if number == 0 { "" } else { "\n\n" };
            write!(f, "{blank}{severity} ({group}): {what}\n    {why}\n    cure: {cure}")?;
        }
        Ok(())
    }
}
