//! Programs on a device's packets (`tc qdisc`, `tc filter`).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::RawFd;

use super::{Module, PROTOCOL, Request, Result, Socket};

/// The hook of a program.
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
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "tc ingress",
            Self::Egress => "tc egress",
        })
    }
}

/// Which packets of a side a program is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// All that no other program of ours has decided on.
    All,
    /// Those of IPv6, before all others.
    Ipv6,
}

/// Where on a device a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which side.
    pub side: Side,
    /// Which packets.
    pub packets: Packets,
}

impl From<Side> for Place {
    fn from(side: Side) -> Self {
        Self { side, packets: Packets::All }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.packets {
            Packets::All => self.side.fmt(f),
            Packets::Ipv6 => write!(f, "{} of IPv6", self.side),
        }
    }
}

impl Packets {
    /// `pref`: lower ones are asked first. A preference is of one protocol.
    const fn preference(self) -> u32 {
        match self {
            Self::All => PROTOCOL as u32,
            Self::Ipv6 => PROTOCOL as u32 - 1,
        }
    }

    /// `struct tcmsg`'s `tcm_info`. The kernel keeps the protocol's number in network order.
    fn info(self) -> u32 {
        let protocol = match self {
            Self::All => ANY_PROTOCOL,
            Self::Ipv6 => IPV6,
        };
        self.preference() << 16 | u32::from(protocol.to_be())
    }
}

/// Of ours there is one a place, with this handle.
const HANDLE: u32 = 1;
/// What the kernel says of a filter that isn't there.
const NO_FILTER: &[Errno] = &[Errno::ENOENT, Errno::ENODEV, Errno::EINVAL];
/// `ETH_P_ALL` (`linux/if_ether.h`).
const ANY_PROTOCOL: u16 = 3;
/// `ETH_P_IPV6`.
const IPV6: u16 = 0x86dd;

/// `tc qdisc add dev INDEX clsact`: what filters hang on. One that is there will do.
pub fn add_clsact(index: u32) -> Request {
    let mut message = message(index, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    Request::new("add qdisc", format!("clsact on link {index}"), flags, &Message::NewQueueDiscipline(message))
        .accept(&[Errno::EEXIST])
        .of_module(Module::SchIngress)
}

/// `tc qdisc del dev INDEX clsact`: with it goes every filter on it.
pub fn del_clsact(index: u32) -> Request {
    let mut message = message(index, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    Request::new("delete qdisc", format!("clsact on link {index}"), 0, &Message::DelQueueDiscipline(message))
        .accept(NO_FILTER)
}

/// `tc filter replace dev INDEX SIDE protocol … pref 118 handle 1 bpf da fd PROGRAM`: in one step, no packet meets neither.
pub fn replace(index: u32, place: impl Into<Place>, program: RawFd) -> Request {
    let place = place.into();
    let mut message = message(index, place.side.parent());
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = place.packets.info();
    message.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName("viproute".to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let object = format!("{place} of link {index}");
    Request::new("set filter", object, NLM_F_CREATE | NLM_F_REPLACE, &Message::NewTrafficFilter(message))
        .of_module(Module::ClsBpf)
}

/// `tc filter del dev INDEX SIDE pref 118 handle 1 bpf`: what [`replace`] attached.
pub fn delete(index: u32, place: impl Into<Place>) -> Request {
    let place = place.into();
    let mut message = message(index, place.side.parent());
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = place.packets.info();
    message.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    let object = format!("{place} of link {index}");
    // Without clsact the kernel says EINVAL.
    Request::new("delete filter", object, 0, &Message::DelTrafficFilter(message)).accept(NO_FILTER)
}

/// A filter as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `pref`.
    pub preference: u32,
    /// `bpf`, `flower`, …
    pub kind: String,
    /// The name of a BPF program.
    pub name: Option<String>,
    /// Its id.
    pub program: Option<u32>,
}

impl Filter {
    /// [`replace`] attached it.
    pub fn is_ours(&self) -> bool {
        [Packets::All, Packets::Ipv6].into_iter().any(|packets| self.is_ours_for(packets))
    }

    /// The same, and it is given these packets.
    pub fn is_ours_for(&self, packets: Packets) -> bool {
        self.preference == packets.preference() && self.kind == "bpf"
    }
}

/// All filters there, those of other programs too. A kind without options stands for the whole preference, which the
/// kernel shows before its filters.
pub fn list(socket: &Socket, index: u32, place: impl Into<Place>) -> Result<Vec<Filter>> {
    let query = Message::GetTrafficFilter(message(index, place.into().side.parent()));
    let found = socket.dump(("list", "filters"), &query, |_, payload| shown(&TcMessage::parse(payload).ok()?));
    match found {
        Err(e) if e.is_absent() || e.errno == Errno::EINVAL => Ok(Vec::new()), // no clsact there
        other => other,
    }
}

fn shown(message: &TcMessage) -> Option<Filter> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    });
    let options = options.unwrap_or_default();
    let name = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    let program = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(Filter { preference: message.header.info >> 16, kind, name, program })
}

/// The id of the program that [`replace`] attached there.
pub fn program(socket: &Socket, index: u32, place: impl Into<Place>) -> Result<Option<u32>> {
    let place = place.into();
    let query = Message::GetTrafficFilter(message(index, place.side.parent()));
    let read = |payload: &[u8]| read(&TcMessage::parse(payload).ok()?, place.packets);
    let found = socket.dump(("list", "filters"), &query, |_, payload| read(payload));
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

fn read(message: &TcMessage, packets: Packets) -> Option<u32> {
    if message.header.info >> 16 != packets.preference() || u32::from(message.header.handle) != HANDLE {
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
