//! Servers and clients: both of our own, so that one processor's worth of client meets one processor's worth of servers on
//! every path. Each is one thread with one epoll, or both are one thread where CPU time is measured; HTTP/1.1 in its plainest
//! form, so that proxies understand it.

mod arrivals;
mod client;
mod connection;
mod datagrams;
mod flows;
mod misplaced;
mod one_thread;
mod paced;
mod poll;
mod server;
mod stream;

pub use arrivals::Arrivals;
pub use client::{Load, Work};
pub use datagrams::flood;
pub use flows::Flows;
pub use misplaced::{Misplaced, raw_socket};
pub use one_thread::{Path, Slices, Transaction, carried};
pub use paced::paced;
pub use server::Server;
pub use stream::bulk;

/// What servers listen on, TCP and UDP, and services as well.
pub const PORT: u16 = 80;

/// The one request, of `connections` and `requests`.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
/// Asks for an answer without end.
const ENDLESS: &[u8] = b"GET /endless HTTP/1.1\r\nHost: bench\r\n\r\n";
/// The end of a message's head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Where the head of a message in `text` ends.
fn head(text: &[u8]) -> Option<usize> {
    text.windows(HEAD_END.len()).position(|window| window == HEAD_END).map(|at| at + HEAD_END.len())
}

/// The body of a whole answer in `text`; `None`: more is to come.
fn body(text: &[u8]) -> Option<&[u8]> {
    let start = head(text)?;
    let head = std::str::from_utf8(&text[..start]).ok()?;
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let length = lines.find(|(key, _)| key.eq_ignore_ascii_case("content-length"))?.1;
    text.get(start..start + length.trim().parse::<usize>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 2\r\n\r\np1";
        assert_eq!(body(answer), Some(&b"p1"[..]));
        for length in 0..answer.len() {
            assert_eq!(body(&answer[..length]), None);
        }
    }
}
