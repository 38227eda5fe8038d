//! `RTM_GETNEXTHOPBUCKET`: which member each bucket of a resilient group points to (linux/nexthop.h).

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, NLA_F_NESTED, NetlinkSerializable, Nla, NlaBuffer, NlasIterator,
    Parseable, parse_u16, parse_u32, parse_u64,
};

use super::message::{HEADER_LEN, NexthopHeader};

pub(super) const RTM_GETNEXTHOPBUCKET: u16 = 118;

const NHA_ID: u16 = 1;
const NHA_RES_BUCKET: u16 = 13;

const NHA_RES_BUCKET_INDEX: u16 = 1;
const NHA_RES_BUCKET_IDLE_TIME: u16 = 2;
const NHA_RES_BUCKET_NH_ID: u16 = 3;

/// A bucket of a resilient group, or (as a request) the question for a group's buckets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NexthopBucketMessage {
    /// `struct nhmsg`.
    pub header: NexthopHeader,
    /// `NHA_ID` and `NHA_RES_BUCKET`.
    pub attributes: Vec<NexthopBucketAttribute>,
}

/// The attributes of a bucket message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NexthopBucketAttribute {
    /// `NHA_ID`: the group.
    Id(u32),
    /// `NHA_RES_BUCKET`
    Bucket(Vec<BucketAttribute>),
    /// An attribute this module does not know.
    Other(DefaultNla),
}

/// `NHA_RES_BUCKET_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BucketAttribute {
    /// `NHA_RES_BUCKET_INDEX`
    Index(u16),
    /// `NHA_RES_BUCKET_IDLE_TIME`, in hundredths of a second (`clock_t`).
    IdleTime(u64),
    /// `NHA_RES_BUCKET_NH_ID`: the member it points to.
    NexthopId(u32),
    /// An attribute this module does not know.
    Other(DefaultNla),
}

impl Emitable for NexthopBucketMessage {
    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.header.emit(buffer);
        self.attributes.as_slice().emit(&mut buffer[HEADER_LEN..]);
    }
}

impl NetlinkSerializable for NexthopBucketMessage {
    fn message_type(&self) -> u16 {
        RTM_GETNEXTHOPBUCKET
    }

    fn buffer_len(&self) -> usize {
        Emitable::buffer_len(self)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.emit(buffer);
    }
}

impl Parseable<[u8]> for NexthopBucketMessage {
    fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let header = super::message::NexthopMessage::parse(payload.get(..HEADER_LEN).unwrap_or(payload))?.header;
        let attributes = NlasIterator::new(&payload[HEADER_LEN..])
            .map(|nla| NexthopBucketAttribute::parse(&nla?))
            .collect::<Result<_, DecodeError>>()?;
        Ok(Self { header, attributes })
    }
}

impl Nla for NexthopBucketAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Id(_) => 4,
            Self::Bucket(attributes) => attributes.as_slice().buffer_len(),
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Id(_) => NHA_ID,
            Self::Bucket(_) => NHA_RES_BUCKET | NLA_F_NESTED,
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Id(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Bucket(attributes) => attributes.as_slice().emit(buffer),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for NexthopBucketAttribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            NHA_ID => Self::Id(parse_u32(value).context("NHA_ID")?),
            NHA_RES_BUCKET => Self::Bucket(
                NlasIterator::new(value)
                    .map(|nla| BucketAttribute::parse(&nla?))
                    .collect::<Result<_, DecodeError>>()
                    .context("NHA_RES_BUCKET")?,
            ),
            _ => Self::Other(DefaultNla::parse(nla).context("unknown bucket attribute")?),
        })
    }
}

impl Nla for BucketAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Index(_) => 2,
            Self::IdleTime(_) => 8,
            Self::NexthopId(_) => 4,
            Self::Other(nla) => nla.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Index(_) => NHA_RES_BUCKET_INDEX,
            Self::IdleTime(_) => NHA_RES_BUCKET_IDLE_TIME,
            Self::NexthopId(_) => NHA_RES_BUCKET_NH_ID,
            Self::Other(nla) => nla.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Index(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::IdleTime(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::NexthopId(value) => buffer.copy_from_slice(&value.to_ne_bytes()),
            Self::Other(nla) => nla.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for BucketAttribute {
    fn parse(nla: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = nla.value();
        Ok(match nla.kind() {
            NHA_RES_BUCKET_INDEX => Self::Index(parse_u16(value).context("NHA_RES_BUCKET_INDEX")?),
            NHA_RES_BUCKET_IDLE_TIME => Self::IdleTime(parse_u64(value).context("NHA_RES_BUCKET_IDLE_TIME")?),
            NHA_RES_BUCKET_NH_ID => Self::NexthopId(parse_u32(value).context("NHA_RES_BUCKET_NH_ID")?),
            _ => Self::Other(DefaultNla::parse(nla).context("unknown bucket attribute")?),
        })
    }
}
