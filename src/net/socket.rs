//! A synchronous netlink socket bound to one network namespace: several requests in one send, acknowledgements
//! collected; dumps filtered by the kernel and repeated when the table changed meanwhile.

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkSerializable, NlasIterator};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::error::{ABSENT, Error};
use super::{Module, Result};

/// How often a dump is repeated that the kernel marks as interrupted (`NLM_F_DUMP_INTR`). On a node where thousands of
/// routes change a second a dump may be unlucky several times in a row.
const DUMP_TRIES: u32 = 20;
/// Bytes sent at once. Well below the default send buffer (`net.core.wmem_default`, 212,992).
const SEND_LIMIT: usize = 64 * 1024;
/// Requests sent at once. Each acknowledgement waits in the receive buffer (`net.core.rmem_default`, 212,992) and counts
/// there with almost 1 KiB; where one finds no room it is lost (`ENOBUFS`).
const SEND_COUNT: usize = 100;
/// The kernel fills dump replies up to 32 KiB (`netlink_dump`); a single object's reply is below 64 KiB, because an
/// attribute's length has 16 bits.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Seconds. The kernel has answered when a send returns; what isn't there then never comes, and a caller that holds a
/// lock must not wait for it.
const ANSWER_WITHIN: i64 = 5;

thread_local! {
    /// What a thread receives into: a block so large, asked for anew for each answer, may be mapped and unmapped
    /// each time.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_CAPPED`: the refused message isn't repeated in the error.
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One change asked of the kernel.
#[derive(Debug)]
pub struct Request {
    op: &'static str,
    object: String,
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
    accept: &'static [Errno],
    module: Option<Module>,
}

impl Request {
    /// `op` and `object` are what an error will say; `flags` are the `NLM_F_…` beyond `REQUEST` and `ACK`.
    pub fn new(op: &'static str, object: String, flags: u16, message: &impl NetlinkSerializable) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        Self { op, object, kind: message.message_type(), flags, payload, accept: &[], module: None }
    }

    /// An object that doesn't exist counts as deleted.
    #[must_use]
    pub fn absent_is_ok(mut self) -> Self {
        self.accept = ABSENT;
        self
    }

    /// The kernel's module that it needs.
    #[must_use]
    pub fn of_module(mut self, module: Module) -> Self {
        self.module = Some(module);
        self
    }

    /// The kernel may answer these, and it counts as done.
    #[must_use]
    pub fn accept(mut self, errnos: &'static [Errno]) -> Self {
        self.accept = errnos;
        self
    }
}

/// A netlink socket; see the module.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: Cell<u32>,
}

/// A reply's type and payload.
pub(super) struct Reply<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    pub(super) payload: &'a [u8],
}

impl Socket {
    /// Opens a socket for links, addresses, routes and the like in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Self::of_protocol(NETLINK_ROUTE)
    }

    /// The same for another of netlink's protocols (`NETLINK_…`).
    pub(super) fn of_protocol(protocol: isize) -> Result<Self> {
        let failed = |e: io::Error| Error::io("open", "netlink socket", &e);
        let mut inner = netlink_sys::Socket::new(protocol).map_err(failed)?;
        inner.bind_auto().map_err(failed)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Let the kernel filter dumps (Linux 4.20), say why it refuses, and not repeat what we sent.
        inner.set_netlink_get_strict_chk(true).map_err(failed)?;
        inner.set_ext_ack(true).map_err(failed)?;
        inner.set_cap_ack(true).map_err(failed)?;
        setsockopt(&inner, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_WITHIN))
            .map_err(|errno| Error::new("open", "netlink socket", errno))?;
        let socket = Self { inner, sequence: Cell::new(0) };
        socket.widen()?;
        Ok(socket)
    }

    /// Shows the kernel the size of our buffer. It makes the first part of a dump as large as the largest receive so far
    /// (`netlink_dump`), at first less than a page: a route over a group of a few hundred members would not fit, and end
    /// the dump.
    fn widen(&self) -> Result<()> {
        const NLMSG_NOOP: u16 = 1;
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        write_message(&mut bytes, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, self.next_sequence(1), &[]);
        let done = self.send(&bytes).and_then(|()| self.receive(|_| ControlFlow::Break(())));
        done.map_err(|e| Error::io("open", "netlink socket", &e))
    }

    /// Sends the requests in as few sends as possible and collects every acknowledgement. The kernel works through all
    /// of them, in order, also behind a refused one; the first refusal is returned.
    pub fn apply(&self, requests: &[Request]) -> Result<()> {
        let mut first_error = Ok(());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut size = HEADER_LEN + rest[0].payload.len();
            let mut count = 1;
            while count < rest.len().min(SEND_COUNT) && size + HEADER_LEN + rest[count].payload.len() <= SEND_LIMIT {
                size += HEADER_LEN + rest[count].payload.len();
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            let result = self.apply_at_once(now);
            if first_error.is_ok() {
                first_error = result;
            }
            rest = later;
        }
        first_error
    }

    fn apply_at_once(&self, requests: &[Request]) -> Result<()> {
        let Some(first) = requests.first() else {
            return Ok(());
        };
        let base = self.next_sequence(requests.len());
        let mut bytes = Vec::with_capacity(requests.iter().map(|r| HEADER_LEN + r.payload.len() + 3).sum());
        for (sequence, request) in (base..).zip(requests) {
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            write_message(&mut bytes, request.kind, flags, sequence, &request.payload);
        }
        let failed = |e: io::Error| Error::io(first.op, &first.object, &e);
        self.send(&bytes).map_err(failed)?;
        let mut first_error: Option<(u32, Error)> = None;
        let mut waiting = requests.len();
        while waiting > 0 {
            let received = self.receive(|reply| {
                let index = reply.sequence.wrapping_sub(base);
                let Some(request) = requests.get(index as usize) else {
                    return ControlFlow::Continue(()); // late acknowledgement of an aborted call
                };
                if reply.kind != NLMSG_ERROR {
                    return ControlFlow::Continue(());
                }
                waiting -= 1;
                if let Some(error) = refusal(request.op, &request.object, &reply)
                    && !request.accept.contains(&error.errno)
                    && first_error.as_ref().is_none_or(|(at, _)| index < *at)
                {
                    let error = match request.module {
                        Some(module) => error.of(module),
                        None => error,
                    };
                    first_error = Some((index, error));
                }
                ControlFlow::Continue(())
            });
            received.map_err(failed)?;
        }
        first_error.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Asks for one object. `None`: it doesn't exist.
    pub fn get<M: NetlinkSerializable, T>(
        &self,
        (op, object): (&'static str, impl Display),
        message: &M,
        read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.query((op, &object), 0, message, read) {
            Ok((mut found, _)) => Ok(found.pop()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a whole table, filtered by what `message` says. `read` picks what it wants of a reply's type and payload.
    /// Repeated when the table changed while it was read.
    pub fn dump<M: NetlinkSerializable, T>(
        &self,
        (op, object): (&'static str, impl Display),
        message: &M,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            match self.query((op, &object), NLM_F_DUMP, message, &mut read) {
                Ok((found, false)) => return Ok(found),
                Ok((_, true)) => {}
                Err(error) if error.errno == Errno::EINTR => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(op, object.to_string(), Errno::EINTR))
    }

    /// The replies to one question, and whether the kernel marked them as inconsistent.
    fn query<M: NetlinkSerializable, T>(
        &self,
        (op, object): (&'static str, &dyn Display),
        flags: u16,
        message: &M,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<(Vec<T>, bool)> {
        let sequence = self.next_sequence(1);
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        write_message(&mut bytes, message.message_type(), NLM_F_REQUEST | flags, sequence, &payload);
        let failed = |e: io::Error| Error::io(op, object.to_string(), &e);
        self.send(&bytes).map_err(failed)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        let mut end: Option<Result<()>> = None;
        while end.is_none() {
            let received = self.receive(|reply| {
                if reply.sequence != sequence {
                    return ControlFlow::Continue(());
                }
                interrupted |= reply.flags & NLM_F_DUMP_INTR != 0;
                match reply.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        end = Some(refusal(op, object, &reply).map_or(Ok(()), Err));
                        return ControlFlow::Break(());
                    }
                    kind => found.extend(read(kind, reply.payload)),
                }
                // One object is one reply; an acknowledgement, not asked for, would cost as much again.
                if flags & NLM_F_DUMP == 0 {
                    end = Some(Ok(()));
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            received.map_err(failed)?;
        }
        end.unwrap_or(Ok(())).map(|()| (found, interrupted))
    }

    fn next_sequence(&self, count: usize) -> u32 {
        let base = self.sequence.get().wrapping_add(1);
        let last = base.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX) - 1);
        self.sequence.set(last);
        base
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.inner.send(bytes, 0).map(drop)
    }

    /// Receives one datagram and hands its messages to `each`.
    fn receive(&self, mut each: impl FnMut(Reply<'_>) -> ControlFlow<()>) -> io::Result<()> {
        // Taken out, so that a nested receive has a buffer of its own.
        let mut buffer = BUFFER.take();
        buffer.clear();
        buffer.reserve(RECEIVE_BUFFER);
        let received = loop {
            match self.inner.recv(&mut buffer, 0) {
                Ok(_) => break Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        if received.is_ok() {
            for reply in messages(&buffer) {
                if each(reply).is_break() {
                    break;
                }
            }
        }
        BUFFER.set(buffer);
        received
    }
}

fn write_message(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = u32::try_from(HEADER_LEN + payload.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes()); // port id: the kernel knows it
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Splits a datagram into its messages; a message that claims more than there is ends it.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = bytes.get(HEADER_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    })
}

/// The error that an `NLMSG_ERROR` or `NLMSG_DONE` carries; `None`: success (`struct nlmsgerr`, errno negated).
fn refusal(op: &'static str, object: impl Display, reply: &Reply<'_>) -> Option<Error> {
    let code = reply.payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
    if code == 0 {
        return None;
    }
    let mut error = Error::new(op, object.to_string(), Errno::from_raw(code.saturating_neg()));
    // Behind the errno an error repeats the request's header, and the whole request unless capped.
    let attributes = match reply.kind {
        NLMSG_DONE => reply.payload.get(4..),
        _ if reply.flags & NLM_F_CAPPED != 0 => reply.payload.get(4 + HEADER_LEN..),
        _ => None,
    };
    error.hint = attributes.and_then(kernel_words);
    Some(error)
}

fn kernel_words(attributes: &[u8]) -> Option<String> {
    NlasIterator::new(attributes)
        .filter_map(std::result::Result::ok)
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .map(|nla| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned())
}

/// Walks a datagram as if the kernel had sent it, each payload by every reader there is; returns how many objects that
/// made. For property tests and fuzzing: must never panic.
pub fn read_anything(datagram: &[u8]) -> usize {
    let objects = |reply: Reply<'_>| {
        let payload = reply.payload;
        let readers = [
            refusal("read", "anything", &reply).is_some(),
            super::monitor::decode(reply.kind, payload).is_some(),
            super::address::decode(payload).is_some(),
            super::link::decode(payload).is_some(),
            super::neighbour::decode(payload).is_some(),
            super::nexthop::decode(reply.kind, payload).is_some(),
            super::nexthop::decode_bucket(payload).is_some(),
            super::route::decode(payload).is_some(),
            super::rule::decode(payload).is_some(),
        ];
        readers.into_iter().filter(|made| *made).count()
    };
    messages(datagram).map(objects).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refusal_carries_errno_and_the_kernels_words() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER_LEN]);
        payload.extend(24u16.to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(b"Invalid nexthop id\0\0");
        let mut bytes = Vec::new();
        write_message(&mut bytes, NLMSG_ERROR, NLM_F_CAPPED, 7, &payload);
        let reply = messages(&bytes).next().unwrap();
        let error = refusal("add nexthop", "id 1", &reply).unwrap();
        assert_eq!(error.errno, Errno::EINVAL);
        assert_eq!(error.to_string(), "add nexthop id 1 (Invalid nexthop id)");
    }

    #[test]
    fn a_datagram_splits_into_its_messages() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, 24, 2, 1, &[1, 2, 3]);
        write_message(&mut bytes, NLMSG_DONE, 2, 1, &0i32.to_ne_bytes());
        let kinds: Vec<_> = messages(&bytes).map(|m| (m.kind, m.payload.len())).collect();
        assert_eq!(kinds, [(24, 3), (NLMSG_DONE, 4)]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            read_anything(&bytes);
        }
    }
}
