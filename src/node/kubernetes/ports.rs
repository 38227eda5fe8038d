//! Which ports of a Service are served, and how its status says that one isn't. The Services alone decide, so every node says the same.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::ebpf::PORTS as MAX_PORTS;
use crate::model::Port;

use super::objects::{PortError, PortsError, Service, ServicePort};
use super::sharing::Taken;

/// The condition that says whether all ports are served (`LoadBalancerPortsError` of core/v1).
pub const CONDITION: &str = "LoadBalancerPortsError";
/// Its reason.
const REASON: &str = "PortsRefused";

/// A port that can't be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// The port.
    pub port: &'a ServicePort,
    /// A word for programs, as core/v1 asks for.
    pub error: &'static str,
    /// Why.
    pub why: String,
}

/// Those of a Service's ports that are served where pods have them. TCP and UDP of one number are two ports.
pub fn served<'a>(service: &'a Service, taken: &Taken) -> impl Iterator<Item = (&'a ServicePort, Port)> {
    let ports = service.ports.iter().filter_map(|port| Some((port, port.port()?))).take(MAX_PORTS);
    ports.filter(|(_, port)| !taken.contains_key(port))
}

/// The others.
pub fn refused<'a>(service: &'a Service, taken: &Taken) -> Vec<Refused<'a>> {
    let foreign = service.ports.iter().filter(|port| port.port().is_none()).map(|port| Refused {
        port,
        error: "viproute.io/ProtocolNotSupported",
        why: format!("{} is no protocol of VIPs", port.protocol),
    });
    let many = service.ports.iter().filter(|port| port.port().is_some()).skip(MAX_PORTS);
    let many = many.map(|port| Refused {
        port,
        error: "viproute.io/TooManyPorts",
        why: format!("a VIP has {MAX_PORTS} ports at most"),
    });
    let first = service.ports.iter().filter(|port| port.port().is_some()).take(MAX_PORTS);
    let others = first.filter_map(|port| {
        let owner = taken.get(&port.port()?)?;
        let why = format!("{owner} has it on the same address, and is older");
        Some(Refused { port, error: "viproute.io/PortTaken", why })
    });
    foreign.chain(many).chain(others).collect()
}

/// What the status has of each port: nothing where all are served.
pub fn errors(service: &Service, taken: &Taken) -> Vec<PortError> {
    let refused = refused(service, taken);
    if refused.is_empty() {
        return Vec::new();
    }
    let error_of =
        |port: &ServicePort| refused.iter().find(|refused| refused.port == port).map(|refused| refused.error);
    let of = |port: &ServicePort| PortError {
        number: port.number,
        protocol: port.protocol.clone(),
        error: error_of(port).map(str::to_owned),
    };
    service.ports.iter().map(of).collect()
}

/// What the condition says; `None`: there is none.
pub fn message(service: &Service, taken: &Taken) -> Option<String> {
    let refused = refused(service, taken);
    let said = |refused: &Refused<'_>| format!("{}/{}: {}", refused.port.number, refused.port.protocol, refused.why);
    (!refused.is_empty()).then(|| refused.iter().map(said).collect::<Vec<_>>().join("; "))
}

/// The status says so already.
pub fn is_said(service: &Service, taken: &Taken) -> bool {
    let of_ports = service.ingress.iter().all(|ingress| ingress.ports == errors(service, taken));
    of_ports && service.ports_error.as_ref().map(|said| &said.message) == message(service, taken).as_ref()
}

/// The ports as the API has them in a status.
pub fn status(service: &Service, taken: &Taken) -> Vec<Value> {
    let of = |said: PortError| {
        let mut port = json!({ "port": said.number, "protocol": said.protocol });
        if let Some(error) = said.error {
            port["error"] = error.into();
        }
        port
    };
    errors(service, taken).into_iter().map(of).collect()
}

/// The condition likewise, as of `now` unless it was there before.
pub fn condition(service: &Service, taken: &Taken, now: Timestamp) -> Option<Value> {
    let message = message(service, taken)?;
    let since = service.ports_error.as_ref().and_then(|said: &PortsError| Timestamp::from_second(said.since).ok());
    let since = Timestamp::from_second(since.unwrap_or(now).as_second()).unwrap_or(now);
    Some(json!({
        "type": CONDITION,
        "status": "True",
        "reason": REASON,
        "message": message,
        "lastTransitionTime": since.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::objects::Ingress;
    use super::*;

    const NONE: Taken = Taken::new();

    fn port(number: u16, protocol: &str) -> ServicePort {
        ServicePort { name: format!("{protocol}-{number}"), number, protocol: protocol.into() }
    }

    fn service(ports: Vec<ServicePort>) -> Service {
        Service { ports, ingress: vec![Ingress { ip: "192.0.2.7".into(), ..Ingress::default() }], ..Service::default() }
    }

    #[test]
    fn a_port_of_a_foreign_protocol_is_refused_and_the_others_are_served() {
        let mut service = service(vec![port(53, "TCP"), port(53, "UDP"), port(53, "SCTP")]);
        let numbers: Vec<String> = served(&service, &NONE).map(|(_, port)| port.to_string()).collect();
        assert_eq!(numbers, ["53/tcp", "53/udp"], "one number of two protocols is no clash");
        assert_eq!(message(&service, &NONE).as_deref(), Some("53/SCTP: SCTP is no protocol of VIPs"));
        let expected = json!([
            { "port": 53, "protocol": "TCP" },
            { "port": 53, "protocol": "UDP" },
            { "port": 53, "protocol": "SCTP", "error": "viproute.io/ProtocolNotSupported" },
        ]);
        assert_eq!(json!(status(&service, &NONE)), expected);
        assert!(!is_said(&service, &NONE));
        service.ingress[0].ports = errors(&service, &NONE);
        service.ports_error = Some(PortsError { message: message(&service, &NONE).unwrap(), since: 1_000_000_000 });
        assert!(is_said(&service, &NONE));
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let condition = condition(&service, &NONE, now).unwrap();
        assert_eq!(condition["lastTransitionTime"], "2001-09-09T01:46:40Z", "it has been so since");
        assert_eq!((&condition["type"], &condition["status"]), (&json!("LoadBalancerPortsError"), &json!("True")));
        service.ports.pop();
        assert!(!is_said(&service, &NONE), "what isn't so any more is taken back");
        assert_eq!((status(&service, &NONE), super::condition(&service, &NONE, now)), (vec![], None));
    }

    #[test]
    fn of_too_many_the_first_are_served() {
        let many = service((1..=66).map(|number| port(number, "TCP")).collect());
        assert_eq!(served(&many, &NONE).count(), MAX_PORTS);
        let last: Vec<u16> = refused(&many, &NONE).iter().map(|refused| refused.port.number).collect();
        assert_eq!(last, [65, 66]);
    }

    #[test]
    fn what_an_older_service_has_on_the_same_address_is_named_in_the_status() {
        let both = service(vec![port(80, "TCP"), port(80, "UDP")]);
        let taken = Taken::from([(both.ports[0].port().unwrap(), "shop/web".parse().unwrap())]);
        assert_eq!(served(&both, &taken).map(|(_, port)| port.to_string()).collect::<Vec<_>>(), ["80/udp"]);
        assert_eq!(
            message(&both, &taken).as_deref(),
            Some("80/TCP: shop/web has it on the same address, and is older")
        );
        let expected = json!([
            { "port": 80, "protocol": "TCP", "error": "viproute.io/PortTaken" },
            { "port": 80, "protocol": "UDP" },
        ]);
        assert_eq!(json!(status(&both, &taken)), expected);
        // Each is refused for one reason: who is too late to be served takes from nobody.
        let many = service((1..=66).map(|number| port(number, "TCP")).collect());
        let taken = many.ports.iter().map(|port| (port.port().unwrap(), "shop/web".parse().unwrap())).collect();
        assert_eq!(refused(&many, &taken).len(), 66);
    }
}
