//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A string that is no Ethernet address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address like 06:76:d7:2e:03:2f")]
pub struct BadMac;

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if place == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// As it is shown.
impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        // `from_str_radix` would take a sign.
        let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = |byte: &str| is_byte(byte).then(|| u8::from_str_radix(byte, 16).ok()).flatten();
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(BadMac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn six_bytes_of_two_digits_are_an_ethernet_address() {
        for bad in ["", "06:76", "06:76:d7:2e:03:2f:00", "6:76:d7:2e:3:2f", "+6:76:d7:2e:03:2f", "06-76-d7-2e-03-2f"] {
            assert_eq!(bad.parse::<Mac>(), Err(BadMac), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
            let recorded = serde_json::to_string(&Mac(bytes)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Mac>(&recorded).unwrap(), Mac(bytes));
        }
    }
}
