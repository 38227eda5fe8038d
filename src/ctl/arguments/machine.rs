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
    /// join: say in one line what would be done, for scripts: `join PATH`, `has PATH`, `no-network` or `podman`. A second line
    /// `loopback PATH` names a loopback that comes first.
    #[arg(long)]
    pub dry_run: bool,
}

/// What is done to the runtime's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// viproute becomes its last plugin.
    Join,
    /// It becomes what it was.
    Leave,
}
