//! The families of addresses that a Service is to have (`ipFamilies`, `ipFamilyPolicy`). Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};

use crate::model::{Addresses, Family, Recorded};

use super::desired::Note;

/// What a Service says of families.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Families {
    /// In the order of the Service; the API fills it in. None: an API that knows no families, and so IPv4's.
    all: Vec<Recorded<Family>>,
    /// `RequireDualStack`: without an address of each there is none.
    is_all_needed: bool,
}

/// What a Service gets of its VIP's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// For its status, in its own order.
    pub addresses: Vec<IpAddr>,
    /// Families of which the VIP has none.
    pub missing: BTreeSet<Family>,
}

impl Families {
    /// As the Service has them.
    pub fn of(spec: &core::ServiceSpec) -> Self {
        let all = spec.ip_families.iter().flatten().filter_map(|name| name.parse().ok()).map(Recorded::Known);
        Self { all: all.collect(), is_all_needed: spec.ip_family_policy.as_deref() == Some("RequireDualStack") }
    }

    /// In the order of the Service.
    pub fn iter(&self) -> impl Iterator<Item = Family> + '_ {
        let said = self.all.iter().filter_map(Recorded::known).copied();
        said.chain(self.all.is_empty().then_some(Family::V4))
    }

    /// By slices of that family its pods are known: every pod is in one of each family that the Service has.
    pub fn of_slices(&self) -> Family {
        if self.iter().any(|family| family == Family::V4) { Family::V4 } else { Family::V6 }
    }

    /// What it gets of its VIP's addresses. One that needs what there isn't gets nothing.
    pub fn given(&self, addresses: Option<&Addresses>) -> Given {
        let Some(addresses) = addresses else { return Given::default() };
        let of = |family| addresses.iter().find(|address| Family::of(*address) == family);
        let missing: BTreeSet<Family> = self.iter().filter(|family| of(*family).is_none()).collect();
        let waits = self.is_all_needed && !missing.is_empty();
        Given { addresses: if waits { Vec::new() } else { self.iter().filter_map(of).collect() }, missing }
    }

    /// It gets none of its VIP's addresses, which are known: its pods wait too.
    pub fn waits(&self, addresses: Option<&Addresses>) -> bool {
        addresses.is_some() && self.given(addresses).addresses.is_empty()
    }
}

impl Given {
    /// What there is to say of it; `None`: it has all that it wants, or nothing yet. `why`: what keeps its VIP from an address of IPv6.
    pub fn note(&self, why: Option<&String>) -> Option<Note> {
        let family = *self.missing.first()?;
        let why = why.filter(|_| family == Family::V6).cloned();
        Some(Note::NoFamily { family, waits: self.addresses.is_empty(), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(names: &[&str], policy: &str) -> Families {
        Families::of(&core::ServiceSpec {
            ip_families: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ip_family_policy: Some(policy.to_owned()),
            ..core::ServiceSpec::default()
        })
    }

    #[test]
    fn a_service_gets_what_it_asks_for_in_its_order() {
        let [four, six]: [IpAddr; 2] = ["10.118.0.7", "fd00:118::7"].map(|text| text.parse().unwrap());
        let both = Addresses::try_from(vec![four, six]).unwrap();
        let one = Addresses::from(four);
        for (names, policy, addresses, given, missing) in [
            (&["IPv4"][..], "SingleStack", &both, vec![four], vec![]),
            (&["IPv6"], "SingleStack", &both, vec![six], vec![]),
            (&["IPv6"], "SingleStack", &one, vec![], vec![Family::V6]),
            (&["IPv4", "IPv6"], "PreferDualStack", &both, vec![four, six], vec![]),
            (&["IPv6", "IPv4"], "RequireDualStack", &both, vec![six, four], vec![]),
            (&["IPv6", "IPv4"], "PreferDualStack", &one, vec![four], vec![Family::V6]),
            (&["IPv4", "IPv6"], "RequireDualStack", &one, vec![], vec![Family::V6]),
            (&[], "", &both, vec![four], vec![]),
        ] {
            let expected = Given { addresses: given, missing: missing.into_iter().collect() };
            assert_eq!(families(names, policy).given(Some(addresses)), expected, "{names:?} {policy}");
        }
        let waits = families(&["IPv4", "IPv6"], "RequireDualStack").given(Some(&one));
        let why = "no DHCPv6 server answers".to_owned();
        let note = waits.note(Some(&why));
        assert_eq!(note, Some(Note::NoFamily { family: Family::V6, waits: true, why: Some(why) }));
        assert_eq!(families(&["IPv4", "IPv6"], "RequireDualStack").given(None), Given::default());
        let waits = |names: &[&str], policy, addresses| families(names, policy).waits(addresses);
        assert!(
            waits(&["IPv4", "IPv6"], "RequireDualStack", Some(&one)) && waits(&["IPv6"], "SingleStack", Some(&one))
        );
        assert!(!waits(&["IPv4", "IPv6"], "PreferDualStack", Some(&one)) && !waits(&["IPv6"], "SingleStack", None));
    }

    #[test]
    fn pods_are_known_by_slices_of_ipv4_where_the_service_has_it() {
        assert_eq!(families(&["IPv6", "IPv4"], "PreferDualStack").of_slices(), Family::V4);
        assert_eq!(families(&["IPv6"], "SingleStack").of_slices(), Family::V6);
        assert_eq!(Families::default().of_slices(), Family::V4);
    }
}
