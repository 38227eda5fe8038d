//! Fragments name no port, so their hash isn't that of their flow: those of a datagram must come together where its flow is.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use viproute::internals::model::Family;

use crate::harness::{Echo, PATIENCE, PORT, deadline, hear, scaled};

use super::scene::Cluster;

const MANY: usize = 30;

#[test]
fn segments_in_fragments_reach_the_node_that_has_the_connection() {
    let cluster = Cluster::new(1);
    let routed = cluster.ns("the routed client");
    routed.set_sysctl("net/ipv4/ip_no_pmtu_disc", "1");
    let to = SocketAddr::from((cluster.vip, PORT));
    let open = || {
        let mut stream = TcpStream::connect_timeout(&to, scaled(PATIENCE)).expect("a connection");
        stream.write_all(b"who\n").expect("ask");
        let name = hear(&mut stream, deadline(PATIENCE)).expect("an answer");
        (stream, name)
    };
    let mut live: Vec<_> = routed.run(|| (0..MANY).map(|_| open()).collect());
    for at in [1, 2, 3] {
        cluster.lan.ns.ip(&format!("route replace 10.118.0.0/16 via 192.0.2.{at} mtu lock 1000"));
        for (stream, name) in &mut live {
            // Twice: what the first time is found by a search, a hint leads to the second time.
            for _ in 0..2 {
                stream.write_all(&[b'x'; 5000]).and_then(|()| stream.write_all(b"\n")).expect("send");
                let answer = hear(stream, deadline(PATIENCE));
                assert_eq!(answer.as_ref().ok(), Some(&*name), "by node {at}: {answer:?}");
            }
        }
    }
    let fragments = cluster.node(2).pods[0].ns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let fragments = fragments.expect("the pod's counters");
    let values = fragments.lines().filter_map(|line| line.strip_prefix("Ip: ")).nth(1).expect("values of IP");
    assert_ne!(values.split(' ').nth(14), Some("0"), "something was reassembled there (ReasmOKs): {fragments}");
}

#[test]
fn long_datagrams_of_a_flow_that_stays_go_where_its_short_ones_do_by_ipv4() {
    long_datagrams_of_a_flow_that_stays_go_where_its_short_ones_do(Family::V4);
}

#[test]
fn long_datagrams_of_a_flow_that_stays_go_where_its_short_ones_do_by_ipv6() {
    long_datagrams_of_a_flow_that_stays_go_where_its_short_ones_do(Family::V6);
}

fn long_datagrams_of_a_flow_that_stays_go_where_its_short_ones_do(family: Family) {
    let cluster = Cluster::sticky(family, 1);
    let _servers = [1, 2, 3].map(|number| Echo::start(&cluster.node(number).pods[0], cluster.to));
    let vip = cluster.to;
    let ask = |socket: &UdpSocket, length: usize| {
        let mut answer = [0; 2048];
        socket.send(&vec![b'x'; length]).expect("send");
        let received = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
        String::from_utf8_lossy(&answer[..received]).split(' ').next().map(str::to_owned)
    };
    let open = || {
        let socket = UdpSocket::bind((family.unspecified(), 0)).expect("a socket");
        socket.set_read_timeout(Some(scaled(Duration::from_secs(5)))).expect("a time limit");
        socket.connect((vip, PORT)).expect("connect to the VIP");
        let name = ask(&socket, 10);
        (socket, name)
    };
    let flows: Vec<_> = cluster.client.run(|| (0..MANY).map(|_| open()).collect());
    for at in [1, 2, 3] {
        cluster.leads_to(at);
        for (socket, name) in &flows {
            for length in [1900, 10, 1900] {
                assert_eq!(&ask(socket, length), name, "{length} bytes by node {at}");
            }
        }
    }
}
