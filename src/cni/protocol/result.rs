//! Results (CNI spec, section 5, "Success"). What the plugins before us said passes through as they said it; a few
//! entries are added.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::Family;

use super::config::version_of;

/// The result of the plugins before us. Each key keeps its JSON text.
#[derive(Debug)]
pub struct PrevResult {
    keys: BTreeMap<String, Box<RawValue>>,
    interfaces: Vec<Box<RawValue>>,
    ips: Vec<Box<RawValue>>,
}

/// A prevResult that isn't one.
#[derive(Debug, thiserror::Error)]
#[error("prevResult is not a CNI result: {0}")]
pub struct ResultError(&'static str, #[source] serde_json::Error);

/// An entry of `interfaces`, as far as it matters here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// Ethernet address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The network namespace's path; empty on the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An entry of `ips`, as far as it matters here.
#[derive(Debug, Serialize, Deserialize)]
struct Ip {
    /// `"4"`; only in results before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    address: String,
    /// Signed: some plugins write -1 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

/// The IPv4 addresses a result has, by what it says of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first of the pod's own interface, in its sandbox.
    pub of_interface: Option<IpAddr>,
    /// Those of no interface in particular.
    pub loose: Vec<IpAddr>,
}

impl Addresses {
    /// The likeliest.
    pub fn first(&self) -> Option<IpAddr> {
        self.of_interface.or(self.loose.first().copied())
    }
}

impl PrevResult {
    /// Takes a result apart.
    pub fn parse(raw: &RawValue) -> Result<Self, ResultError> {
        let mut keys: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(raw.get()).map_err(|e| ResultError("it must be an object", e))?;
        let mut list = |key: &str, what| match keys.remove(key) {
            None => Ok(Vec::new()),
            Some(raw) => serde_json::from_str::<Option<Vec<Box<RawValue>>>>(raw.get())
                .map(Option::unwrap_or_default)
                .map_err(|e| ResultError(what, e)),
        };
        let interfaces = list("interfaces", "interfaces must be a list")?;
        let ips = list("ips", "ips must be a list")?;
        Ok(Self { keys, interfaces, ips })
    }

    /// The IPv4 addresses that may be the pod's. Those of any other interface are left out: plugins number the host veth, or
    /// an interface without sandbox, as often as the pod's.
    pub fn addresses(&self, ifname: &str) -> Addresses {
        let at = |index: usize| self.interfaces.get(index).and_then(|raw| serde_json::from_str(raw.get()).ok());
        let of_pod = |index| at(index).is_some_and(|i: Interface| i.name == ifname && !i.sandbox.is_empty());
        let mut addresses = Addresses::default();
        for raw in &self.ips {
            let Ok(ip) = serde_json::from_str::<Ip>(raw.get()) else { continue };
            let Ok(IpNetwork::V4(network)) = IpNetwork::from_str(&ip.address) else { continue };
            match ip.interface.map(usize::try_from) {
                Some(Ok(index)) if of_pod(index) => {
                    addresses.of_interface = addresses.of_interface.or(Some(IpAddr::V4(network.ip())));
                }
                Some(_) => {}
                None => addresses.loose.push(IpAddr::V4(network.ip())),
            }
        }
        addresses
    }

    /// The IPv6 addresses of the pod's interface, or of none that is named.
    pub fn others(&self, ifname: &str) -> Vec<IpAddr> {
        let at = |index: usize| self.interfaces.get(index).and_then(|raw| serde_json::from_str(raw.get()).ok());
        let of_pod = |index| at(index).is_some_and(|i: Interface| i.name == ifname && !i.sandbox.is_empty());
        let ips = self.ips.iter().filter_map(|raw| serde_json::from_str::<Ip>(raw.get()).ok());
        let own = ips.filter(|ip| match ip.interface.map(usize::try_from) {
            Some(Ok(index)) => of_pod(index),
            Some(Err(_)) => false,
            None => true,
        });
        own.filter_map(|ip| match IpNetwork::from_str(&ip.address) {
            Ok(IpNetwork::V6(network)) => Some(IpAddr::V6(network.ip())),
            _ => None,
        })
        .collect()
    }

    /// Adds a device; returns its index for [`PrevResult::add_address`].
    pub fn add_interface(&mut self, interface: &Interface) -> usize {
        self.interfaces.extend(serde_json::value::to_raw_value(interface));
        self.interfaces.len() - 1
    }

    /// Adds an address of a device.
    pub fn add_address(&mut self, cni_version: &str, address: IpAddr, interface: usize) {
        let family = Family::of(address);
        let number = match family {
            Family::V4 => "4",
            Family::V6 => "6",
        };
        let version = cni_version.starts_with("0.").then(|| number.to_owned());
        let ip =
            Ip { version, address: format!("{address}/{}", family.bits()), interface: i64::try_from(interface).ok() };
        self.ips.extend(serde_json::value::to_raw_value(&ip));
    }

    /// Puts it together again, as a result of that version: the configuration's, whatever the plugin before us wrote.
    pub fn to_json(&self, cni_version: &str) -> serde_json::Result<String> {
        let mut keys: BTreeMap<&str, &RawValue> = self.keys.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect();
        let version = serde_json::value::to_raw_value(cni_version)?;
        keys.insert("cniVersion", &version);
        let interfaces = serde_json::value::to_raw_value(&self.interfaces)?;
        if !self.interfaces.is_empty() {
            keys.insert("interfaces", &interfaces);
        }
        let ips: Vec<_> = self.ips.iter().map(|raw| ip_in_version(raw, cni_version)).collect();
        let ips = serde_json::value::to_raw_value(&ips)?;
        if !self.ips.is_empty() {
            keys.insert("ips", &ips);
        }
        serde_json::to_string(&keys)
    }
}

/// A result as it came, where it is of that version; else its form of that version. What is no result stays as it is.
pub fn in_version(raw: &RawValue, cni_version: &str) -> String {
    let as_it_came = || raw.get().to_owned();
    if version_of(raw.get().as_bytes()).as_deref() == Some(cni_version) {
        return as_it_came();
    }
    let rewritten = PrevResult::parse(raw).ok().and_then(|result| result.to_json(cni_version).ok());
    rewritten.unwrap_or_else(as_it_came)
}

/// Before 1.0.0 each address says of which family it is, and since then none does.
fn ip_in_version(raw: &RawValue, cni_version: &str) -> Box<RawValue> {
    const KEY: &str = "version";
    let rewrite = || {
        let mut keys: BTreeMap<String, Box<RawValue>> = serde_json::from_str(raw.get()).ok()?;
        match (cni_version.starts_with("0."), keys.contains_key(KEY)) {
            (true, false) => {
                let is_v6 = keys.get("address").is_some_and(|address| address.get().contains(':'));
                let family = serde_json::value::to_raw_value(if is_v6 { "6" } else { "4" }).ok()?;
                keys.insert(KEY.to_owned(), family);
            }
            (false, true) => drop(keys.remove(KEY)),
            _ => return None,
        }
        serde_json::value::to_raw_value(&keys).ok()
    };
    rewrite().unwrap_or_else(|| raw.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTP: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth1","mac":"aa:bb:cc:dd:ee:ff"},
        {"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}],
        "ips":[{"address":"2001:db8::2/64","interface":1},{"interface":1,"address":"10.1.0.2/24","gateway":"10.1.0.1"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"x-new":{"a":1.50}}"#;

    fn result(text: &str) -> PrevResult {
        PrevResult::parse(&RawValue::from_string(text.to_owned()).unwrap()).unwrap()
    }

    #[test]
    fn the_pods_address_is_that_of_its_own_interface() {
        let said = |text: &str, ifname| {
            let Addresses { of_interface, loose } = result(text).addresses(ifname);
            (of_interface, loose)
        };
        let own = IpAddr::from([10, 1, 0, 2]);
        assert_eq!(said(PTP, "eth0"), (Some(own), vec![]));
        assert_eq!(said(PTP, "eth1"), (None, vec![]));
        assert_eq!(said(r#"{"ips":[{"version":"4","address":"10.1.0.2/24"}]}"#, "eth0"), (None, vec![own]));
        assert_eq!(said(r#"{"interfaces":null,"ips":null}"#, "eth0"), (None, vec![]));
        // Of the host veth, of an interface without sandbox, of none there is: nothing is known by it.
        for index in ["0", "-1", "7"] {
            let text = PTP.replace(r#""interface":1"#, &format!(r#""interface":{index}"#));
            assert_eq!(said(&text, "eth0"), (None, vec![]), "{index}");
        }
        assert_eq!(said(&PTP.replace(r#","sandbox":"/run/netns/x""#, ""), "eth0"), (None, vec![]));
    }

    #[test]
    fn what_we_do_not_know_passes_through_to_the_letter() {
        let mut result = result(PTP);
        let index = result.add_interface(&Interface { name: "vip0".into(), mac: String::new(), sandbox: "/x".into() });
        assert_eq!(index, 2);
        let json = result.to_json("1.0.0").unwrap();
        assert!(json.contains(r#""x-new":{"a":1.50}"#), "{json}");
        assert!(json.contains(r#"{"interface":1,"address":"10.1.0.2/24","gateway":"10.1.0.1"}"#), "{json}");
    }

    #[test]
    fn addresses_are_written_as_the_version_wants_them() {
        let mut result = result("{}");
        result.add_address("0.4.0", IpAddr::from([10, 118, 0, 7]), 1);
        let json = result.to_json("0.4.0").unwrap();
        assert!(json.contains(r#"{"version":"4","address":"10.118.0.7/32","interface":1}"#), "{json}");
        result.add_address("1.0.0", "2001:db8::7".parse().unwrap(), 1);
        let json = result.to_json("1.0.0").unwrap();
        assert!(json.contains(r#"{"address":"2001:db8::7/128","interface":1}"#), "{json}");
    }

    #[test]
    fn a_result_of_another_version_becomes_one_of_the_configurations() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert_eq!(in_version(&raw(PTP), "1.0.0"), PTP, "to the letter");
        let old = in_version(&raw(PTP), "0.3.1");
        assert!(old.starts_with(r#"{"cniVersion":"0.3.1","#) && old.contains(r#""x-new":{"a":1.50}"#), "{old}");
        assert!(old.contains(r#""address":"2001:db8::2/64","interface":1,"version":"6""#), "{old}");
        assert!(old.contains(r#""gateway":"10.1.0.1","interface":1,"version":"4""#), "{old}");
        let new = in_version(&raw(&old), "1.1.0");
        assert!(!new.contains(r#""version""#) && new.contains(r#""cniVersion":"1.1.0""#), "{new}");
        assert_eq!(in_version(&raw("[1]"), "1.0.0"), "[1]");
    }
}
