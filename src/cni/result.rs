//! Results (CNI spec, section 5, "Success"). What the plugins before us said passes through as they said it; a few
//! entries are added.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
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

    /// The devices listed; an entry that isn't one is no device.
    pub fn interfaces(&self) -> impl Iterator<Item = Interface> {
        self.interfaces.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok())
    }

    /// The pod's IPv4 address: of interface `ifname` in the sandbox; failing that, one that belongs to no interface in
    /// particular.
    pub fn pod_address(&self, ifname: &str) -> Option<Ipv4Addr> {
        let at = |index: usize| self.interfaces.get(index).and_then(|raw| serde_json::from_str(raw.get()).ok());
        let of_pod = |index| at(index).is_some_and(|i: Interface| i.name == ifname && !i.sandbox.is_empty());
        let mut loose = None;
        for raw in &self.ips {
            let Ok(ip) = serde_json::from_str::<Ip>(raw.get()) else { continue };
            let Ok(IpNetwork::V4(network)) = IpNetwork::from_str(&ip.address) else { continue };
            match ip.interface {
                Some(index) if of_pod(index) => return Some(network.ip()),
                Some(_) => {}
                None => loose = loose.or(Some(network.ip())),
            }
        }
        loose
    }

    /// Adds a device; returns its index for [`PrevResult::add_address`].
    pub fn add_interface(&mut self, interface: &Interface) -> usize {
        self.interfaces.extend(serde_json::value::to_raw_value(interface));
        self.interfaces.len() - 1
    }

    /// Adds an address of a device.
    pub fn add_address(&mut self, cni_version: &str, address: Ipv4Addr, interface: usize) {
        let version = cni_version.starts_with("0.").then(|| "4".to_owned());
        let ip = Ip { version, address: format!("{address}/32"), interface: Some(interface) };
        self.ips.extend(serde_json::value::to_raw_value(&ip));
    }

    /// Puts it together again.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut keys: BTreeMap<&str, &RawValue> = self.keys.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect();
        let interfaces = serde_json::value::to_raw_value(&self.interfaces)?;
        let ips = serde_json::value::to_raw_value(&self.ips)?;
        keys.insert("interfaces", &interfaces);
        if !self.ips.is_empty() {
            keys.insert("ips", &ips);
        }
        serde_json::to_string(&keys)
    }
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
        assert_eq!(result(PTP).pod_address("eth0"), Some(Ipv4Addr::new(10, 1, 0, 2)));
        assert_eq!(result(PTP).pod_address("eth1"), None);
        assert_eq!(
            result(r#"{"ips":[{"version":"4","address":"10.1.0.3/24"}]}"#).pod_address("eth0"),
            Some(Ipv4Addr::new(10, 1, 0, 3))
        );
        assert_eq!(result(r#"{"interfaces":null,"ips":null}"#).pod_address("eth0"), None);
    }

    #[test]
    fn what_we_do_not_know_passes_through_to_the_letter() {
        let mut result = result(PTP);
        let index = result.add_interface(&Interface { name: "vip0".into(), mac: String::new(), sandbox: "/x".into() });
        assert_eq!(index, 2);
        let json = result.to_json().unwrap();
        assert!(json.contains(r#""x-new":{"a":1.50}"#), "{json}");
        assert!(json.contains(r#"{"interface":1,"address":"10.1.0.2/24","gateway":"10.1.0.1"}"#), "{json}");
    }

    #[test]
    fn addresses_are_written_as_the_version_wants_them() {
        let mut result = result("{}");
        result.add_address("0.4.0", Ipv4Addr::new(10, 118, 0, 7), 1);
        assert!(result.to_json().unwrap().contains(r#"{"version":"4","address":"10.118.0.7/32","interface":1}"#));
    }
}
