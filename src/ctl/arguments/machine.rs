//! The verbs that are about the machine itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
    /// In place of /, for packaging.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Where the runtime's networks are, below that.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// install: where the plugin is copied to, below that root.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// install: leave networks alone.
    #[arg(long)]
    pub no_chain: bool,
    /// install, join: say what would be done, for scripts: `copy PATH`, `link DIR`, and one of `join PATH`, `has PATH`, `no-network` and
    /// `podman`. `loopback PATH` names a loopback that comes first.
    #[arg(long)]
    pub dry_run: bool,
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
}
