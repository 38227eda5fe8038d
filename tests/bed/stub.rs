//! An allocator that answers at once: for tests about the plugin, which need addresses and not their source.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::socket::Shutdown;
use serde_json::{Value, json};

pub struct Stub {
    listener: UnixListener,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    addresses: BTreeMap<String, Ipv4Addr>,
    requests: Vec<Value>,
    /// Said instead of an address.
    instead: Option<String>,
    /// Whose version it says it has; none: the tested one's.
    version: Option<String>,
    /// Each VIP has an IPv6 address beside: the one of [`Stub::NETWORK6`] that ends in its own.
    is_dual: bool,
}

impl Stub {
    pub fn start(path: &str) -> Self {
        let listener = UnixListener::bind(path).expect("bind the allocator's socket");
        let accepting = listener.try_clone().expect("a second descriptor");
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let state = shared.clone();
                thread::spawn(move || answer(&stream, &state));
            }
        });
        Self { listener, state, thread: Some(thread) }
    }

    /// Where VIPs' IPv6 addresses are of.
    pub const NETWORK6: &str = "fd00:118::/96";

    /// From now on VIPs have an IPv6 address beside.
    pub fn is_dual(&self) {
        self.state.lock().unwrap().is_dual = true;
    }

    /// From now on `reply` is the answer to every acquire.
    pub fn say(&self, reply: &str) {
        self.state.lock().unwrap().instead = Some(reply.into());
    }

    /// From now on it is of this version.
    pub fn is_of_version(&self, version: &str) {
        self.state.lock().unwrap().version = Some(version.into());
    }

    /// The address a VIP was given.
    pub fn address(&self, vip: &str) -> Ipv4Addr {
        let state = self.state.lock().unwrap();
        *state.addresses.get(vip).unwrap_or_else(|| panic!("nobody has asked for {vip}: {:?}", state.addresses))
    }

    /// The requests so far, as they came.
    pub fn requests(&self) -> Vec<Value> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // Closing a descriptor doesn't wake a thread from accept; this does.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: &UnixStream, state: &Mutex<State>) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        let reply = state.lock().unwrap().reply(&request);
        // In one write: whether the plugin reads it once or twice must not depend on the moment.
        if stream.write_all(format!("{reply}\n").as_bytes()).is_err() {
            return;
        }
    }
}

impl State {
    fn reply(&mut self, request: &Value) -> String {
        // Told, not asked, and at no certain moment.
        if request.get("called").is_none() {
            self.requests.push(request.clone());
        }
        if request.get("status").is_some() {
            let version = self.version.as_deref().unwrap_or(viproute::VERSION);
            return json!({ "backend": "stub", "vips": [], "problems": [], "version": version }).to_string();
        }
        if let Some(vip) = request["release"]["vip"].as_str() {
            return json!({ "released": vip }).to_string();
        }
        let Some(vip) = request["acquire"]["vip"].as_str() else {
            return json!({ "error": { "code": 6, "msg": "not a request" } }).to_string();
        };
        if let Some(reply) = &self.instead {
            return reply.clone();
        }
        let next = u32::try_from(self.addresses.len() + 1).expect("few VIPs");
        let first = u32::from(Ipv4Addr::new(10, 118, 0, 0));
        let address = self.addresses.entry(vip.into()).or_insert(Ipv4Addr::from(first + next));
        let others: Vec<String> = self.is_dual.then(|| format!("fd00:118::{address}")).into_iter().collect();
        json!({ "address": address.to_string(), "others": others, "expires": 4_000_000_000_u64 }).to_string()
    }
}
