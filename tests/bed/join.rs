//! How a pod joins its VIPs: what the conflist entry and the pod's annotations say.

use serde_json::{Map, Value, json};

/// One way to call the plugin; two calls with the same `Join` and pod are about the same attachment.
#[derive(Clone)]
pub struct Join {
    /// `K8S_POD_NAMESPACE`; `None`: a runtime that knows no namespaces.
    pub namespace: Option<String>,
    /// What `runtimeConfig` holds under the annotations' capability; `None`: no `runtimeConfig` at all.
    pub annotations: Option<Value>,
    /// Keys of the conflist entry, over the harness's own.
    pub entry: Map<String, Value>,
    /// The conflist's `cniVersion`.
    pub version: &'static str,
}

pub const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

impl Join {
    /// A pod that names no VIP.
    pub fn nothing() -> Self {
        let namespace = Some("default".into());
        Self { namespace, annotations: Some(json!({})), entry: Map::new(), version: "1.0.0" }
    }

    /// By the pod's annotation, the way containerd passes it.
    pub fn annotated(vips: &str) -> Self {
        Self { annotations: Some(json!({ "viproute.io/vip": vips })), ..Self::nothing() }
    }

    /// By the conflist alone, the way podman has to: no namespace, no annotations.
    pub fn listed(vips: &[&str]) -> Self {
        Self { namespace: None, annotations: None, ..Self::nothing() }.key("vips", json!(vips))
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Another annotation of the pod's.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.get_or_insert_with(|| json!({}))[key] = json!(value);
        self
    }

    /// STATUS is to say whether an ADD with a VIP could work.
    pub fn strict(self) -> Self {
        self.key("strictStatus", json!(true))
    }

    /// A key of the conflist entry.
    pub fn key(mut self, key: &str, value: Value) -> Self {
        self.entry.insert(key.into(), value);
        self
    }

    pub fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }
}
