//! `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP`, `RTM_GETNEXTHOP` in the shape of the netlink-packet crates
//! (linux/nexthop.h, net/ipv4/nexthop.c).

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, Nla, NlaBuffer, NlasIterator, Parseable, parse_ip, parse_u16, parse_u32,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use std::net::IpAddr;

pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
pub(super) const RTM_GETNEXTHOP: u16 = 106;

/// Bytes of `struct nhmsg`.
pub(super) const HEADER_LEN: usize = 8;
/// Bytes of `struct nexthop_grp`.
const MEMBER_LEN: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_GROUPS: u16 = 9;
const NHA_RES_GROUP: u16 = 12;

const NHA_RES_GROUP_BUCKETS: u16 = 1;
const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;
const NHA_RES_GROUP_UNBALANCED_TIMER: u16 = 3;

/// A nexthop object: header and attributes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NexthopMessage {
    /// `struct nhmsg`.
    pub header: NexthopHeader,
    /// `NHA_…`.
    pub attributes: Vec<NexthopAttribute>,
}

/// `struct nhmsg`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NexthopHeader {
    /// `nh_family`: of the gateway; unspecified for groups.
    pub family: AddressFamily,
    /// `nh_scope`: zero in requests.
    pub scope: RouteScope,
    /// `nh_protocol`: who made it.
    pub protocol: RouteProtocol,
    /// `nh_flags`: `RTNH_F_…`.
    pub flags: u32,
}

/// `NHA_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NexthopAttribute {
    /// `NHA_ID`
    Id(u32),
    /// `NHA_GROUP`: the members of a group.
    Group(Vec<GroupMember>),
    /// `NHA_GROUP_TYPE`
    GroupType(GroupType),
    /// `NHA_BLACKHOLE`
    Blackhole,
    /// `NHA_OIF`: the device's index.
    Oif(u32),
    /// `NHA_GATEWAY`, of the header's family.
    Gateway(IpAddr),
    /// `NHA_GROUPS`: a dump of groups only.
    Groups,
    /// `NHA_RES_GROUP`
    Resilient(Vec<ResilientAttribute>),
    /// An attribute this module does not know.
    Other(DefaultNla),
}

/// `NEXTHOP_GRP_TYPE_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupType {
    /// A flow follows the hash at once.
    Multipath,
    /// A flow keeps its bucket while that is in use.
    Resilient,
    /// A type newer than this module.
    Other(u16),
}

/// `struct nexthop_grp`: one member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupMember {
    /// The member's nexthop id.
    pub id: u32,
    /// Its weight, 1–65,535 (above 255 since Linux 6.13); on the wire one less.
    pub weight: u32,
}

/// `NHA_RES_GROUP_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResilientAttribute {
    /// `NHA_RES_GROUP_BUCKETS`
    Buckets(u16),
    /// `NHA_RES_GROUP_IDLE_TIMER`, in hundredths of a second (`clock_t`).
    IdleTimer(u32),
    /// `NHA_RES_GROUP_UNBALANCED_TIMER`, in hundredths of a second (`clock_t`).
    UnbalancedTimer(u32),
    /// An attribute this module does not know, or that isn't needed (`NHA_RES_GROUP_UNBALANCED_TIME`).
    Other(DefaultNla),
}

impl Emitable for NexthopHeader {
    fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[0] = self.family.into();
        buffer[1] = self.scope.into();
        buffer[2] = self.protocol.into();
        buffer[3] = 0;
        buffer[4..8].copy_from_slice(&self.flags.to_ne_bytes());
    }
}

impl Emitable for NexthopMessage {
    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.header.emit(buffer);
        self.attributes.as_slice().emit(&mut buffer[HEADER_LEN..]);
    }
}

impl Parseable<[u8]> for NexthopMessage {
    fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let Some(&[family, scope, protocol, _, f0, f1, f2, f3]) = payload.first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::from("nexthop message shorter than struct nhmsg"));
        };
        let header = NexthopHeader {
            family: family.into(),
            scope: scope.into(),
            protocol: protocol.into(),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        };
        let attributes = NlasIterator::new(&payload[HEADER_LEN..])
            .map(|nla| NexthopAttribute::parse(&nla?))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { header, attributes })
    }
}

impl Nla for NexthopAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Id(_) | Self::Oif(_) | Self::Gateway(IpAddr::V4(_)) => 4,
            Self::Gateway(IpAddr::V6(_)) => 16,
            Self::Group(members) => members.len() * MEMBER_LEN,
            Self::GroupType(_) => 2,
            Self::Blackhole | Self::Groups => 0,
            Self::Resilient(attributes) => attributes.as_slice().buffer_len(),
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Id(_) => NHA_ID,
            Self::Group(_) => NHA_GROUP,
            Self::GroupType(_) => NHA_GROUP_TYPE,
            Self::Blackhole => NHA_BLACKHOLE,
            Self::Oif(_) => NHA_OIF,
            Self::Gateway(_) => NHA_GATEWAY,
            Self::Groups => NHA_GROUPS,
            Self::Resilient(_) => NHA_RES_GROUP | NLA_F_NESTED,
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Id(value) | Self::Oif(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Gateway(IpAddr::V4(address)) => buffer.copy_from_slice(&address.octets()),
            Self::Gateway(IpAddr::V6(address)) => buffer.copy_from_slice(&address.octets()),
            Self::Group(members) => {
                for (member, chunk) in members.iter().zip(buffer.chunks_exact_mut(MEMBER_LEN)) {
                    member.emit(chunk);
                }
            }
            Self::GroupType(kind) => buffer.copy_from_slice(&u16::from(*kind).to_ne_bytes()),
            Self::Blackhole | Self::Groups => {}
            Self::Resilient(attributes) => attributes.as_slice().emit(buffer),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for NexthopAttribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            NHA_ID => Self::Id(parse_u32(value).context("NHA_ID")?),
            NHA_GROUP => Self::Group(value.chunks_exact(MEMBER_LEN).filter_map(GroupMember::read).collect()),
            NHA_GROUP_TYPE => Self::GroupType(parse_u16(value).context("NHA_GROUP_TYPE")?.into()),
            NHA_BLACKHOLE => Self::Blackhole,
            NHA_OIF => Self::Oif(parse_u32(value).context("NHA_OIF")?),
            NHA_GATEWAY if value.len() == 4 || value.len() == 16 => {
                Self::Gateway(parse_ip(value).context("NHA_GATEWAY")?)
            }
            NHA_GROUPS => Self::Groups,
            NHA_RES_GROUP => Self::Resilient(
                NlasIterator::new(value)
                    .map(|nla| ResilientAttribute::parse(&nla?))
                    .collect::<Result<_, DecodeError>>()
                    .context("NHA_RES_GROUP")?,
            ),
            _ => Self::Other(DefaultNla::parse(nla).context("unknown nexthop attribute")?),
        })
    }
}

impl GroupMember {
    fn emit(self, buffer: &mut [u8]) {
        let [low, high, ..] = self.weight.saturating_sub(1).to_le_bytes();
        buffer[..4].copy_from_slice(&self.id.to_ne_bytes());
        buffer[4..].copy_from_slice(&[low, high, 0, 0]);
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, d, low, high, ..] = bytes.first_chunk::<MEMBER_LEN>()?;
        Some(Self { id: u32::from_ne_bytes([a, b, c, d]), weight: u32::from(u16::from_le_bytes([low, high])) + 1 })
    }
}

impl From<GroupType> for u16 {
    fn from(kind: GroupType) -> Self {
        match kind {
            GroupType::Multipath => 0,
            GroupType::Resilient => 1,
            GroupType::Other(value) => value,
        }
    }
}

impl From<u16> for GroupType {
    fn from(value: u16) -> Self {
        match value {
            0 => Self::Multipath,
            1 => Self::Resilient,
            other => Self::Other(other),
        }
    }
}

impl Nla for ResilientAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Buckets(_) => 2,
            Self::IdleTimer(_) | Self::UnbalancedTimer(_) => 4,
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Buckets(_) => NHA_RES_GROUP_BUCKETS,
            Self::IdleTimer(_) => NHA_RES_GROUP_IDLE_TIMER,
            Self::UnbalancedTimer(_) => NHA_RES_GROUP_UNBALANCED_TIMER,
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Buckets(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::IdleTimer(value) | Self::UnbalancedTimer(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for ResilientAttribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            NHA_RES_GROUP_BUCKETS => Self::Buckets(parse_u16(value).context("NHA_RES_GROUP_BUCKETS")?),
            NHA_RES_GROUP_IDLE_TIMER => Self::IdleTimer(parse_u32(value).context("NHA_RES_GROUP_IDLE_TIMER")?),
            NHA_RES_GROUP_UNBALANCED_TIMER => {
                Self::UnbalancedTimer(parse_u32(value).context("NHA_RES_GROUP_UNBALANCED_TIMER")?)
            }
            _ => Self::Other(DefaultNla::parse(nla).context("unknown resilient group attribute")?),
        })
    }
}

/// The three message types of nexthop objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NexthopNetlinkMessage {
    /// `RTM_NEWNEXTHOP`
    New(NexthopMessage),
    /// `RTM_DELNEXTHOP`
    Del(NexthopMessage),
    /// `RTM_GETNEXTHOP`
    Get(NexthopMessage),
}

impl NexthopNetlinkMessage {
    fn message(&self) -> &NexthopMessage {
        match self {
            Self::New(message) | Self::Del(message) | Self::Get(message) => message,
        }
    }
}

impl NetlinkSerializable for NexthopNetlinkMessage {
    fn message_type(&self) -> u16 {
        match self {
            Self::New(_) => RTM_NEWNEXTHOP,
            Self::Del(_) => RTM_DELNEXTHOP,
            Self::Get(_) => RTM_GETNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        self.message().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.message().emit(buffer);
    }
}

impl NetlinkDeserializable for NexthopNetlinkMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let message = NexthopMessage::parse(payload)?;
        match header.message_type {
            RTM_NEWNEXTHOP => Ok(Self::New(message)),
            RTM_DELNEXTHOP => Ok(Self::Del(message)),
            RTM_GETNEXTHOP => Ok(Self::Get(message)),
            other => Err(DecodeError::from(format!("message type {other} is none of nexthops"))),
        }
    }
}
