//! The sidecar, as a process on a node.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::cni::Failure;
use super::daemon::Daemon;
use super::node::Node;
use super::wait::until;

const VIPROUTED: &str = env!("CARGO_BIN_EXE_viprouted");

/// Longer than any answer may take: the plugin itself waits 10 s.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let mut command = node.ns.cmd(VIPROUTED);
        command.envs(environment.iter().copied());
        Self::run(node, settings, command)
    }

    /// The same, as that tool runs it with these options: setpriv(1), strace(1).
    pub fn run_by(tool: &str, options: &[&str], node: &Node, settings: &str) -> Self {
        let mut command = node.ns.cmd(tool);
        command.args(options).arg(VIPROUTED);
        Self::run(node, settings, command)
    }

    fn run(node: &Node, settings: &str, mut command: Command) -> Self {
        let config = node.dir.file("viprouted.toml");
        let (socket, state, data) = (node.socket(), node.dir.file("state"), node.data());
        let metrics = node.metrics();
        let paths = format!("socket = {socket:?}\nstate_dir = {state:?}\ndata_dir = {data:?}\nmetrics = {metrics:?}");
        let text = format!("{paths}\n{settings}\n");
        fs::write(&config, text).expect("write viprouted.toml");
        command.arg("--config").arg(&config);
        let mut daemon = Daemon::start("viprouted", &mut command, &node.dir);
        until("viprouted answers", Duration::from_secs(10), || {
            assert!(!daemon.ended(), "viprouted ended:\n{}", daemon.log());
            ask(&socket, &json!({ "status": {} }).to_string()).ok()
        });
        Self { daemon, socket }
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
                msg: reply["error"]["msg"].as_str().unwrap_or_default().into(),
                details: String::new(),
            }),
        }
    }

    /// What `status` says of a VIP.
    pub fn status(&self, vip: &str) -> Option<Value> {
        let status = self.ask(&json!({ "status": {} }));
        status["vips"].as_array()?.iter().find(|entry| entry["vip"] == vip).cloned()
    }
}

/// Sends one line and reads one.
pub fn ask(socket: &str, line: &str) -> io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    serde_json::from_str(&reply).map_err(|error| io::Error::other(format!("{error}: {reply:?}")))
}
