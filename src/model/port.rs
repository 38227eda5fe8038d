//! A port that a VIP serves, and the one that a pod has in its place.

use std::fmt;
use std::str::FromStr;

/// `80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// From 1 to 65535.
    pub number: u16,
    /// The protocol above IP.
    pub transport: Transport,
}

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// `tcp`
    Tcp,
    /// `udp`
    Udp,
}

impl Transport {
    /// Its number in an IP header.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A port of a VIP, and the number that a pod has in its place: `80:8080/tcp`; `80/tcp` where it is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMap {
    /// The VIP's.
    pub port: Port,
    /// The pod's, from 1 to 65535, by the same protocol.
    pub target: u16,
}

impl PortMap {
    /// The port that the pod's sockets have.
    pub fn at_pod(self) -> Port {
        Port { number: self.target, ..self.port }
    }

    /// Whether the pod has another number.
    pub fn is_translated(self) -> bool {
        self.target != self.port.number
    }
}

impl From<Port> for PortMap {
    fn from(port: Port) -> Self {
        Self { port, target: port.number }
    }
}

/// The port that a pod's sockets have in the place of one of its VIP's; `None`: the number is another port's, so it is closed. One that
/// isn't listed is the same on both sides.
pub fn at_pod(ports: impl IntoIterator<Item = PortMap>, port: Port) -> Option<Port> {
    let mut is_taken = false;
    for listed in ports {
        if listed.port == port {
            return Some(listed.at_pod());
        }
        is_taken |= listed.at_pod() == port;
    }
    (!is_taken).then_some(port)
}

/// A string that is no port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a port like 80/tcp, 53/udp or 80:8080/tcp")]
pub struct BadPort;

/// Digits, and nothing else: `parse()` would take a sign.
fn number(text: &str) -> Result<u16, BadPort> {
    let digits = text.chars().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number > 0).ok_or(BadPort)
}

impl FromStr for Port {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let (number, transport) = text.split_once('/').ok_or(BadPort)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(BadPort),
        };
        Ok(Self { number: self::number(number)?, transport })
    }
}

impl FromStr for PortMap {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let Some((vips, pods)) = text.split_once(':') else { return Ok(text.parse::<Port>()?.into()) };
        let at_pod: Port = pods.parse()?;
        Ok(Self { port: Port { number: number(vips)?, ..at_pod }, target: at_pod.number })
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_translated() {
            write!(f, "{}:", self.port.number)?;
        }
        self.at_pod().fmt(f)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_are_a_number_and_a_transport() {
        for bad in
            ["", "80", "/tcp", "0/tcp", "65536/tcp", "+80/tcp", "-1/udp", "80/sctp", "80/TCP", "80/tcp/", " 80/tcp"]
        {
            assert_eq!(bad.parse::<Port>(), Err(BadPort), "{bad:?}");
        }
    }

    #[test]
    fn a_pods_port_may_have_another_number() {
        for (text, port, target) in
            [("80/tcp", "80/tcp", 80), ("80:8080/tcp", "80/tcp", 8080), ("53:53/udp", "53/udp", 53)]
        {
            assert_eq!(text.parse(), Ok(PortMap { port: port.parse().unwrap(), target }), "{text}");
        }
        for bad in [
            "80:/tcp",
            ":80/tcp",
            "80:8080",
            "80:8080:1/tcp",
            "80/tcp:8080/tcp",
            "0:80/tcp",
            "80:0/tcp",
            "80:+1/tcp",
            "80:http/tcp",
        ] {
            assert_eq!(bad.parse::<PortMap>(), Err(BadPort), "{bad:?}");
        }
    }

    #[test]
    fn a_number_that_is_another_ports_is_closed() {
        let ports = ["80:8080/tcp", "8081:80/tcp", "443/tcp"].map(|text| text.parse().unwrap());
        let at_pod = |text: &str| at_pod(ports, text.parse().unwrap()).map(|port| port.to_string());
        let expected = [
            ("80/tcp", Some("8080/tcp")),
            ("8081/tcp", Some("80/tcp")),
            ("443/tcp", Some("443/tcp")),
            ("8080/tcp", None),
            ("8080/udp", Some("8080/udp")),
            ("22/tcp", Some("22/tcp")),
        ];
        for (port, there) in expected {
            assert_eq!(at_pod(port).as_deref(), there, "{port}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(number in 1u16.., target in 1u16.., udp: bool) {
            let port = Port { number, transport: if udp { Transport::Udp } else { Transport::Tcp } };
            prop_assert_eq!(port.to_string().parse(), Ok(port));
            prop_assert_eq!(port.to_string().parse(), Ok(PortMap::from(port)));
            let translated = PortMap { port, target };
            prop_assert_eq!(translated.to_string().parse(), Ok(translated));
        }
    }
}
