use std::path::Path;

use proptest::prelude::*;

use super::*;

fn acquire() -> AcquireRequest {
    AcquireRequest {
        vip: "shop/web".into(),
        pod: IpAddr::from([10, 1, 0, 5]),
        node: IpAddr::from([192, 0, 2, 1]),
        gateway: Some(IpAddr::from([192, 0, 2, 254])),
    }
}

#[test]
fn requests_look_as_documented() {
    let line = br#"{"acquire": {"vip": "shop/web", "pod": "10.1.0.5", "node": "192.0.2.1", "gateway": "192.0.2.254"}}"#;
    assert_eq!(decode_request(line), Ok(Request::Acquire(acquire())));
    let release = Request::Release(ReleaseRequest { vip: "a/b".into() });
    assert_eq!(encode(&release).unwrap(), b"{\"release\":{\"vip\":\"a/b\"}}\n");
    assert_eq!(decode_request(br#"{"leases": {}}"#), Ok(Request::Leases {}));
    assert_eq!(decode_request(br#"{"status": {}}"#), Ok(Request::Status {}));
    assert_eq!(decode_request(br#"{"events": {}}"#), Ok(Request::Events(EventsRequest { after: 0 })));
    let called = Called { verb: "DEL".into(), code: 107, micros: 5100, ..Called::default() };
    let line = encode(&Request::Called(called)).unwrap();
    assert_eq!(line, b"{\"called\":{\"verb\":\"DEL\",\"code\":107,\"micros\":5100}}\n");
}

#[test]
fn a_node_without_a_gateway_may_leave_it_out() {
    let line = br#"{"acquire":{"vip":"a/b","pod":"10.1.0.5","node":"192.0.2.1"}}"#;
    let Ok(Request::Acquire(request)) = decode_request(line) else {
        panic!("not an acquire");
    };
    assert_eq!(request.gateway, None);
}

#[test]
fn an_infinite_lease_expires_null() {
    let grant = Grant {
        address: IpAddr::from([10, 118, 0, 7]),
        others: Vec::new(),
        expires: None,
        registry: None,
        policy: None,
        no_ipv6: None,
    };
    let line = encode(&grant).unwrap();
    assert_eq!(line, b"{\"address\":\"10.118.0.7\",\"expires\":null}\n");
    assert_eq!(decode_reply::<Grant>(&line).unwrap(), Ok(grant));
}

#[test]
fn a_directory_is_known_by_what_it_is() {
    let (root, temporary) = (Directory::at(Path::new("/")), std::env::temp_dir());
    assert!(root.is_at(Path::new("/usr/..")) && !root.is_at(&temporary));
    let elsewhere = Directory { path: "/registry".into(), ..root.clone() };
    assert!(elsewhere.is_at(Path::new("/")), "mounted at another path");
    let missing = Directory::at(Path::new("/no-such"));
    assert!(
        missing.is_at(Path::new("/no-such")) && !missing.is_at(Path::new("/nor-this")) && !root.is_at(&missing.path)
    );
}

#[test]
fn a_refusal_arrives_as_one() {
    let refusal = Refusal { code: code::TRY_AGAIN, msg: "no address to be had".into() };
    let line = encode_refusal(&refusal).unwrap();
    assert_eq!(line, b"{\"error\":{\"code\":11,\"msg\":\"no address to be had\"}}\n");
    assert_eq!(decode_reply::<Grant>(&line).unwrap(), Err(refusal));
}

#[test]
fn a_status_whose_vips_carry_errors_is_no_refusal() {
    let status = Status {
        backend: "dhcp".into(),
        vips: vec![VipStatus {
            vip: "a/b".into(),
            address: None,
            state: LeaseState::Selecting,
            expires: None,
            error: Some("no server answers".into()),
            held_until: None,
            claimed_by: None,
            renewer: None,
        }],
        registry: Some(Directory::at(Path::new("/"))),
        problems: vec![],
        readiness_errors: vec![],
        express: None,
        version: None,
    };
    let line = encode(&status).unwrap();
    assert_eq!(decode_reply::<Status>(&line).unwrap(), Ok(status));
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_request(&line);
        let _ = decode_reply::<Grant>(&line);
        let _ = decode_reply::<Status>(&line);
    }

    #[test]
    fn nearly_right_lines_dont_either(
        verb in "(acquire|release|leases|status|identity|events|called|\\PC{0,8})",
        body in "(\\{\\}|null|\\[\\]|\"x\"|\\{\"vip\":\"\\PC{0,6}\"\\}|\\PC{0,20})",
    ) {
        let _ = decode_request(format!("{{\"{verb}\": {body}}}").as_bytes());
    }

    #[test]
    fn requests_survive_the_wire(vip in "\\PC{0,40}", pod: IpAddr, node: IpAddr, gateway: Option<IpAddr>) {
        let request = Request::Acquire(AcquireRequest {
            vip,
            pod,
            node,
            gateway,
        });
        let line = encode(&request).unwrap();
        prop_assert_eq!(line.split(|b| *b == b'\n').count(), 2);
        prop_assert_eq!(decode_request(&line), Ok(request));
    }
}
