//! What is fuzzed: everything that reads what others wrote. Nothing here touches the system. None of them may panic; what
//! is accepted has to be fit for use.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::value::RawValue;
use viproute::cni::annotations;
use viproute::cni::protocol::result::Interface;
use viproute::cni::protocol::{Call, Config, PrevResult};
use viproute::internals::api::protocol::{self, Events, Grant, Leases, Status};
use viproute::internals::lease::decode_lease_file;
use viproute::internals::registry::{AttachmentRecord, Endpoint, VipRecord, file};

/// Lines of `NAME=VALUE`, an empty line, and what comes on stdin.
pub fn cni_request(data: &[u8]) {
    let split = data.windows(2).position(|pair| pair == b"\n\n");
    let (variables, stdin) = split.map_or((data, &[][..]), |at| (&data[..at], &data[at + 2..]));
    let lookup = |name: &str| {
        let value = variables
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(|value| OsStr::from_bytes(value).to_owned())
    };
    let Ok(call) = Call::from_env(lookup) else { return };
    if let Some(attachment) = &call.attachment {
        // Both become part of a file's name.
        assert!(!attachment.container_id.contains(['/', '@', '\0']) && !attachment.container_id.starts_with('.'));
        assert!(!attachment.ifname.contains(['/', '\0']));
    }
    let _ = Config::parse_for_removal(stdin);
    let Ok(config) = Config::parse(stdin) else { return };
    assert!(config.data_dir.is_absolute() && config.allocator.is_absolute());
    let Ok(Some(wants)) = annotations::read(&call, &config) else { return };
    assert!((1..=8).contains(&wants.len()) && wants.iter().all(|want| want.weight > 0));
    for want in &wants {
        let name = want.vip.dir_name();
        assert!(name.len() < 256 && !name.starts_with('.') && !name.contains(['/', '\0']), "{name:?}");
    }
    if let Some(result) = config.prev_result {
        prev_result(result.get().as_bytes());
    }
}

/// The result of the plugins before us.
pub fn prev_result(data: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<Box<RawValue>>(data) else { return };
    let Ok(mut result) = PrevResult::parse(&raw) else { return };
    let _ = result.addresses("eth0");
    let before = interfaces(data);
    let index = result.add_interface(&Interface { name: "vip0".into(), mac: String::new(), sandbox: "/x".into() });
    result.add_address("1.0.0", Ipv4Addr::LOCALHOST.into(), index);
    for version in ["0.3.1", "1.0.0"] {
        let text = result.to_json(version).expect("a result can be written");
        let again = serde_json::from_str::<Box<RawValue>>(&text).expect("what was written is JSON");
        PrevResult::parse(&again).expect("what was written is a result");
        assert_eq!(interfaces(text.as_bytes()), before + 1);
    }
}

fn interfaces(result: &[u8]) -> usize {
    #[derive(serde::Deserialize)]
    struct Only {
        #[serde(default)]
        interfaces: Option<Vec<Box<RawValue>>>,
    }
    serde_json::from_slice::<Only>(result).ok().and_then(|only| only.interfaces).map_or(0, |list| list.len())
}

/// A frame, or a message to a relay.
pub fn dhcp_packet(data: &[u8]) {
    viproute::internals::dhcp::read_anything(data);
}

/// What hosts of a link say of addresses: a frame of ARP or of neighbour discovery.
pub fn link_frame(data: &[u8]) {
    viproute::internals::net::acd::read_anything(data);
}

/// A file of the registry, or a lease file.
pub fn registry_file(data: &[u8]) {
    let path = Path::new("/fuzz");
    if let Ok(record) = file::decode::<AttachmentRecord>(path, data) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(file::decode::<AttachmentRecord>(path, &text).expect("and read again"), record);
        assert!(record.keys().all(|key| !key.dir_name().contains('/')));
    }
    if let Ok(record) = file::decode::<Endpoint>(path, data) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(file::decode::<Endpoint>(path, &text).expect("and read again"), record);
    }
    if let Ok(record) = file::decode::<VipRecord>(path, data) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(file::decode::<VipRecord>(path, &text).expect("and read again"), record);
    }
    let _ = decode_lease_file(path, data);
}

/// A line of viprouted's protocol, in either direction.
pub fn allocator_line(data: &[u8]) {
    if let Ok(request) = protocol::decode_request(data) {
        let line = protocol::encode(&request).expect("a request can be written");
        assert!(line.ends_with(b"\n") && !line[..line.len() - 1].contains(&b'\n'), "one line");
        assert_eq!(protocol::decode_request(&line).expect("and read again"), request);
    }
    let _ = protocol::decode_reply::<Grant>(data);
    let _ = protocol::decode_reply::<Leases>(data);
    let _ = protocol::decode_reply::<Status>(data);
    let _ = protocol::decode_reply::<Events>(data);
}

/// A datagram of another node: as it comes, and as the message of one that has the key.
pub fn gossip(data: &[u8]) {
    viproute::node::peers::read_anything(data);
}

/// A datagram from the kernel.
pub fn netlink_reply(data: &[u8]) {
    viproute::internals::net::socket::read_anything(data);
}
