//! What may leave a pod with a VIP as its source.

use std::fmt;
use std::str::FromStr;

use super::Recorded;

/// Whether a pod does more with a VIP than to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// Answers alone: a pod that could begin flows would get around any policy on its own interface.
    #[default]
    Answer,
    /// Flows may begin in the pod.
    Any,
}

/// Neither `answer` nor `any`.
#[derive(Debug, thiserror::Error)]
#[error("neither \"answer\" nor \"any\"")]
pub struct BadEgress;

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "answer",
            Self::Any => "any",
        })
    }
}

impl FromStr for Egress {
    type Err = BadEgress;

    fn from_str(text: &str) -> Result<Self, BadEgress> {
        match text {
            "answer" => Ok(Self::Answer),
            "any" => Ok(Self::Any),
            _ => Err(BadEgress),
        }
    }
}

impl Default for Recorded<Egress> {
    fn default() -> Self {
        Self::Known(Egress::default())
    }
}

impl Recorded<Egress> {
    /// Nothing has to be recorded.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Flows may begin in the pod. What this version doesn't know opens no way out.
    pub fn is_any(&self) -> bool {
        *self == Self::Known(Egress::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_opens_no_way_out_and_is_kept() {
        for (text, is_any, is_default) in
            [("\"any\"", true, false), ("\"answer\"", false, true), ("\"some\"", false, false)]
        {
            let read: Recorded<Egress> = serde_json::from_str(text).unwrap();
            assert_eq!((read.is_any(), read.is_default()), (is_any, is_default), "{text}");
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
