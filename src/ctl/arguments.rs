//! viproutectl's command line.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::model::VipKey;
use crate::model::address::is_unicast;
use crate::node::config::{DEFAULT_PATH, HOLD, duration};

mod machine;
mod pods;

pub use machine::{Action, Bundle, Key, KeyOrder, Node, Probe, Question, Retire};
pub use pods::{Drain, Health, Join, Leave, UdpReply, Undrain};

/// Shows the VIPs of this node, and changes which pods serve them.
///
/// The exit status is 0 where all is well, 1 where something couldn't be done (a sentence on stderr says what), 2 where the
/// command line is wrong. 3 and 4 are drain's and doctor's own.
#[derive(Debug, Parser)]
#[command(name = "viproutectl", version = crate::VERSION)]
pub struct Arguments {
    /// The registry ("dataDir" of the conflist); doctor takes it from --config [default: /var/lib/cni/viproute]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// viprouted's socket ("allocator" of the conflist); doctor takes it from --config [default:
    /// /run/viproute/viprouted.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub allocator: Option<PathBuf>,
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
    /// Who a VIP is to the DHCP server: what a reservation for it has to name.
    Identity(Identity),
    /// What has happened on this node lately: leases, replicas, calls, repairs.
    Events(Events),
    /// Takes a pod out of its VIPs: it gets no new connection and keeps those it has.
    ///
    /// It stays so until undrain, whatever its health check says. The exit status is 3 where connections are left when the time
    /// is over.
    Drain(Drain),
    /// Brings a pod back that was taken out.
    Undrain(Undrain),
    /// Makes a running pod a replica of a VIP, whatever its annotations say.
    ///
    /// Nothing is asked of the pod's runtime, and no other connection is touched. A pod that is a replica already is changed
    /// to what the options say now; what they don't mention stays. The pod's DEL ends it as any other.
    Join(Join),
    /// Takes a running pod out of a VIP, whatever made it a replica: an annotation, the conflist or join.
    ///
    /// Its connections to the VIP end with that: `drain --wait` before lets them end by themselves.
    Leave(Leave),
    /// Writes a routing daemon's configuration that announces this node's VIPs to routers, to standard output.
    ///
    /// Everything in it is this node's own: its address, the VIPs' prefixes of viprouted's configuration, a weight for each
    /// number of ready replicas. It takes no VIP of another node.
    Announce(Announce),
    /// Another load balancer's configuration as viprouted's, to standard output.
    ///
    /// It changes nothing. What has no counterpart is named on stderr, and the exit status is 3 then.
    Import(Import),
    /// The nodes that serve the same VIPs: this one and those that it knows of.
    ///
    /// `nodes leave` tells them that this one leaves: its replicas get no new connections by way of other nodes, until viprouted
    /// starts again.
    Nodes(Nodes),
    /// The key that nodes know each other by.
    Key(Key),
    /// What is wrong on this node, why it matters, and the command that cures it.
    ///
    /// It changes nothing. The exit status is 0 where nothing but hints was found, 3 where there are warnings, 4 where there
    /// are errors, and 1 where it couldn't look.
    Doctor(Doctor),
    /// Gathers what a bug report needs of this node in one tar, without secrets.
    ///
    /// It changes nothing, asks nobody but this node and ends within 20 seconds, whatever hangs. Secrets are known by their keys' names and
    /// their form: read it before you send it. What could not be had is listed in missing.txt.
    Bundle(Bundle),
    /// Puts viproute into the chain of plugins that this machine's runtime uses, or takes it out again.
    ///
    /// install copies the plugin that lies beside viproutectl to where runtimes look for it, with links where others look, runs it there
    /// once, and then does what join does.
    ///
    /// join makes it the last plugin of the network that containerd and CRI-O use, the first one by name, in one step; the original is kept
    /// in /etc/viproute. A network that it doesn't understand is refused, and nothing is changed. leave puts the original back, unless
    /// somebody has worked on the network since. Done twice, each does nothing. viprouted puts viproute back where the network's own plugin
    /// writes it anew, until leave.
    ///
    /// uninstall is for nodes that an image or this tool has set up: viprouted has ended before. Pods that are attached are taken out of
    /// their VIPs and live on.
    Node(Node),
    /// Asks viprouted whether it is alive or ready, for a kubelet's exec probe: exit status 0, or 1 and why not.
    Probe(Probe),
    /// What a shell has to know to complete viproutectl's command line.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Where this machine's runtimes look for plugins, for install.sh: a directory a line.
    #[command(hide = true)]
    PluginDirs {
        /// In place of /.
        root: PathBuf,
    },
    /// The attachments whose pods live, a line each, for install.sh and packages: without the plugin their runtime can't remove them.
    #[command(hide = true)]
    Attached,
    /// Takes the express path's programs off all devices, for install.sh: a viprouted that was killed has left them.
    #[command(hide = true)]
    Unload,
    /// Ends a `DaemonSet` and waits until another one's pods have cleaned each node, for the chart's uninstallation.
    #[command(hide = true)]
    Retire(Retire),
    /// Does nothing until it is told to end, for the chart: a pod of a `DaemonSet` must not end by itself.
    #[command(hide = true)]
    Pause,
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
    /// This VIP alone, `<namespace>/<name>`.
    #[arg(long)]
    pub vip: Option<VipKey>,
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
    /// Who asks, as ADDRESS:PORT, or `[ADDRESS]:PORT` of IPv6.
    #[arg(value_parser = socket)]
    pub client: SocketAddr,
    /// The VIP and its port, likewise.
    #[arg(value_parser = socket)]
    pub vip: SocketAddr,
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

/// `identity`
#[derive(Debug, Args)]
pub struct Identity {
    /// The VIP, `<namespace>/<name>`; it needn't exist yet.
    pub vip: VipKey,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Form,
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

/// `announce`
#[derive(Debug, Args)]
pub struct Announce {
    /// Which daemon runs on this node.
    #[arg(value_enum)]
    pub daemon: RoutingDaemon,
    /// This node's AS number. The same on all nodes keeps each from taking the others' VIPs.
    #[arg(long, value_name = "N", value_parser = asn)]
    pub asn: u32,
    /// A router, as ADDRESS or ADDRESS:ASN, of IPv6 [ADDRESS]:ASN; of this node's AS without ASN. VIPs'
    /// addresses of its own family are announced to it. May be given more than once.
    #[arg(long, value_name = "ADDRESS[:ASN]", required = true, value_parser = router)]
    pub router: Vec<Router>,
    /// The routers are on no network of this node, but so many hops away at most.
    #[arg(long, value_name = "HOPS", value_parser = clap::value_parser!(u8).range(1..))]
    pub multihop: Option<u8>,
    /// viprouted's configuration, which says what addresses VIPs may have.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

/// `import`
#[derive(Debug, Args)]
pub struct Import {
    /// Whose it is.
    #[arg(value_enum)]
    pub from: ImportFrom,
    /// Its objects, as kubectl get -o yaml prints them; - is standard input.
    pub file: PathBuf,
}

/// Another load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImportFrom {
    /// `IPAddressPool`, `L2Advertisement`, `BGPAdvertisement` and `BGPPeer` of `MetalLB` 0.13 and later.
    Metallb,
}

/// A daemon that speaks BGP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingDaemon {
    /// BIRD 2.
    Bird,
    /// FRR, 8 or newer.
    Frr,
}

/// `--router`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    /// Its address.
    pub address: IpAddr,
    /// Its AS number; none: the node's own.
    pub asn: Option<u32>,
}

/// `nodes`
#[derive(Debug, Args)]
pub struct Nodes {
    /// What to do; without it they are shown.
    #[command(subcommand)]
    pub order: Option<NodesOrder>,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Output,
}

/// What `nodes` can do beside showing them.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum NodesOrder {
    /// Tells the others that this node leaves.
    Leave,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Where the runtime's networks are.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Where the runtime looks for plugins; may be given more than once. Without it, where the configurations of containerd,
    /// CRI-O, podman and others say.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Vec<PathBuf>,
    /// viprouted's configuration.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text")]
    pub output: Form,
}

/// Where something is that the command line doesn't say.
pub mod default {
    /// `--data-dir`
    pub const DATA_DIR: &str = "/var/lib/cni/viproute";
    /// `--allocator`
    pub const ALLOCATOR: &str = "/run/viproute/viprouted.sock";
}

fn socket(text: &str) -> Result<SocketAddr, &'static str> {
    let socket = text.parse().ok().filter(|socket: &SocketAddr| socket.port() != 0);
    socket.ok_or("expected an address and a port, such as 10.118.0.7:80 or [fd00:118::7]:80")
}

/// Numbers that can be an AS's: not those that RFC 7607, RFC 6793 and RFC 7300 keep for other purposes.
fn asn(text: &str) -> Result<u32, &'static str> {
    let usable = |asn: &u32| !matches!(*asn, 0 | 23456 | 65535 | u32::MAX);
    text.parse().ok().filter(usable).ok_or("expected an AS number from 1 to 4294967294, but 23456 and 65535")
}

fn router(text: &str) -> Result<Router, String> {
    const EXPECTED: &str = "expected a router's address, ADDRESS:ASN, or [ADDRESS]:ASN for one of IPv6";
    let (address, number) = match (text.strip_prefix('['), text.parse::<Ipv6Addr>()) {
        (Some(rest), _) => rest.split_once(']').ok_or(EXPECTED)?,
        (None, Ok(_)) => (text, ""),
        (None, Err(_)) => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_fine = |address: &IpAddr| is_unicast(*address) && (address.is_ipv6() || !text.starts_with('['));
    let address = address.parse().ok().filter(is_fine).ok_or(EXPECTED)?;
    let number = Some(number).filter(|number| !number.is_empty());
    let number = number.map(|number| number.strip_prefix(':').ok_or(EXPECTED)).transpose()?;
    Ok(Router { address, asn: number.map(asn).transpose()? })
}

fn time(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("expected {HOLD}"))
}
