//! Schema 1 of the records, which the version before this one reads and writes: an address was one, not a list, and some
//! keys had other names. A record's keys are rewritten as a whole, so that nothing else knows of it; keys of neither
//! schema stay as they are.

use serde_json::Value;

use super::file::Fields;

/// What schema 2 has under another name.
pub struct Names {
    /// Schema 1's, schema 2's.
    pub renamed: &'static [(&'static str, &'static str)],
    /// `address` was one address, where `addresses` is a list of them.
    pub has_address: bool,
}

const ADDRESS: &str = "address";
const ADDRESSES: &str = "addresses";

impl Names {
    /// Rewrites the keys of schema 1 as schema 2 has them.
    pub fn upgrade(&self, fields: &mut Fields) {
        for (old, new) in self.renamed {
            rename(fields, old, new);
        }
        if self.has_address
            && let Some(address) = fields.remove(ADDRESS)
        {
            fields.insert(ADDRESSES.to_owned(), Value::Array(vec![address]));
        }
    }

    /// The reverse. Error: what schema 1 can't say.
    pub fn downgrade(&self, fields: &mut Fields) -> Result<(), &'static str> {
        for (old, new) in self.renamed {
            rename(fields, new, old);
        }
        if !self.has_address {
            return Ok(());
        }
        match fields.remove(ADDRESSES) {
            Some(Value::Array(addresses)) if addresses.len() == 1 => {
                fields.extend(addresses.into_iter().map(|address| (ADDRESS.to_owned(), address)));
            }
            _ => return Err("several addresses"),
        }
        if fields.contains_key("backend") { Err("a replica on another node") } else { Ok(()) }
    }
}

fn rename(fields: &mut Fields, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests;
