//! Extension headers and fragments: what follows them is found, wherever the group sends it.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::harness::{Families, Join, Service, connect};

use super::{vip6, web};

/// `IPV6_HOPOPTS` and `IPV6_DSTOPTS` of linux/in6.h.
const HOP_BY_HOP: i32 = 54;
const DESTINATION: i32 = 59;

/// What the socket sends has that header from now on: eight bytes, all of them padding (RFC 8200, 4.2).
fn with_header(socket: &impl AsRawFd, option: i32) {
    let header: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    let length = libc::socklen_t::try_from(header.len()).expect("a short header");
    // SAFETY: a system call on a descriptor that the caller keeps open, and memory of that length.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, option, header.as_ptr().cast(), length) };
    assert_eq!(set, 0, "setsockopt {option}: {}", std::io::Error::last_os_error());
}

fn name(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"who\n")?;
    let mut buffer = [0; 128];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).split(' ').next().unwrap_or_default().to_owned())
}

/// Connections that began plainly go on with headers before TCP's, by which the kernel hashes them anew, while the group is another one.
#[test]
fn connections_with_extension_headers_stay() {
    let service = Service::dual(&web(), 3, 1, Families::Both);
    let to = SocketAddr::from((vip6(&service), crate::harness::PORT));
    let mut streams: Vec<(TcpStream, String)> = (0..120)
        .map(|number| {
            let mut stream = service.client.run(|| TcpStream::connect(to)).expect("connect");
            stream.set_read_timeout(Some(Duration::from_secs(8))).expect("a time limit");
            let first = name(&mut stream).expect("an answer");
            for option in [&[DESTINATION][..], &[HOP_BY_HOP], &[DESTINATION, HOP_BY_HOP], &[]][number % 4] {
                with_header(&stream, *option);
            }
            (stream, first)
        })
        .collect();
    service.drain(&service.pods[0]);
    service.add(&service.pods[3]);
    let moved: Vec<_> = streams
        .iter_mut()
        .filter_map(|(stream, first)| match name(stream) {
            Ok(now) if now == *first => None,
            other => Some((first.clone(), other)),
        })
        .collect();
    assert!(moved.is_empty(), "{} of 120: {moved:?}", moved.len());
}

/// Datagrams of many fragments come whole to the replica that its flow is at, also where that is another one than the group's choice.
#[test]
fn datagrams_in_fragments_stay_with_their_flow() {
    let join = Join::annotated("web")
        .annotation("viproute.io/ports", "8080/tcp,8080/udp")
        .annotation("viproute.io/udp-sticky", "true");
    let service = Service::dual(&join, 3, 0, Families::Both);
    let vip6 = vip6(&service);
    let at = |pod: &crate::harness::Pod| {
        let socket = pod.ns.run(|| UdpSocket::bind((vip6, 8080))).expect("a server");
        let (answering, name) = (socket.try_clone().unwrap(), pod.name.clone());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((length, client)) = answering.recv_from(&mut buffer) {
                let _ = answering.send_to(format!("{name} {length}").as_bytes(), client);
            }
        });
        socket
    };
    let _servers: Vec<_> = service.pods.iter().map(at).collect();
    let sockets: Vec<UdpSocket> = (0..40)
        .map(|_| {
            let socket = service.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))).expect("a socket");
            socket.connect((vip6, 8080)).expect("connect");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
            socket
        })
        .collect();
    for socket in &sockets {
        let mut names = std::collections::BTreeSet::new();
        for length in [100, 9000, 20_000, 200] {
            socket.send(&vec![7; length]).expect("send");
            let mut buffer = [0; 64];
            let got = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
            let said = String::from_utf8_lossy(&buffer[..got]).into_owned();
            let (name, heard) = said.split_once(' ').expect("an answer");
            assert_eq!(heard, length.to_string());
            names.insert(name.to_owned());
        }
        assert_eq!(names.len(), 1, "one replica for all of a flow: {names:?}");
    }
    connect(&service.client, vip6, 20);
}
