//! Values of a record that a later version may have written in a form of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value as a record has it: text that this version reads, or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recorded<T> {
    /// One that this version knows.
    Known(T),
    /// A later version's, in its words. It is kept, and written again as it came.
    Other(String),
}

impl<T> Recorded<T> {
    /// The value, where this version knows it.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Other(_) => None,
        }
    }

    /// The text, where this version doesn't know what it means.
    pub fn other(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Other(text) => Some(text),
        }
    }
}

impl<T: FromStr> Recorded<T> {
    /// From a record's text.
    pub fn read(text: String) -> Self {
        text.parse().map_or_else(|_| Self::Other(text), Self::Known)
    }
}

impl<T> From<T> for Recorded<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: fmt::Display> fmt::Display for Recorded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl<T: fmt::Display> Serialize for Recorded<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Recorded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CheckSpec, Mac, Port, VipKey};
    use proptest::prelude::*;

    fn round_trip<T: FromStr + fmt::Display>(text: &str) -> (bool, String) {
        let json = serde_json::to_string(text).unwrap();
        let read: Recorded<T> = serde_json::from_str(&json).unwrap();
        (read.known().is_some(), serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap())
    }

    #[test]
    fn what_is_known_is_read_and_what_is_not_is_kept() {
        assert_eq!(round_trip::<Port>("80/tcp"), (true, "80/tcp".into()));
        assert_eq!(round_trip::<Port>("80-90/tcp"), (false, "80-90/tcp".into()));
        assert_eq!(round_trip::<Mac>("06:76:00:00:00:01"), (true, "06:76:00:00:00:01".into()));
        assert_eq!(round_trip::<CheckSpec>("grpc:80"), (false, "grpc:80".into()));
        assert_eq!(round_trip::<VipKey>("cluster/shop/web"), (false, "cluster/shop/web".into()));
    }

    proptest! {
        #[test]
        fn no_text_is_lost(text in "\\PC{0,30}") {
            for (known, written) in [
                round_trip::<Port>(&text),
                round_trip::<Mac>(&text),
                round_trip::<CheckSpec>(&text),
                round_trip::<VipKey>(&text),
            ] {
                prop_assert!(known || written == text);
            }
        }
    }
}
