//! A port that a VIP serves.

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

/// A string that is no port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a port like 80/tcp or 53/udp")]
pub struct BadPort;

impl FromStr for Port {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        let (number, transport) = text.split_once('/').ok_or(BadPort)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(BadPort),
        };
        // parse() would take a sign.
        let digits = number.chars().all(|c| c.is_ascii_digit());
        let number = number.parse().ok().filter(|number| digits && *number > 0).ok_or(BadPort)?;
        Ok(Self { number, transport })
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

    proptest! {
        #[test]
        fn what_is_shown_is_read(number in 1u16.., udp: bool) {
            let port = Port { number, transport: if udp { Transport::Udp } else { Transport::Tcp } };
            prop_assert_eq!(port.to_string().parse(), Ok(port));
        }
    }
}
