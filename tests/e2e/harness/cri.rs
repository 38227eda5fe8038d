//! What the kubelet says to a runtime: the few calls of the CRI (`runtime.v1`) that are about pod sandboxes.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use http::{HeaderMap, Request};
use prost::Message;
use serde_json::Value;
use tokio::net::UnixStream;

use super::wait::{LONG, scaled};

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// The reply to `RunPodSandbox`, and the request of those that name a sandbox.
#[derive(Clone, PartialEq, Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
    /// Of `PodSandboxStatus` alone.
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusReply {
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ListReply {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Listed>,
}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(string, tag = "1")]
    id: String,
}

/// The reply to `Status`.
#[derive(Clone, PartialEq, Message)]
struct RuntimeReply {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    met: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// A runtime's CRI socket.
pub struct Cri {
    pub socket: PathBuf,
    /// Sandboxes' cgroups go below it.
    pub cgroup: String,
}

impl Cri {
    /// `RunPodSandbox`: its id, or the runtime's error message.
    pub fn run(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) -> Result<String, String> {
        let text = |(key, value): &(&str, &str)| ((*key).to_string(), (*value).to_string());
        let config = SandboxConfig {
            metadata: Some(Metadata { name: name.into(), uid: format!("{name}-uid"), namespace: namespace.into() }),
            annotations: annotations.iter().map(text).collect(),
            linux: Some(LinuxConfig { cgroup_parent: self.cgroup.clone() }),
        };
        self.call::<SandboxId>("RunPodSandbox", &RunRequest { config: Some(config) }).map(|reply| reply.id)
    }

    pub fn stop(&self, id: &str) {
        self.call::<Empty>("StopPodSandbox", &named(id)).unwrap_or_else(|error| panic!("stop {id}: {error}"));
    }

    pub fn remove(&self, id: &str) {
        self.call::<Empty>("RemovePodSandbox", &named(id)).unwrap_or_else(|error| panic!("remove {id}: {error}"));
    }

    /// The sandboxes it knows.
    pub fn list(&self) -> Vec<String> {
        let reply: ListReply = self.call("ListPodSandbox", &Empty {}).expect("the list of sandboxes");
        reply.items.into_iter().map(|sandbox| sandbox.id).collect()
    }

    /// What `PodSandboxStatus` tells of the sandbox's inside.
    pub fn info(&self, id: &str) -> Value {
        let request = SandboxId { verbose: true, ..named(id) };
        let reply: StatusReply = self.call("PodSandboxStatus", &request).expect("the sandbox's status");
        serde_json::from_str(&reply.info["info"]).expect("the info is JSON")
    }

    /// The condition `NetworkReady`, from which the kubelet makes the node's `Ready`: `Err` holds the runtime's message.
    pub fn network_ready(&self) -> Result<(), String> {
        let reply: RuntimeReply = self.call("Status", &Empty {}).expect("the runtime's status");
        let conditions = reply.status.expect("a status").conditions;
        let network = conditions.into_iter().find(|condition| condition.kind == "NetworkReady").expect("NetworkReady");
        if network.met { Ok(()) } else { Err(network.message) }
    }

    /// Whether the runtime answers.
    pub fn answers(&self) -> bool {
        self.call::<Empty>("Version", &Empty {}).is_ok()
    }

    fn call<R: Message + Default>(&self, method: &str, request: &impl Message) -> Result<R, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        let unary = unary(&self.socket, method, request.encode_to_vec());
        let reply = runtime.block_on(async { tokio::time::timeout(scaled(LONG), unary).await });
        let reply =
            reply.map_err(|_| format!("{method} took {:?}", scaled(LONG)))?.map_err(|error| error.to_string())?;
        R::decode(reply.as_slice()).map_err(|error| error.to_string())
    }
}

fn named(id: &str) -> SandboxId {
    SandboxId { id: id.into(), verbose: false }
}

/// One gRPC call: a message there and one back, each behind a flag byte and its length, and the outcome in the trailers.
async fn unary(socket: &Path, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Box<dyn Error>> {
    let (client, connection) = h2::client::handshake(UnixStream::connect(socket).await?).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut sending) = client.ready().await?.send_request(request, false)?;
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len())?.to_be_bytes());
    frame.extend(message);
    sending.send_data(frame.into(), true)?;

    let (head, mut body) = response.await?.into_parts();
    let mut reply = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        reply.extend_from_slice(&chunk);
    }
    // An error comes with no message, and what would be trailers is the head.
    succeeded(&body.trailers().await?.unwrap_or(head.headers))?;
    connection.abort();
    Ok(reply.get(5..).ok_or("a reply without a message")?.to_vec())
}

fn succeeded(trailers: &HeaderMap) -> Result<(), String> {
    let text = |key: &str| trailers.get(key).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        status => Err(format!("status {status:?}: {}", text("grpc-message").unwrap_or_default())),
    }
}
