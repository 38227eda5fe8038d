//! The verbs that are about the machine itself, and its cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::node::config::DEFAULT_PATH;

/// `bundle`
#[derive(Debug, Args)]
pub struct Bundle {
    /// The tar, a file that doesn't exist yet; without it one named by the time, in this directory.
    pub file: Option<PathBuf>,
    /// Where the runtime's networks are.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// viprouted's configuration.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

/// `node`
#[derive(Debug, Args)]
pub struct Node {
    /// What to do.
    #[arg(value_enum)]
    pub action: Action,
    /// In place of /, for packaging and containers; uninstall changes into it as chroot does, so that all paths are the machine's.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Where the runtime's networks are, below that.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// install: where the plugin is copied to, below that root. uninstall: where it is.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// install: leave networks alone.
    #[arg(long)]
    pub no_chain: bool,
    /// install, join: pods that name no VIP are recorded too, as Services need it ("register": true).
    #[arg(long)]
    pub register: bool,
    /// install, join: say what would be done, for scripts: `copy PATH`, `link DIR`, and one of `join PATH`, `has PATH`, `no-network` and
    /// `podman`. `loopback PATH` names a loopback that comes first.
    #[arg(long)]
    pub dry_run: bool,
    /// uninstall: wait so long for viprouted's end, such as 30s or 5m; without it one that runs is an error.
    #[arg(long, value_name = "TIME", value_parser = super::time)]
    pub wait: Option<Duration>,
}

/// What is done to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// The plugin is put where runtimes look for it, then as join.
    Install,
    /// viproute becomes the last plugin of the runtime's network.
    Join,
    /// It becomes what it was.
    Leave,
    /// As leave; pods are taken out of their VIPs, and whatever viproute has made on this machine is removed: routes, devices, programs, the
    /// nftables table, the plugin, records and leases.
    Uninstall,
}

/// `retire`
#[derive(Debug, Args)]
pub struct Retire {
    /// The `DaemonSet` that ends.
    pub daemonset: String,
    /// The `DaemonSet` whose pods clean up: until each of them is ready.
    pub by: String,
    /// Both `DaemonSet`s' namespace.
    #[arg(long)]
    pub namespace: String,
    /// Wait so long, such as 5m.
    #[arg(long, value_name = "TIME", value_parser = super::time, default_value = "5m")]
    pub timeout: Duration,
}

/// `key`
#[derive(Debug, Args)]
pub struct Key {
    /// What to do.
    #[command(subcommand)]
    pub order: KeyOrder,
}

/// What `key` can do.
#[derive(Debug, Subcommand)]
pub enum KeyOrder {
    /// Makes a new key; a file that exists is not written over.
    New {
        /// Where to, such as /etc/viproute/membership.key
        #[arg(required_unless_present = "secret")]
        path: Option<PathBuf>,
        /// To this Secret of the cluster whose pod this runs in, NAMESPACE/NAME; one that exists is left as it is.
        #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "path", value_parser = secret)]
        secret: Option<(String, String)>,
    },
}

/// `probe`
#[derive(Debug, Args)]
pub struct Probe {
    /// What is asked.
    #[arg(value_enum)]
    pub question: Question,
    /// viprouted's configuration, which says where its metrics' socket is.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

/// A question to viprouted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// Is it alive? Restart it where it isn't.
    Healthz,
    /// Could a pod join a VIP now?
    Readyz,
}

impl Question {
    /// Where it is answered.
    pub fn path(self) -> &'static str {
        match self {
            Self::Healthz => "/healthz",
            Self::Readyz => "/readyz",
        }
    }
}

fn secret(text: &str) -> Result<(String, String), &'static str> {
    let named = text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    named.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).ok_or("expected NAMESPACE/NAME")
}
