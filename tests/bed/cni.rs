//! One call of a CNI plugin, and what it answered.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::command::{CNI_DIRS, Finished, Run};
use super::join::{CAPABILITY, Join};

/// A container as a runtime names it in a call.
pub struct Container<'a> {
    pub id: &'a str,
    /// `K8S_POD_NAME`
    pub pod: &'a str,
    /// The path of its network namespace.
    pub netns: String,
}

/// The conflist entry as libcni completes it, on a node that has its files in `dir`.
pub fn conf(dir: &Path, bpf_dir: &str, join: &Join) -> Value {
    let mut conf = json!({
        "cniVersion": join.version,
        "name": NETWORK,
        "type": "viproute",
        "capabilities": { CAPABILITY: true },
        "dataDir": dir.join("data"),
        "allocator": dir.join("viprouted.sock"),
        "bpfDir": bpf_dir,
    });
    for (key, value) in &join.entry {
        conf[key] = value.clone();
    }
    if let Some(annotations) = &join.annotations {
        conf["runtimeConfig"] = json!({ CAPABILITY: annotations });
    }
    conf
}

/// The name of the network in every conflist here.
pub const NETWORK: &str = "pods";

/// The environment of a call; `None` leaves the variable out.
#[derive(Clone, Default)]
pub struct Environment {
    pub command: Option<String>,
    pub container: Option<String>,
    pub netns: Option<String>,
    pub ifname: Option<String>,
    pub args: Option<String>,
    pub path: Option<String>,
}

impl Environment {
    /// Of a verb about the network.
    pub fn of(verb: &str) -> Self {
        Self { command: Some(verb.into()), path: Some(CNI_DIRS.join(":")), ..Self::default() }
    }

    /// Of a verb about an attachment.
    pub fn about(verb: &str, container: Container, join: &Join) -> Self {
        let namespace = join.namespace.as_ref().map(|namespace| format!(";K8S_POD_NAMESPACE={namespace}"));
        Self {
            container: Some(container.id.into()),
            netns: Some(container.netns),
            ifname: Some("eth0".into()),
            args: Some(format!("IgnoreUnknown=1;K8S_POD_NAME={}{}", container.pod, namespace.unwrap_or_default())),
            ..Self::of(verb)
        }
    }

    /// Sets them on `command`, and nothing else of the kind: what the test process has must not leak in.
    pub fn apply(&self, command: &mut Command) {
        let variables = [
            ("CNI_COMMAND", &self.command),
            ("CNI_CONTAINERID", &self.container),
            ("CNI_NETNS", &self.netns),
            ("CNI_IFNAME", &self.ifname),
            ("CNI_ARGS", &self.args),
            ("CNI_PATH", &self.path),
        ];
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

/// What the plugin answered.
#[derive(Debug, Clone)]
pub struct Reply(pub Finished);

/// An error as the CNI specification has it.
#[derive(Debug)]
pub struct Failure {
    pub code: i64,
    pub msg: String,
    pub details: String,
}

impl Failure {
    /// `msg` and `details` in one: for tests that only care that something is named.
    pub fn text(&self) -> String {
        format!("{} {}", self.msg, self.details)
    }
}

impl Reply {
    pub fn of(command: &mut Command, environment: &Environment, stdin: &str) -> Self {
        environment.apply(command);
        Self(command.finish(stdin))
    }

    pub fn succeeded(&self) -> bool {
        self.0.status.success()
    }

    /// The result of a call that must succeed; `null` where the verb has none.
    pub fn ok(&self) -> Value {
        assert!(self.succeeded(), "the call failed: {self:?}");
        if self.0.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&self.0.stdout).unwrap_or_else(|error| panic!("stdout isn't JSON: {error}: {self:?}"))
    }

    /// The error of a call that must fail, which has to be a whole one: JSON on stdout, a code, a sentence.
    pub fn error(&self) -> Failure {
        assert!(self.0.status.code().is_some_and(|code| code != 0), "the call was to fail: {self:?}");
        assert!(!self.0.stderr.contains("panicked"), "a panic: {self:?}");
        let error: Value = serde_json::from_str(&self.0.stdout)
            .unwrap_or_else(|problem| panic!("the error isn't JSON: {problem}: {self:?}"));
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_string();
        assert!(!text("cniVersion").is_empty(), "an error without cniVersion: {error}");
        assert!(!text("msg").is_empty(), "an error without msg: {error}");
        let code = error["code"].as_i64().unwrap_or_else(|| panic!("an error without code: {error}"));
        Failure { code, msg: text("msg"), details: text("details") }
    }
}
