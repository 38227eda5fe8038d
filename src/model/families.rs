//! By which families a pod wants its VIPs to be served.

use std::fmt;
use std::str::FromStr;

use super::Family;

/// What a pod asks for where it doesn't take what there is (`viproute.io/families`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FamilyChoice {
    /// One family and no other.
    Only(Family),
    /// Both: a VIP that lacks an address of one won't do.
    Both,
}

impl FamilyChoice {
    /// Those of which the VIP must have an address.
    pub fn needed(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.only().is_none_or(|only| only == *family))
    }

    /// The family beside which no other is wanted.
    pub const fn only(self) -> Option<Family> {
        match self {
            Self::Only(family) => Some(family),
            Self::Both => None,
        }
    }
}

impl fmt::Display for FamilyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(family) => family.fmt(f),
            Self::Both => f.write_str("ipv4,ipv6"),
        }
    }
}

/// A text that is no list of families.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected {EXPECTED_FAMILIES}")]
pub struct BadFamilies(String);

/// What it may be, for errors.
pub const EXPECTED_FAMILIES: &str = "\"ipv4\", \"ipv6\" or \"ipv4,ipv6\"";

impl FromStr for FamilyChoice {
    type Err = BadFamilies;

    /// A comma list in any order, each family once.
    fn from_str(text: &str) -> Result<Self, BadFamilies> {
        let named: Result<Vec<Family>, _> = text.split(',').map(|name| name.trim().parse()).collect();
        match named.as_deref() {
            Ok([one]) => Ok(Self::Only(*one)),
            Ok([one, other]) if one != other => Ok(Self::Both),
            _ => Err(BadFamilies(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_a_list_of_families() {
        let read = |text: &str| text.parse::<FamilyChoice>().ok();
        assert_eq!(read("ipv6"), Some(FamilyChoice::Only(Family::V6)));
        for both in ["ipv4,ipv6", "ipv6, ipv4", " IPv4,IPv6 "] {
            assert_eq!(read(both), Some(FamilyChoice::Both), "{both}");
        }
        for bad in ["", "ipv5", "ipv4,ipv4", "ipv4,", "ipv4,ipv6,ipv4", "ipv4 ipv6"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        for choice in [FamilyChoice::Both, FamilyChoice::Only(Family::V4)] {
            assert_eq!(read(&choice.to_string()), Some(choice));
        }
        assert_eq!(FamilyChoice::Both.needed().collect::<Vec<_>>(), Family::ALL);
        assert_eq!(FamilyChoice::Only(Family::V6).needed().collect::<Vec<_>>(), [Family::V6]);
    }
}
