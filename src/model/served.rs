//! What a node's ready replicas of a VIP serve, in short: what other nodes have to know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::Port;

/// Ports that are told of one VIP.
pub const MAX_PORTS: usize = 128;
/// What stands for all ports.
const ALL: &str = "*";

/// The weights of the replicas that serve each port: `80/tcp=2,443/tcp=1,*=1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Of those that serve every port.
    pub all: u32,
    /// Of those that list a port.
    pub ports: BTreeMap<Port, u32>,
}

impl Served {
    /// One more replica. `ports`: what it lists; none: it serves every port.
    pub fn add(&mut self, weight: u32, ports: &BTreeSet<Port>) {
        if ports.is_empty() {
            self.all = self.all.saturating_add(weight);
        }
        for port in ports {
            if self.ports.len() < MAX_PORTS || self.ports.contains_key(port) {
                let known = self.ports.entry(*port).or_default();
                *known = known.saturating_add(weight);
            }
        }
    }

    /// The weight of those that serve a port.
    pub fn weight(&self, port: Port) -> u32 {
        self.ports.get(&port).copied().unwrap_or_default().saturating_add(self.all)
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for (port, weight) in &self.ports {
            write!(f, "{before}{port}={weight}")?;
            before = ",";
        }
        if self.all > 0 || self.ports.is_empty() { write!(f, "{before}{ALL}={}", self.all) } else { Ok(()) }
    }
}

/// A text that says nothing of the kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not weights of ports like 80/tcp=2,*=1")]
pub struct BadServed;

impl FromStr for Served {
    type Err = BadServed;

    fn from_str(text: &str) -> Result<Self, BadServed> {
        let mut served = Self::default();
        for part in text.split(',') {
            let (port, weight) = part.split_once('=').ok_or(BadServed)?;
            let weight = weight.parse().map_err(|_| BadServed)?;
            if port == ALL {
                served.all = weight;
            } else if served.ports.insert(port.parse().map_err(|_| BadServed)?, weight).is_some()
                || served.ports.len() > MAX_PORTS
            {
                return Err(BadServed);
            }
        }
        Ok(served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports(texts: &[&str]) -> BTreeSet<Port> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn replicas_with_different_ports_are_added_up() {
        let mut served = Served::default();
        assert_eq!(served.to_string(), "*=0");
        served.add(2, &ports(&["80/tcp", "443/tcp"]));
        served.add(1, &ports(&["80/tcp"]));
        assert_eq!(served.to_string(), "80/tcp=3,443/tcp=2");
        served.add(4, &ports(&[]));
        assert_eq!(served.to_string(), "80/tcp=3,443/tcp=2,*=4");
        let weight = |text: &str| served.weight(text.parse().unwrap());
        assert_eq!((weight("80/tcp"), weight("443/tcp"), weight("80/udp")), (7, 6, 4));
    }

    #[test]
    fn there_is_an_end_to_what_is_told() {
        let mut served = Served::default();
        for number in 1..=1000 {
            served.add(1, &ports(&[&format!("{number}/tcp")]));
        }
        assert_eq!(served.ports.len(), MAX_PORTS);
        assert_eq!(served.to_string().parse(), Ok(served));
        let many: Vec<String> = (1..=MAX_PORTS + 1).map(|number| format!("{number}/tcp=1")).collect();
        assert_eq!(many.join(",").parse::<Served>(), Err(BadServed));
    }

    proptest! {
        #[test]
        fn what_is_said_is_read(all in 0u32..9, weights in proptest::collection::btree_map(1u16.., 0u32.., 0..9)) {
            let port = |number| Port { number, transport: super::super::Transport::Tcp };
            let served = Served { all, ports: weights.into_iter().map(|(number, weight)| (port(number), weight)).collect() };
            prop_assert_eq!(served.to_string().parse(), Ok(served));
        }

        #[test]
        fn whatever_is_said_is_read_or_refused(text in "[0-9a-z/=,*]{0,40}") {
            if let Ok(served) = text.parse::<Served>() {
                prop_assert_eq!(served.to_string().parse(), Ok(served));
            }
        }
    }
}
