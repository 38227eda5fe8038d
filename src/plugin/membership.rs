//! Which VIPs a pod joins, and what else its annotations say.

use std::collections::BTreeSet;

use crate::cni::{Call, Config};
use crate::registry::{BadKey, VipKey};

use super::error::Error;

/// Annotations of ours begin with this.
const PREFIX: &str = "viproute.io/";
const VIP: &str = "viproute.io/vip";
const PORTS: &str = "viproute.io/ports";
const WEIGHT: &str = "viproute.io/weight";
/// So many VIPs a pod may join.
const MAX_VIPS: usize = 8;
/// The namespace of a container that has none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a pod asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership {
    /// The VIPs it joins, at least one.
    pub vips: Vec<VipKey>,
    /// What they serve: `80/tcp`; empty: everything.
    pub ports: Vec<String>,
    /// Its share beside the other replicas'.
    pub weight: u8,
}

/// Reads a pod's membership. `None`: it names no VIP, which is most pods.
pub fn read(call: &Call, config: &Config) -> Result<Option<Membership>, Error> {
    let annotated = config.annotations.get(VIP).map(|text| split(text));
    if annotated.is_none() && config.vips.is_empty() {
        return Ok(None);
    }
    let namespace = match call.pod.namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    let mut vips = Vec::new();
    for name in annotated.unwrap_or_default() {
        vips.push(key(VIP, namespace, name, false)?);
    }
    for name in &config.vips {
        vips.push(key("\"vips\"", namespace, name.trim(), true)?);
    }
    check_list(&vips)?;
    check_annotations(config)?;
    let ports = config.annotations.get(PORTS).map_or(Ok(Vec::new()), |text| ports(text))?;
    let weight = config.annotations.get(WEIGHT).map_or(Ok(1), |text| weight(text))?;
    Ok(Some(Membership { vips, ports, weight }))
}

/// A comma list; blanks around the commas don't matter.
fn split(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).collect()
}

/// Only the conflist may name another namespace's VIP: an annotation is the pod's own word.
fn key(what: &str, namespace: &str, name: &str, may_be_qualified: bool) -> Result<VipKey, Error> {
    if may_be_qualified && name.contains('/') {
        return name.parse().map_err(|bad: BadKey| invalid(what, &bad.value, bad.expected));
    }
    VipKey::new(namespace, name).map_err(|bad| {
        let what = if bad.value == name { what } else { "K8S_POD_NAMESPACE" };
        invalid(what, &bad.value, bad.expected)
    })
}

/// So much of a bad value is shown; an annotation may have a quarter of a megabyte, and errors go into logs.
const MAX_SHOWN: usize = 200;

fn invalid(what: &str, value: &str, expected: &'static str) -> Error {
    let mut shown: String = value.chars().take(MAX_SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    Error::Invalid { what: what.to_owned(), value: shown, expected }
}

fn check_list(vips: &[VipKey]) -> Result<(), Error> {
    if vips.len() > MAX_VIPS {
        let text = format!("{} VIPs are named: a pod can join {MAX_VIPS} ({VIP} and \"vips\" together)", vips.len());
        return Err(Error::Membership(text));
    }
    let mut seen = BTreeSet::new();
    match vips.iter().find(|vip| !seen.insert(*vip)) {
        Some(twice) => Err(Error::Membership(format!("VIP {twice} is named twice ({VIP} and \"vips\" together)"))),
        None => Ok(()),
    }
}

/// A misspelt annotation of ours must not be taken for none.
fn check_annotations(config: &Config) -> Result<(), Error> {
    let known = [VIP, PORTS, WEIGHT];
    match config.annotations.keys().find(|key| key.starts_with(PREFIX) && !known.contains(&key.as_str())) {
        Some(key) => {
            Err(Error::Membership(format!("annotation {key:?} is none of viproute's: expected {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// `80/tcp,53/udp`.
fn ports(text: &str) -> Result<Vec<String>, Error> {
    let good = |port: &str| {
        port.split_once('/').is_some_and(|(number, protocol)| {
            let digits = !number.starts_with('+') && number.parse::<u16>().is_ok_and(|n| n > 0);
            digits && matches!(protocol, "tcp" | "udp")
        })
    };
    let list = split(text);
    match list.iter().find(|port| !good(port)) {
        None => Ok(list.into_iter().map(str::to_owned).collect()),
        Some(bad) => Err(invalid(PORTS, bad, "a list like 80/tcp,53/udp, ports from 1 to 65535")),
    }
}

fn weight(text: &str) -> Result<u8, Error> {
    text.parse().ok().filter(|weight| *weight > 0).ok_or_else(|| invalid(WEIGHT, text, "a number from 1 to 255"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(namespace: &str, annotations: &[(&str, &str)], vips: &[&str]) -> Result<Option<Membership>, Error> {
        let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
        let config = serde_json::json!({"cniVersion": "1.0.0", "name": "net", "vips": vips,
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}});
        let env = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => "ADD".into(),
                "CNI_ARGS" => format!("K8S_POD_NAMESPACE={namespace}").into(),
                _ => "x".into(),
            })
        };
        read(&Call::from_env(env).unwrap(), &Config::parse(config.to_string().as_bytes()).unwrap())
    }

    fn names(membership: Option<Membership>) -> Vec<String> {
        membership.unwrap().vips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_that_names_no_vip_is_none_of_ours() {
        assert_eq!(member("shop", &[("other.io/x", "y")], &[]).unwrap(), None);
    }

    #[test]
    fn annotation_and_conflist_add_up() {
        let found = member("shop", &[("viproute.io/vip", " web , api")], &["dns/dns", "log"]).unwrap();
        assert_eq!(names(found), ["shop/web", "shop/api", "dns/dns", "shop/log"]);
        assert_eq!(names(member("", &[], &["web"]).unwrap()), ["default/web"]);
    }

    #[test]
    fn an_annotation_cannot_reach_another_namespace() {
        let error = member("shop", &[("viproute.io/vip", "bank/web")], &[]).unwrap_err();
        assert!(error.to_string().starts_with("viproute.io/vip is \"bank/web\": expected"), "{error}");
    }

    #[test]
    fn bad_lists_are_refused() {
        for bad in ["", "a,,b", "a,a", "Web", "a,b,c,d,e,f,g,h,i", "../x", "a b"] {
            assert!(member("shop", &[("viproute.io/vip", bad)], &[]).is_err(), "{bad:?}");
        }
        assert!(member("shop", &[("viproute.io/vip", "web")], &["shop/web"]).is_err());
        assert!(member("shop", &[("viproute.io/vip", "web"), ("viproute.io/port", "80/tcp")], &[]).is_err());
    }

    #[test]
    fn ports_and_weight_are_checked() {
        let with = |key, value| member("shop", &[("viproute.io/vip", "web"), (key, value)], &[]);
        assert_eq!(with(PORTS, "80/tcp, 53/udp").unwrap().unwrap().ports, ["80/tcp", "53/udp"]);
        assert_eq!(with(WEIGHT, "255").unwrap().unwrap().weight, 255);
        for bad in ["80", "0/tcp", "65536/tcp", "80/sctp", "+80/tcp", "80/tcp,"] {
            assert!(with(PORTS, bad).is_err(), "{bad}");
        }
        for bad in ["0", "256", "-1", "x", ""] {
            assert!(with(WEIGHT, bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn annotation_values_never_panic(vip in "\\PC{0,80}", ports in "\\PC{0,40}", weight in "\\PC{0,10}") {
            let _ = member("shop", &[(VIP, &vip), (PORTS, &ports), (WEIGHT, &weight)], &[]);
        }
    }
}
