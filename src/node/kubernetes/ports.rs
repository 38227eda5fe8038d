//! Which ports of a Service are served, and how its status says that one isn't. The Service alone decides, so every node says the same.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::ebpf::PORTS as MAX_PORTS;
use crate::model::Port;

use super::objects::{PortError, PortsError, Service, ServicePort};

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
pub fn served(service: &Service) -> impl Iterator<Item = (&ServicePort, Port)> {
    service.ports.iter().filter_map(|port| Some((port, port.port()?))).take(MAX_PORTS)
}

/// The others.
pub fn refused(service: &Service) -> Vec<Refused<'_>> {
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
    foreign.chain(many).collect()
}

/// What the status has of each port: nothing where all are served.
pub fn errors(service: &Service) -> Vec<PortError> {
    let refused = refused(service);
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
pub fn message(service: &Service) -> Option<String> {
    let refused = refused(service);
    let said = |refused: &Refused<'_>| format!("{}/{}: {}", refused.port.number, refused.port.protocol, refused.why);
    (!refused.is_empty()).then(|| refused.iter().map(said).collect::<Vec<_>>().join("; "))
}

/// The status says so already.
pub fn is_said(service: &Service) -> bool {
    let of_ports = service.ingress.iter().all(|ingress| ingress.ports == errors(service));
    of_ports && service.ports_error.as_ref().map(|said| &said.message) == message(service).as_ref()
}

/// The ports as the API has them in a status.
pub fn status(service: &Service) -> Vec<Value> {
    let of = |said: PortError| {
        let mut port = json!({ "port": said.number, "protocol": said.protocol });
        if let Some(error) = said.error {
            port["error"] = error.into();
        }
        port
    };
    errors(service).into_iter().map(of).collect()
}

/// The condition likewise, as of `now` unless it was there before.
pub fn condition(service: &Service, now: Timestamp) -> Option<Value> {
    let message = message(service)?;
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

    fn port(number: u16, protocol: &str) -> ServicePort {
        ServicePort { name: format!("{protocol}-{number}"), number, protocol: protocol.into() }
    }

    fn service(ports: Vec<ServicePort>) -> Service {
        Service { ports, ingress: vec![Ingress { ip: "192.0.2.7".into(), ..Ingress::default() }], ..Service::default() }
    }

    #[test]
    fn a_port_of_a_foreign_protocol_is_refused_and_the_others_are_served() {
        let mut service = service(vec![port(53, "TCP"), port(53, "UDP"), port(53, "SCTP")]);
        let numbers: Vec<String> = served(&service).map(|(_, port)| port.to_string()).collect();
        assert_eq!(numbers, ["53/tcp", "53/udp"], "one number of two protocols is no clash");
        assert_eq!(message(&service).as_deref(), Some("53/SCTP: SCTP is no protocol of VIPs"));
        let expected = json!([
            { "port": 53, "protocol": "TCP" },
            { "port": 53, "protocol": "UDP" },
            { "port": 53, "protocol": "SCTP", "error": "viproute.io/ProtocolNotSupported" },
        ]);
        assert_eq!(json!(status(&service)), expected);
        assert!(!is_said(&service));
        service.ingress[0].ports = errors(&service);
        service.ports_error = Some(PortsError { message: message(&service).unwrap(), since: 1_000_000_000 });
        assert!(is_said(&service));
        let now = Timestamp::from_second(2_000_000_000).unwrap();
        let condition = condition(&service, now).unwrap();
        assert_eq!(condition["lastTransitionTime"], "2001-09-09T01:46:40Z", "it has been so since");
        assert_eq!((&condition["type"], &condition["status"]), (&json!("LoadBalancerPortsError"), &json!("True")));
        service.ports.pop();
        assert!(!is_said(&service), "what isn't so any more is taken back");
        assert_eq!((status(&service), super::condition(&service, now)), (vec![], None));
    }

    #[test]
    fn of_too_many_the_first_are_served() {
        let many = service((1..=66).map(|number| port(number, "TCP")).collect());
        assert_eq!(served(&many).count(), MAX_PORTS);
        let last: Vec<u16> = refused(&many).iter().map(|refused| refused.port.number).collect();
        assert_eq!(last, [65, 66]);
    }
}
