//! A Kubernetes API as far as viprouted asks it: lists, watches, a Service's status, events. It serves what the test says.

mod faults;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};

use super::Node;

/// The API on a node.
pub struct KubeApi {
    listener: TcpListener,
    pub at: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    /// By the kind's path, then by `<namespace>/<name>`.
    objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// Each change: its kind and what a watch says of it. A version is a number in here.
    log: Vec<(&'static str, Value)>,
    cluster: String,
    requests: Vec<String>,
    events: Vec<Value>,
    is_away: bool,
    /// Kinds that are refused, by what is answered.
    refused: BTreeMap<&'static str, u16>,
    /// How often versions were forgotten, and from which on there are some.
    expiries: usize,
    oldest: usize,
    /// What viprouted may not do: `verb resource`.
    denied: Vec<String>,
    /// Seconds by which its clock is ahead.
    ahead: i64,
    /// It knows no `ipMode`.
    lacks_mode: bool,
}

const KINDS: [&str; 7] = [
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/pods",
    "/api/v1/nodes",
    "/apis/networking.k8s.io/v1/ipaddresses",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/networking.k8s.io/v1/servicecidrs",
];

/// What paths may begin with, as those of a server that leads to several clusters' do.
pub const BEHIND: &str = "/clusters/c1";

impl KubeApi {
    /// Listens on the node itself.
    pub fn start(node: &Node) -> Self {
        Self::start_at(node, Ipv4Addr::LOCALHOST.into())
    }

    /// Listens on an address of the node's.
    pub fn start_at(node: &Node, address: IpAddr) -> Self {
        let listener = node.ns.run(|| TcpListener::bind((address, 0))).expect("an API on the node");
        let at = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        state.held.lock().unwrap().cluster = "c1".into();
        let (accepting, shared) = (listener.try_clone().expect("a second descriptor"), state.clone());
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let state = shared.clone();
                thread::spawn(move || serve(&stream, &state));
            }
        });
        let api = Self { listener, at, state, thread: Some(thread) };
        api.set(&json!({ "kind": "Service", "metadata": { "namespace": "default", "name": "kubernetes", "uid": "api" }, "spec": {} }));
        api
    }

    /// viprouted's table for it; the credentials go into the node's directory.
    pub fn settings(&self, node: &Node) -> String {
        Self::settings_of(node, "n1", &self.at.to_string())
    }

    /// The same of a node of that name, to which the API is at that host and port.
    pub fn settings_of(node: &Node, name: &str, at: &str) -> String {
        let kubeconfig = node.dir.file("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{at}") } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(&kubeconfig, text.to_string()).expect("write a kubeconfig");
        format!("[kubernetes]\nenabled = true\nkubeconfig = {kubeconfig:?}\nnode = {name:?}\n")
    }

    /// An object as it is now.
    pub fn set(&self, object: &Value) {
        self.state.set(kind_of(object), object.clone());
    }

    /// An object is gone.
    pub fn delete(&self, object: &Value) {
        self.state.delete(kind_of(object), &name_of(object));
    }

    /// An object, or null.
    pub fn get(&self, object: &Value) -> Value {
        let held = self.state.held.lock().unwrap();
        held.objects[kind_of(object)].get(&name_of(object)).cloned().unwrap_or_default()
    }

    /// Another cluster's API from now on; or none at all.
    pub fn become_cluster(&self, uid: &str, is_away: bool) {
        let mut held = self.state.held.lock().unwrap();
        held.cluster = uid.into();
        held.is_away = is_away;
        self.state.changed.notify_all();
    }

    /// What was asked: method and path.
    pub fn requests(&self) -> Vec<String> {
        self.state.held.lock().unwrap().requests.clone()
    }

    /// The names of a kind's objects: `<namespace>/<name>`.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let held = self.state.held.lock().unwrap();
        let kind = kind_of(&json!({ "kind": kind }));
        held.objects.get(kind).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// What was asked: method and path, without watches and lists.
    pub fn writes(&self) -> Vec<String> {
        let held = self.state.held.lock().unwrap();
        held.requests.iter().filter(|request| !request.starts_with("GET")).cloned().collect()
    }

    /// The events that were told: reason and note.
    pub fn events(&self) -> Vec<(String, String)> {
        let held = self.state.held.lock().unwrap();
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        held.events.iter().map(|event| (text(event, "reason"), text(event, "note"))).collect()
    }

    /// The reasons of events that were told.
    pub fn reasons(&self) -> Vec<String> {
        self.events().into_iter().map(|(reason, _)| reason).collect()
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.become_cluster("", true);
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn kind_of(object: &Value) -> &'static str {
    match object["kind"].as_str().expect("an object has a kind") {
        "Service" => KINDS[0],
        "EndpointSlice" => KINDS[1],
        "Pod" => KINDS[2],
        "Node" => KINDS[3],
        "IPAddress" => KINDS[4],
        "NetworkPolicy" => KINDS[5],
        "ServiceCIDR" => KINDS[6],
        other => panic!("no {other} here"),
    }
}

fn name_of(object: &Value) -> String {
    let part = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", part("namespace"), part("name"))
}

impl State {
    fn delete(&self, kind: &'static str, name: &str) {
        let mut held = self.held.lock().unwrap();
        if let Some(gone) = held.objects.entry(kind).or_default().remove(name) {
            held.log(kind, "DELETED", gone);
        }
        self.changed.notify_all();
    }

    fn set(&self, kind: &'static str, mut object: Value) {
        let mut held = self.held.lock().unwrap();
        object["metadata"]["resourceVersion"] = json!((held.log.len() + 1).to_string());
        let before = held.objects.entry(kind).or_default().insert(name_of(&object), object.clone());
        held.log(kind, if before.is_some() { "MODIFIED" } else { "ADDED" }, object);
        self.changed.notify_all();
    }
}

/// What is there already isn't made again.
fn create(stream: &TcpStream, state: &State, kind: &'static str, body: &Value) -> Option<()> {
    let name = name_of(body);
    if state.held.lock().unwrap().objects.entry(kind).or_default().contains_key(&name) {
        return reply(stream, 409, &failure(409, "AlreadyExists"));
    }
    state.set(kind, body.clone());
    reply(stream, 201, body)
}

impl Held {
    fn log(&mut self, kind: &'static str, what: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!((self.log.len() + 1).to_string());
        self.log.push((kind, json!({ "type": what, "object": object })));
    }
}

/// Requests of one connection, until it or the API ends.
fn serve(stream: &TcpStream, state: &State) -> Option<()> {
    let mut requests = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        requests.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut length = 0;
        loop {
            line.clear();
            requests.read_line(&mut line).ok().filter(|length| *length > 0)?;
            if line == "\r\n" {
                break;
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        answer(stream, state, (&method, &target), &body)?;
    }
}

fn answer(stream: &TcpStream, state: &State, (method, target): (&str, &str), body: &Value) -> Option<()> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    {
        let mut held = state.held.lock().unwrap();
        if held.is_away {
            return None;
        }
        held.requests.push(format!("{method} {path}"));
    }
    let path = path.strip_prefix(BEHIND).unwrap_or(path);
    let kind = KINDS.into_iter().find(|kind| *kind == path);
    let refused = kind.and_then(|kind| state.held.lock().unwrap().refused.get(kind).copied());
    if let Some(code) = refused.filter(|_| method == "GET") {
        return reply(stream, code, &failure(code, "Refused"));
    }
    match (method, kind) {
        ("GET", Some(kind)) if query.contains("watch=true") => watch(stream, state, kind, query),
        ("GET", Some(kind)) => {
            let held = state.held.lock().unwrap();
            let items: Vec<&Value> = held.objects.get(kind).into_iter().flat_map(BTreeMap::values).collect();
            let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": held.log.len().to_string() }, "items": items });
            drop(held);
            reply(stream, 200, &list)
        }
        ("GET", None) if path == "/api/v1/namespaces/kube-system" => {
            let uid = state.held.lock().unwrap().cluster.clone();
            reply(
                stream,
                200,
                &json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": "kube-system", "uid": uid } }),
            )
        }
        ("GET", None) if path == "/api/v1/namespaces/default/services" => {
            let held = state.held.lock().unwrap();
            let all = held.objects.get(KINDS[0]).into_iter().flat_map(BTreeMap::values);
            let items: Vec<_> = all.filter(|service| service["metadata"]["name"] == "kubernetes").cloned().collect();
            drop(held);
            reply(stream, 200, &json!({ "kind": "ServiceList", "apiVersion": "v1", "metadata": {}, "items": items }))
        }
        ("GET", None) if path == "/version" => faults::version(stream, state),
        ("POST", None) if path.ends_with("/selfsubjectaccessreviews") => faults::review(stream, state, body),
        ("POST", Some(kind)) => create(stream, state, kind, body),
        ("DELETE", None) if path.starts_with(KINDS[4]) => {
            let name = path.rsplit('/').next().unwrap_or_default();
            state.delete(KINDS[4], &format!("/{name}"));
            reply(stream, 200, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
        }
        ("PATCH", None) if path.ends_with("/status") => patch(stream, state, path, body),
        ("POST", None) if path.ends_with("/events") => {
            state.held.lock().unwrap().events.push(body.clone());
            reply(stream, 201, body)
        }
        ("PATCH", None) if path.contains("/events/") => reply(stream, 200, body),
        _ => reply(stream, 404, &failure(404, "NotFound")),
    }
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code })
}

/// `/api/v1/namespaces/NS/services/NAME/status`
fn patch(stream: &TcpStream, state: &State, path: &str, body: &Value) -> Option<()> {
    let words: Vec<&str> = path.split('/').collect();
    let name = format!("{}/{}", words.get(4)?, words.get(6)?);
    let found = state.held.lock().unwrap().objects.get(KINDS[0]).and_then(|services| services.get(&name).cloned());
    let Some(mut service) = found else { return reply(stream, 404, &failure(404, "NotFound")) };
    if service["metadata"]["uid"] != body["metadata"]["uid"] {
        return reply(stream, 409, &failure(409, "Conflict"));
    }
    service["status"] = body["status"].clone();
    if state.held.lock().unwrap().lacks_mode {
        let ingress = service["status"]["loadBalancer"]["ingress"][0].as_object_mut();
        ingress.map(|ingress| ingress.remove("ipMode"));
    }
    service["metadata"]["managedFields"] = json!([{
        "manager": "viproute", "subresource": "status", "operation": "Apply", "fieldsType": "FieldsV1", "time": "2026-01-01T00:00:00Z",
        "fieldsV1": { "f:status": { "f:loadBalancer": {} } },
    }]);
    state.set(KINDS[0], service.clone());
    reply(stream, 200, &service)
}

fn reply(mut stream: &TcpStream, code: u16, body: &Value) -> Option<()> {
    let text = body.to_string();
    let again = if code == 429 { "retry-after: 1\r\n" } else { "" };
    let length = text.len();
    let head =
        format!("HTTP/1.1 {code} X\r\ncontent-type: application/json\r\n{again}content-length: {length}\r\n\r\n");
    stream.write_all((head + &text).as_bytes()).ok()
}

fn watch(mut stream: &TcpStream, state: &State, kind: &str, query: &str) -> Option<()> {
    let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let mut at: usize = version.and_then(|version| version.parse().ok()).unwrap_or_default();
    let (cluster, expiries) = {
        let held = state.held.lock().unwrap();
        (held.cluster.clone(), held.expiries)
    };
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .ok()?;
    let mut held = state.held.lock().unwrap();
    loop {
        // Who is away, or is another one by now, hangs up.
        if held.is_away || held.cluster != cluster || held.refused.contains_key(kind) {
            return None;
        }
        if held.expiries != expiries || at < held.oldest {
            let line = format!("{}\n", json!({ "type": "ERROR", "object": failure(410, "Expired") }));
            stream.write_all(format!("{:x}\r\n{line}\r\n0\r\n\r\n", line.len()).as_bytes()).ok()?;
            return Some(());
        }
        let news: Vec<String> =
            held.log[at..].iter().filter(|(of, _)| *of == kind).map(|(_, event)| format!("{event}\n")).collect();
        at = held.log.len();
        drop(held);
        for line in news {
            stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).ok()?;
        }
        held = state.held.lock().unwrap();
        if held.log.len() == at {
            held = state.changed.wait_timeout(held, Duration::from_millis(200)).unwrap().0;
        }
    }
}
