//! The IPv4 settings of all devices together and of those to come (`ip netconf show`), by netlink: below `/proc/sys` a lookup of a
//! name goes through those of every namespace it was ever looked up in (`proc_sys_compare` in `fs/proc/proc_sysctl.c`), a node's
//! thousand pods say.

use netlink_packet_core::{DefaultNla, Emitable, NetlinkSerializable};

use crate::model::Family;

use super::{Result, Socket, address_family, attribute};

/// `RTM_GETNETCONF` (linux/rtnetlink.h).
const GET: u16 = 82;
/// Bytes of `struct netconfmsg`, a byte and what is left of four (linux/netconf.h).
const HEADER: usize = 4;
/// `NETCONFA_…` (linux/netconf.h).
const IFINDEX: u16 = 1;
const RP_FILTER: u16 = 3;

/// Which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Devices {
    /// `all`
    All = -1,
    /// `default`: what a device that comes later has.
    Default = -2,
}

/// The `rp_filter` of a namespace's devices. `None`: the kernel doesn't say it.
pub fn rp_filter(socket: &Socket, devices: Devices) -> Result<Option<i32>> {
    socket.get(("get rp_filter", format_args!("{devices:?}")), &Question(devices), |_, payload| decode(payload))
}

struct Question(Devices);

impl Question {
    fn index(&self) -> DefaultNla {
        DefaultNla::new(IFINDEX, (self.0 as i32).to_ne_bytes().to_vec())
    }
}

impl NetlinkSerializable for Question {
    fn message_type(&self) -> u16 {
        GET
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.index().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].fill(0);
        buffer[0] = address_family(Family::V4).into();
        self.index().emit(&mut buffer[HEADER..]);
    }
}

fn decode(payload: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*attribute(payload.get(HEADER..)?, RP_FILTER)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::nla;

    #[test]
    fn a_question_and_its_answer() {
        let question = Question(Devices::Default);
        let mut bytes = vec![0xff; question.buffer_len()];
        question.serialize(&mut bytes);
        let index = nla(IFINDEX, &(-2i32).to_ne_bytes());
        assert_eq!(bytes, [&[2, 0, 0, 0], &index[..]].concat());
        let answer = [vec![2, 0, 0, 0], index, nla(2, &[1, 0, 0, 0]), nla(RP_FILTER, &1i32.to_ne_bytes())].concat();
        assert_eq!(decode(&answer), Some(1));
        assert_eq!(decode(&answer[..4]), None);
        assert_eq!(decode(&[]), None);
    }
}
