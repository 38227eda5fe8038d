//! viproutectl's command line.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::allocator::config::{DEFAULT_PATH, HOLD, duration};
use crate::registry::VipKey;

/// Looks at the VIPs of this node, and takes replicas out of them.
///
/// The exit status is 0 where all is well, 1 where something couldn't be done (a sentence on stderr says what), 2 where the
/// command line is wrong. 3 and 4 are drain's and doctor's own.
#[derive(Debug, Parser)]
#[command(name = "viproutectl", version = crate::VERSION)]
pub struct Arguments {
    /// The registry ("dataDir" of the conflist).
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/cni/viproute")]
    pub data_dir: PathBuf,
    /// viprouted's socket ("allocator" of the conflist).
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/viproute/viprouted.sock")]
    pub allocator: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What viproutectl can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Each VIP: its address, lease and replicas, their share of flows and packets.
    Status(Status),
    /// Which replica has a flow, or would get it.
    Where(Where),
    /// What has happened on this node lately: leases, replicas, calls, repairs.
    Events(Events),
    /// Takes a pod out of its VIPs: it gets no new connection and keeps those it has.
    ///
    /// It stays so until undrain, whatever its health check says. The exit status is 3 where connections are left when the time
    /// is over.
    Drain(Drain),
    /// Brings a pod back that was taken out.
    Undrain(Undrain),
    /// What is wrong on this node, why it matters, and the command that cures it.
    ///
    /// It changes nothing. The exit status is 0 where nothing but hints was found, 3 where there are warnings, 4 where there
    /// are errors, and 1 where it couldn't look.
    Doctor(Doctor),
    /// What a shell has to know to complete viproutectl's command line.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Writes the manual pages, for install.sh.
    #[command(hide = true)]
    Man {
        /// Where to.
        dir: PathBuf,
    },
}

/// `status`
#[derive(Debug, Args)]
pub struct Status {
    /// How to print it.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Output,
    /// Show it again each second; JSON as an object a line.
    #[arg(long)]
    pub watch: bool,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `where`
#[derive(Debug, Args)]
pub struct Where {
    /// Who asks, as ADDRESS:PORT.
    #[arg(value_parser = socket)]
    pub client: SocketAddrV4,
    /// The VIP and its port, as ADDRESS:PORT.
    #[arg(value_parser = socket)]
    pub vip: SocketAddrV4,
    /// A flow of UDP.
    #[arg(long)]
    pub udp: bool,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Form,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `events`
#[derive(Debug, Args)]
pub struct Events {
    /// Only those about this VIP, `<namespace>/<name>`.
    #[arg(long)]
    pub vip: Option<VipKey>,
    /// Go on with what happens.
    #[arg(long)]
    pub follow: bool,
    /// How to print it; JSON is an object a line.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Form,
}

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

/// `doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Where the runtime's networks are.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Where the runtime looks for plugins; may be given more than once.
    #[arg(long, value_name = "DIR", default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    pub bin_dir: Vec<PathBuf>,
    /// viprouted's configuration.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Form,
}

fn socket(text: &str) -> Result<SocketAddrV4, &'static str> {
    text.parse().ok().filter(|socket: &SocketAddrV4| socket.port() != 0).ok_or("expected an IPv4 address and a port")
}

fn time(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("expected {HOLD}"))
}
