//! What a replica needs of its VIP's families. A VIP that lacks an address of one is refused, never served in part.

use crate::api::protocol::Refusal;
use crate::model::{Addresses, Family};

use super::{Error, Want};

/// The family that the want needs and of which none of these addresses is.
pub(super) fn lacking(want: &Want, addresses: &Addresses) -> Option<Family> {
    let has = |family: &Family| addresses.iter().any(|address| Family::of(address) == *family);
    want.families?.needed().find(|family| !has(family))
}

/// Refuses a VIP with these addresses if one is lacking; `why`: what viprouted says of that.
pub(super) fn check(want: &Want, addresses: &Addresses, why: Option<&Refusal>) -> Result<(), Error> {
    match (want.families, lacking(want, addresses)) {
        (Some(asked), Some(family)) => {
            Err(Error::NoFamily { vip: want.vip.to_string(), asked, family, why: why.cloned() })
        }
        _ => Ok(()),
    }
}
