//! Anybody on the network can write a pod's address as a source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{plain, translated};
use crate::harness::segment::{SYN, datagram, segment, send_packet};
use crate::harness::{Echo, PATIENCE, PORT, Pod, Service, connect, unspecified, until};

/// Those that stand in for a pod where it calls itself.
const STAND_INS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 118, 2)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0xa9fe, 0x7602, 0, 1))];

fn is_dropped(service: &Service, (from, to): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) {
    let before = service.counter("own_source");
    send_packet(&service.client, (from, to), protocol, payload);
    until(&format!("protocol {protocol} from {from} is dropped"), PATIENCE, || {
        (service.counter("own_source") > before).then_some(())
    });
}

/// The pod's own address of a VIP's family.
fn own(pod: &Pod, vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { pod.address().into() } else { pod.address6().into() }
}

#[test]
fn what_the_pod_has_not_sent_is_dropped() {
    for service in [plain(1, 0), translated(1, 0)] {
        let pod = &service.pods[0];
        for (vip, stand_in) in service.addresses().into_iter().zip(STAND_INS) {
            for from in [own(pod, vip), stand_in] {
                let (client, to) = (SocketAddr::from((from, 51_200)), SocketAddr::from((vip, PORT)));
                is_dropped(&service, (from, vip), 6, &segment(client, to, SYN));
                is_dropped(&service, (from, vip), 17, &datagram(client, to, b""));
            }
            assert_eq!(connect(&pod.ns, vip, 20).names.len(), 1, "its own calls are served all the same");
        }
    }
}

/// A server that answers whatever it gets would answer itself, without end.
#[test]
fn a_server_never_talks_to_itself() {
    let service = plain(1, 0);
    let pod = &service.pods[0];
    for vip in service.addresses() {
        let _echo = Echo::on(pod, unspecified(vip), PORT);
        let (from, to) = (SocketAddr::from((own(pod, vip), PORT)), SocketAddr::from((vip, PORT)));
        is_dropped(&service, (from.ip(), vip), 17, &datagram(from, to, b""));
    }
}
