//! A VIP's name.

use std::fmt;
use std::str::FromStr;

/// `<namespace>/<name>`, each an RFC 1123 label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    namespace: String,
    name: String,
}

/// A string that is no VIP's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no VIP name: expected {expected}")]
pub struct BadKey {
    /// What was given.
    pub value: String,
    /// What it may be.
    pub expected: &'static str,
}

/// RFC 1123 section 2.1 with RFC 1035's length.
const MAX_LABEL: usize = 63;

impl VipKey {
    /// A VIP of one namespace.
    pub fn new(namespace: &str, name: &str) -> Result<Self, BadKey> {
        for label in [namespace, name] {
            if !is_label(label) {
                let expected = "1 to 63 lower-case letters, digits and '-', none of them '-' at an end";
                return Err(BadKey { value: label.to_owned(), expected });
            }
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As directories and files are named: `<namespace>_<name>`. Labels have no underscore.
    pub fn dir_name(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }

    /// The key that a directory's name encodes.
    pub fn from_dir_name(name: &str) -> Option<Self> {
        let (namespace, name) = name.split_once('_')?;
        Self::new(namespace, name).ok()
    }
}

fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=MAX_LABEL).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

impl fmt::Display for VipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for VipKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name).map_err(|e| BadKey { value: text.to_owned(), ..e }),
            None => Err(BadKey { value: text.to_owned(), expected: "<namespace>/<name>" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_rfc_1123_labels() {
        for good in ["shop/web", "a/b", "0/1-2"] {
            assert_eq!(good.parse::<VipKey>().unwrap().to_string(), good);
        }
        let long = format!("a/{}", "x".repeat(64));
        for bad in ["", "/", "a/", "/b", "a", "a/b/c", "A/b", "a/-b", "a/b-", "a/b_c", "a/..", "a/é", "a/ b", &long] {
            assert!(bad.parse::<VipKey>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_directory_name_leads_back(namespace in "[a-z0-9]{1,10}", name in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?") {
            let key = VipKey::new(&namespace, &name).unwrap();
            prop_assert_eq!(VipKey::from_dir_name(&key.dir_name()), Some(key));
        }
    }
}
