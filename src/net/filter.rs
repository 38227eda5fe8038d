//! Programs on a device's packets (`tc qdisc`, `tc filter`).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use nix::errno::Errno;
use std::os::fd::RawFd;

use super::{PROTOCOL, Request, Result, Socket};

/// Where a program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the device receives.
    Ingress,
    /// What is sent through it.
    Egress,
}

impl Side {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Of ours there is one a side, at this preference and handle.
const PREFERENCE: u32 = PROTOCOL as u32;
const HANDLE: u32 = 1;
/// `ETH_P_ALL` (`linux/if_ether.h`).
const ANY_PROTOCOL: u16 = 3;

/// `tc qdisc add dev INDEX clsact`: what filters hang on. One that is there will do.
pub fn add_clsact(index: u32) -> Request {
    let mut message = message(index, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add qdisc", format!("clsact on link {index}"), flags, &Message::NewQueueDiscipline(message))
        .accept(&[Errno::EEXIST])
}

/// `tc filter replace dev INDEX SIDE pref 118 handle 1 bpf da fd PROGRAM`: in one step, no packet meets neither.
pub fn replace(index: u32, side: Side, program: RawFd) -> Request {
    let mut message = message(index, side.parent());
    message.header.handle = TcHandle::from(HANDLE);
    // Any protocol; the kernel keeps its number in network order.
    message.header.info = PREFERENCE << 16 | u32::from(ANY_PROTOCOL.to_be());
    message.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName("viproute".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let object = format!("{} of link {index}", side.word());
    Request::new("set filter", object, NLM_F_CREATE | NLM_F_REPLACE, &Message::NewTrafficFilter(message))
}

/// The id of the program that stands there by [`replace`].
pub fn program(socket: &Socket, index: u32, side: Side) -> Result<Option<u32>> {
    let query = Message::GetTrafficFilter(message(index, side.parent()));
    let found = socket.dump(("list", "filters"), &query, |_, payload| read(&TcMessage::parse(payload).ok()?));
    match found {
        Ok(found) => Ok(found.first().copied()),
        Err(e) if e.is_absent() || e.errno == Errno::EINVAL => Ok(None), // no clsact there
        Err(e) => Err(e),
    }
}

fn message(index: u32, parent: TcHandle) -> TcMessage {
    let header = TcHeader { index: index.cast_signed(), parent, ..TcHeader::default() };
    TcMessage::from_parts(header, Vec::new())
}

fn read(message: &TcMessage) -> Option<u32> {
    if message.header.info >> 16 != PREFERENCE || u32::from(message.header.handle) != HANDLE {
        return None;
    }
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}
