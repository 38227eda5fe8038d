//! What Services ask of a VIP beyond who serves it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::{Family, Port, Recorded};

/// Of a VIP. Nothing is asked: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipPolicy {
    /// Of ports, each once and in order; of those that aren't here nothing is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortPolicy>,
    /// Clients outside of the cluster are for replicas of the node that they reach (`externalTrafficPolicy: Local`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Whoever the client is, replicas of the node that it reaches go before others (`trafficDistribution: PreferSameNode`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefers_node: bool,
    /// The nodes whose replicas what comes here begins with, beside this one's, while any of them is ready: their addresses
    /// (`trafficDistribution: PreferSameZone`). None: all nodes'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near: Option<BTreeSet<IpAddr>>,
    /// It is served by its address of that family alone (`ipFamilies`); `None`: by all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Recorded<Family>>,
}

/// Of one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPolicy {
    /// The port.
    pub port: Recorded<Port>,
    /// Where its clients come from, and from nowhere else; `None`: from anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Ipv4Network>>,
    /// Where sources are listed: those of IPv6 among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources6: Vec<Ipv6Network>,
    /// For so many seconds after its last flow a client's next one goes to the same replica; `None`: to any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
}

impl VipPolicy {
    /// Whether an address of that family is one by which it is served.
    pub fn permits(&self, family: Family) -> bool {
        self.family.as_ref().and_then(Recorded::known).is_none_or(|only| *only == family)
    }

    /// Nothing is asked.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_is_asked_and_nothing_else() {
        assert_eq!(serde_json::to_string(&VipPolicy::default()).unwrap(), "{}");
        let text = r#"{"ports":[{"port":"80/tcp","sources":["10.0.0.0/8"],"affinity":60},{"port":"53/udp","sources":[]}],"local":true}"#;
        let policy: VipPolicy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.ports[1].sources.as_deref(), Some(&[][..]), "closed");
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        assert!(VipPolicy::default().is_none() && !policy.is_none());
        let near = r#"{"near":["192.0.2.2"]}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<VipPolicy>(near).unwrap()).unwrap(), near);
        let text = r#"{"ports":[{"port":"80/tcp","sources":[],"sources6":["fd00::/64"]}],"family":"ipv6"}"#;
        let policy: VipPolicy = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        assert!(policy.permits(Family::V6) && !policy.permits(Family::V4) && VipPolicy::default().permits(Family::V6));
        assert!(serde_json::from_str::<VipPolicy>(r#"{"family":"v8"}"#).unwrap().permits(Family::V4));
    }
}
