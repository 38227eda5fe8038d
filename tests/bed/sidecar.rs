//! The sidecar, as a process on a node.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cni::Failure;
use super::command::program;
use super::daemon::Daemon;
use super::node::Node;
use super::wait::{PATIENCE, scaled};

pub struct Sidecar {
    pub daemon: Daemon,
    socket: String,
}

impl Sidecar {
    /// Starts it on `node` with `settings` (TOML) over the node's own paths, and waits until it answers.
    pub fn start(node: &Node, settings: &str) -> Self {
        Self::start_with(node, settings, &[])
    }

    /// The same with these variables in its environment.
    pub fn start_with(node: &Node, settings: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = node.ns.cmd(program("viprouted"));
        command.envs(environment.iter().copied());
        Self::run(node, settings, command)
    }

    /// The same of another build, which is that program.
    pub fn of(program: &str, node: &Node, settings: &str) -> Self {
        Self::run(node, settings, node.ns.cmd(program))
    }

    /// The same, as that tool runs it with these options: setpriv(1), strace(1).
    pub fn run_by(tool: &str, options: &[&str], node: &Node, settings: &str) -> Self {
        let mut command = node.ns.cmd(tool);
        command.args(options).arg(program("viprouted"));
        Self::run(node, settings, command)
    }

    fn run(node: &Node, settings: &str, command: Command) -> Self {
        Self::try_run(node.dir.path(), settings, command).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs `command`, which is viprouted on a node that has its files in `dir`.
    pub fn try_run(dir: &Path, settings: &str, mut command: Command) -> Result<Self> {
        let path = |name| dir.join(name).display().to_string();
        let (socket, state, data, metrics) =
            (path("viprouted.sock"), path("state"), path("data"), path("metrics.sock"));
        let paths = format!("socket = {socket:?}\nstate_dir = {state:?}\ndata_dir = {data:?}\nmetrics = {metrics:?}");
        let config = path("viprouted.toml");
        fs::write(&config, format!("{paths}\n{settings}\n")).context("write viprouted.toml")?;
        command.arg("--config").arg(&config);
        let mut daemon = Daemon::try_start("viprouted", &mut command, dir)?;
        let answers = || ask(&socket, &json!({ "status": {} }).to_string()).is_ok();
        daemon.ready("viprouted answers", PATIENCE, answers)?;
        Ok(Self { daemon, socket })
    }

    /// A pool, for tests that need no DHCP server.
    pub fn pool(node: &Node, cidr: &str) -> Self {
        Self::start(node, &format!("backend = \"pool\"\n[pool]\ncidr = \"{cidr}\""))
    }

    /// DHCP from the LAN's server.
    pub fn dhcp(node: &Node, settings: &str) -> Self {
        Self::start(node, &format!("backend = \"dhcp\"\nallow = [\"192.0.2.0/24\"]\n{settings}"))
    }

    /// SIGTERM; it must end in order.
    pub fn stop(self) {
        let status = self.daemon.stop();
        assert!(status.success(), "viprouted ended with {status}");
    }

    /// One request, one reply.
    pub fn ask(&self, request: &Value) -> Value {
        ask(&self.socket, &request.to_string()).unwrap_or_else(|error| panic!("viprouted and {request}: {error}"))
    }

    /// An address for a VIP, asked for as the plugin does.
    pub fn acquire(&self, vip: &str) -> Result<Ipv4Addr, Failure> {
        let reply = self.ask(&json!({
            "acquire": { "vip": vip, "pod": "10.1.1.2", "node": "192.0.2.1", "gateway": "192.0.2.254" }
        }));
        match reply["address"].as_str() {
            Some(address) => Ok(address.parse().expect("an address")),
            None => Err(Failure {
                code: reply["error"]["code"].as_i64().unwrap_or_else(|| panic!("neither address nor error: {reply}")),
                msg: reply["error"]["msg"].as_str().unwrap_or_else(|| panic!("an error without msg: {reply}")).into(),
                details: String::new(),
            }),
        }
    }

    /// What `status` says of a VIP.
    pub fn status(&self, vip: &str) -> Option<Value> {
        let status = self.ask(&json!({ "status": {} }));
        let vips = status["vips"].as_array().unwrap_or_else(|| panic!("no list of VIPs: {status}"));
        vips.iter().find(|entry| entry["vip"] == vip).cloned()
    }
}

/// Sends one line and reads one.
pub fn ask(socket: impl AsRef<Path>, line: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(scaled(PATIENCE)))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    serde_json::from_str(&reply).map_err(|error| io::Error::other(format!("{error}: {reply:?}")))
}
