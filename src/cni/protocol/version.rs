//! Versions (CNI spec, section 3, "VERSION").

use serde::Serialize;

pub use crate::model::cni::SUPPORTED;

/// What we answer with where the caller's version is unknown.
pub const NEWEST: &str = "1.1.0";

/// The answer to VERSION.
#[derive(Debug, Serialize)]
pub struct Versions {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    #[serde(rename = "supportedVersions")]
    supported: [&'static str; SUPPORTED.len()],
}

impl Versions {
    /// `asked`: the `cniVersion` of the caller's configuration, if it gave one.
    pub fn new(asked: Option<String>) -> Self {
        Self { cni_version: asked.unwrap_or_else(|| NEWEST.to_owned()), supported: SUPPORTED }
    }
}
