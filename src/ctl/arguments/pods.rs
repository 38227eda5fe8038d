//! The verbs that are about a pod and its VIPs.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use crate::model::{CheckSpec, FamilyChoice, PortMap, VipKey, check};

use super::time;

/// `drain`
#[derive(Debug, Args)]
pub struct Drain {
    /// The pod as NAMESPACE/NAME, or a container by its ID or the beginning of it.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub pod: String,
    /// Wait until its last connection to its VIPs is closed.
    #[arg(long)]
    pub wait: bool,
    /// Wait so long at most, such as 30s or 5m; without it as long as it takes.
    #[arg(long, requires = "wait", value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
}

/// `undrain`
#[derive(Debug, Args)]
pub struct Undrain {
    /// The pod as NAMESPACE/NAME, or a container by its ID or the beginning of it.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub pod: String,
}

/// `join`
#[derive(Debug, Args)]
pub struct Join {
    /// The pod as NAMESPACE/NAME, a container by its ID or the beginning of it, or any running pod by its address.
    ///
    /// By its name where it has a VIP or is registered ("register": true in viproute's entry of the conflist).
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub pod: String,
    /// The VIP as NAMESPACE/NAME.
    pub vip: VipKey,
    /// What the pod serves there, as viproute.io/ports has it: 80/tcp,53/udp, or 80:8080/tcp. Without it: everything.
    #[arg(long, value_name = "PORT/PROTOCOL", value_delimiter = ',')]
    pub ports: Option<Vec<PortMap>>,
    /// What makes it ready, as viproute.io/health has it: none, listen, tcp or `http:PORT/PATH`, with options.
    #[arg(long, value_name = "CHECK", value_parser = health)]
    pub health: Option<Health>,
    /// Its share beside the other replicas', from 1 to 255, as viproute.io/weight has it.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub weight: Option<u8>,
    /// Its unbound UDP sockets answer from the VIP, as viproute.io/udp-reply has it.
    #[arg(long, value_enum)]
    pub udp_reply: Option<UdpReply>,
    /// Whether its UDP flows keep their replica, as viproute.io/udp-sticky has it.
    #[arg(long, value_name = "BOOL")]
    pub udp_sticky: Option<bool>,
    /// By which families the VIP is to be served, as viproute.io/families has it: ipv4, ipv6 or ipv4,ipv6.
    #[arg(long, value_name = "FAMILIES")]
    pub families: Option<FamilyChoice>,
    /// Where the runtime's networks are: how to make a VIP for a pod that viproute has never been called for.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
}

/// `--health`; none is a check too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health(pub Option<CheckSpec>);

/// `--udp-reply`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UdpReply {
    /// From the VIP.
    Vip,
}

/// `leave`
#[derive(Debug, Args)]
pub struct Leave {
    /// The pod as NAMESPACE/NAME, a container by its ID or the beginning of it, or any running pod by its address.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub pod: String,
    /// The VIP as NAMESPACE/NAME.
    pub vip: VipKey,
}

fn health(text: &str) -> Result<Health, String> {
    check::parse(text).map(Health).map_err(|bad| bad.to_string())
}
