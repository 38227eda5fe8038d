//! viprouted's command line.

use std::path::PathBuf;

use clap::Parser;

use super::config::DEFAULT_PATH;

/// Hands out addresses for VIPs, by DHCP or from a pool, keeps their leases, checks who is ready and repairs what was changed.
#[derive(Debug, Parser)]
#[command(name = "viprouted", version = crate::VERSION)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// What this node is called, in the cluster and by other nodes, where the configuration doesn't say it; without it the host name.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}
