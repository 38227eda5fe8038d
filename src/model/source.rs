//! Why a pod is a replica of a VIP.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What made a pod a replica; decides which source may remove it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The pod's own annotation. Records that name no source were written when there was no other.
    #[default]
    Annotation,
    /// The `"vips"` of its network.
    Conflist,
    /// A Kubernetes Service.
    Service,
    /// Another node, which has the pod.
    Peer,
    /// `viproutectl join`.
    Person,
    /// A later version's.
    #[serde(untagged)]
    Other(String),
}

impl Source {
    /// As records leave it out.
    pub fn is_annotation(&self) -> bool {
        *self == Self::Annotation
    }

    /// The pod is on this node: it has an attachment here, and without one the replica is an orphan.
    pub fn has_attachment(&self) -> bool {
        !matches!(self, Self::Peer | Self::Other(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Conflist => "conflist",
            Self::Service => "service",
            Self::Peer => "peer",
            Self::Person => "person",
            Self::Other(text) => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn a_later_versions_source_survives() {
        for text in ["annotation", "conflist", "service", "peer", "person", "lease-of-tomorrow"] {
            let source: Source = serde_json::from_value(text.into()).unwrap();
            assert_eq!(source.to_string(), text);
            assert_eq!(serde_json::to_value(&source).unwrap(), text);
        }
        let by_hand: Source = serde_json::from_value("person".into()).unwrap();
        assert!(by_hand.has_attachment() && !Source::Peer.has_attachment());
    }
}
