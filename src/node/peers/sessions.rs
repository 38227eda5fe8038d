//! What makes a datagram a node's own, fresh and once: no clock is compared, and nothing of it outlives either process.
//!
//! ```text
//! magic 4 | kind 1 | part 1 | parts 1 | 0 | boot 8 | token 8 | counter 8 | body … | HMAC-SHA256 32
//! ```
//! The HMAC is over both addresses and all before it. `boot` is random at each start. A datagram counts only with the token that
//! its receiver gave that very process of the sender, and a counter that it didn't have before: what was captured before either
//! of them started is worth nothing, and the rest counts once.
//!
//! ```text
//! A                                B
//! ASK (nonce n)          ─────▶    a token for whoever can use it, the same until it is used
//!                        ◀─────    TOKEN (t, for n)
//! DATA (t, counter)      ─────▶    the first one makes A's process the one that t is for; others' tokens end
//! ```
//! A message is cut into parts that need no IP fragments. A note is one datagram, which counts like DATA: a process of before this
//! one's start, or of the other side's, can neither have asked nor answered by it.

mod window;
mod wire;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::key::{Keys, TAG};
use super::rate::Limiter;
use window::{Message, Window};
use wire::{HEADER, Head, Kind, MAX_PARTS, PART, octets};

/// Nodes that are remembered at a time.
const MAX_SESSIONS: usize = 1024;
/// Between two questions to the same node.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Senders with another key that are remembered, and for how long.
const MAX_STRANGERS: usize = 64;
const STRANGER: Duration = Duration::from_secs(60);

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// Its source has sent too many.
    Rate,
    /// It is none of ours.
    Malformed,
    /// Its sender has another key, or another address than it says.
    BadKey,
    /// Its counter was there before.
    Replay,
    /// It is for another process than this one, or of one that has ended.
    Stale,
}

impl Drop {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rate, Self::Malformed, Self::BadKey, Self::Replay, Self::Stale];

    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Malformed => "malformed",
            Self::BadKey => "bad_key",
            Self::Replay => "replay",
            Self::Stale => "stale",
        }
    }
}

/// What comes of a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// A whole message.
    pub message: Option<Vec<u8>>,
    /// A note.
    pub note: Option<Vec<u8>>,
    /// What the sender is answered.
    pub replies: Vec<Vec<u8>>,
}

/// All that a node knows of those it speaks with.
#[derive(Debug)]
pub struct Sessions {
    keys: Keys,
    own: SocketAddr,
    boot: u64,
    sent: u64,
    known: HashMap<SocketAddr, Session>,
    limiter: Limiter,
    strangers: HashMap<IpAddr, Instant>,
    dropped: [u64; Drop::ALL.len()],
}

#[derive(Debug)]
struct Session {
    /// What was given out, to be used by whichever process of the node comes first.
    offered: Option<u64>,
    /// The process that is heard, by its boot and the token it has.
    heard: Option<(u64, u64)>,
    window: Window,
    message: Message,
    /// The last datagram that counted.
    at: Option<Instant>,
    /// The token to send with, and the boot of the process that gave it.
    given: Option<(u64, u64)>,
    /// What a token must be for.
    nonce: u64,
    asked: Option<Instant>,
    touched: Instant,
}

impl Session {
    fn new(now: Instant) -> Self {
        Self {
            offered: None,
            heard: None,
            window: Window::default(),
            message: Message::default(),
            at: None,
            given: None,
            nonce: rand::random(),
            asked: None,
            touched: now,
        }
    }
}

impl Sessions {
    /// With nobody. `own` is what others see as the source of its datagrams.
    pub fn new(keys: Keys, own: SocketAddr) -> Self {
        Self {
            keys,
            own,
            boot: rand::random(),
            sent: 0,
            known: HashMap::new(),
            limiter: Limiter::default(),
            strangers: HashMap::new(),
            dropped: [0; Drop::ALL.len()],
        }
    }

    /// These keys from now on.
    pub fn change_keys(&mut self, keys: Keys) {
        self.keys = keys;
    }

    /// When a node was last heard, by the address it sends from.
    pub fn heard(&self, from: SocketAddr) -> Option<Instant> {
        self.known.get(&from)?.at
    }

    /// One more was dropped, after it was opened.
    pub fn count(&mut self, why: Drop) {
        self.dropped[why as usize] += 1;
    }

    /// How many datagrams were dropped, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (Drop, u64)> {
        Drop::ALL.into_iter().zip(self.dropped)
    }

    /// Who has lately sent datagrams of another key.
    pub fn strangers(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        self.strangers.iter().filter(move |(_, at)| now.duration_since(**at) < STRANGER).map(|(address, _)| *address)
    }

    /// The datagrams that carry a message. While the receiver's token isn't known, the one that asks for it: the message is lost.
    pub fn seal(&mut self, to: SocketAddr, message: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let Some((token, _)) = self.session(to, now).given else {
            return self.ask(to, false, now).into_iter().collect();
        };
        let chunks: Vec<&[u8]> = if message.is_empty() { vec![message] } else { message.chunks(PART).collect() };
        let Some(parts) = u8::try_from(chunks.len()).ok().filter(|parts| usize::from(*parts) <= MAX_PARTS) else {
            return Vec::new();
        };
        let numbered = (0..parts).zip(chunks);
        let datagrams = numbered.map(|(part, body)| {
            self.sent += 1;
            let head = Head { kind: Kind::Data, part, parts, boot: self.boot, token, counter: self.sent };
            self.signed(to, &head, body)
        });
        datagrams.collect()
    }

    /// The datagram that carries a note, of [`wire::PART`] octets at most; as for a message, the note is lost where no token is known.
    pub fn seal_note(&mut self, to: SocketAddr, note: &[u8], now: Instant) -> Option<Vec<u8>> {
        let Some((token, _)) = self.session(to, now).given else { return self.ask(to, false, now) };
        if note.len() > PART {
            return None;
        }
        self.sent += 1;
        let head = Head { kind: Kind::Note, part: 0, parts: 1, boot: self.boot, token, counter: self.sent };
        Some(self.signed(to, &head, note))
    }

    /// What a datagram says; an error: it is dropped and counted.
    pub fn open(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Result<Opened, Drop> {
        let opened = self.checked(from, datagram, now);
        if let Err(why) = opened.as_ref() {
            self.count(*why);
        }
        // What is for another process of this node is answered, so that its sender asks for another token.
        if opened == Err(Drop::Stale)
            && let Some(question) = self.ask(from, true, now)
        {
            return Ok(Opened { replies: vec![question], ..Opened::default() });
        }
        opened
    }

    fn checked(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Result<Opened, Drop> {
        let known = self.known.get(&from).is_some_and(|session| session.at.is_some());
        if !self.limiter.allows(from.ip(), known, now) {
            return Err(Drop::Rate);
        }
        let head = Head::read(datagram).ok_or(Drop::Malformed)?;
        let (signed, tag) = datagram.split_at(datagram.len() - TAG);
        if from == self.own || !self.keys.verify(&[&octets(from), &octets(self.own), signed], tag) {
            self.remember_stranger(from.ip(), now);
            return Err(Drop::BadKey);
        }
        self.strangers.remove(&from.ip());
        match head.kind {
            Kind::Data | Kind::Note => self.data(from, &head, &signed[HEADER..], now),
            Kind::Ask => Ok(self.asked(from, &head, now)),
            Kind::Token => self.token(from, &head, now),
        }
    }

    fn data(&mut self, from: SocketAddr, head: &Head, body: &[u8], now: Instant) -> Result<Opened, Drop> {
        let session = self.known.get_mut(&from).ok_or(Drop::Stale)?;
        if session.offered == Some(head.token) {
            session.offered = None;
            session.heard = Some((head.boot, head.token));
            (session.window, session.message) = (Window::default(), Message::default());
        }
        if session.heard != Some((head.boot, head.token)) {
            return Err(Drop::Stale);
        }
        if !session.window.take(head.counter) {
            return Err(Drop::Replay);
        }
        session.at = Some(now);
        session.touched = now;
        Ok(match head.kind {
            Kind::Note => Opened { note: Some(body.to_vec()), ..Opened::default() },
            _ => Opened { message: session.message.take(head, body), ..Opened::default() },
        })
    }

    /// The sender has no token: it gets one, and is asked for one itself where the one it gave is another process's.
    fn asked(&mut self, from: SocketAddr, head: &Head, now: Instant) -> Opened {
        let session = self.session(from, now);
        let token = match session.heard {
            Some((boot, token)) if boot == head.boot => token,
            _ => *session.offered.get_or_insert_with(rand::random),
        };
        let is_void = head.counter != 0;
        let is_other = session.given.is_none_or(|(_, boot)| boot != head.boot);
        let head = Head { kind: Kind::Token, part: 0, parts: 1, boot: self.boot, token, counter: head.token };
        let mut replies = vec![self.signed(from, &head, &[])];
        if is_void || is_other {
            replies.extend(self.ask(from, false, now));
        }
        Opened { replies, ..Opened::default() }
    }

    fn token(&mut self, from: SocketAddr, head: &Head, now: Instant) -> Result<Opened, Drop> {
        let session = self.known.get_mut(&from).ok_or(Drop::Stale)?;
        if session.nonce != head.counter {
            return Err(Drop::Replay);
        }
        session.given = Some((head.token, head.boot));
        session.nonce = rand::random();
        session.touched = now;
        session.asked = None;
        Ok(Opened::default())
    }

    /// Asks for a token; `None`: that was done a moment ago. `void`: the one that the node sends with isn't valid here.
    fn ask(&mut self, to: SocketAddr, void: bool, now: Instant) -> Option<Vec<u8>> {
        let boot = self.boot;
        let session = self.session(to, now);
        if session.asked.is_some_and(|asked| now.duration_since(asked) < ASK_AGAIN) {
            return None;
        }
        session.asked = Some(now);
        let token = session.nonce;
        let head = Head { kind: Kind::Ask, part: 0, parts: 1, boot, token, counter: u64::from(void) };
        Some(self.signed(to, &head, &[]))
    }

    fn signed(&self, to: SocketAddr, head: &Head, body: &[u8]) -> Vec<u8> {
        let mut datagram = head.write();
        datagram.extend_from_slice(body);
        let tag = self.keys.sign(&[&octets(self.own), &octets(to), &datagram]);
        datagram.extend_from_slice(&tag);
        datagram
    }

    /// The session with a node, new or not; the one that was quiet for longest makes room.
    fn session(&mut self, with: SocketAddr, now: Instant) -> &mut Session {
        if self.known.len() >= MAX_SESSIONS
            && !self.known.contains_key(&with)
            && let Some(oldest) = self.known.iter().min_by_key(|(_, session)| session.touched).map(|(of, _)| *of)
        {
            self.known.remove(&oldest);
            self.limiter.forget(oldest.ip());
        }
        let session = self.known.entry(with).or_insert_with(|| Session::new(now));
        session.touched = now;
        session
    }

    fn remember_stranger(&mut self, address: IpAddr, now: Instant) {
        if self.strangers.len() >= MAX_STRANGERS && !self.strangers.contains_key(&address) {
            self.strangers.retain(|_, at| now.duration_since(*at) < STRANGER);
        }
        if self.strangers.len() < MAX_STRANGERS || self.strangers.contains_key(&address) {
            self.strangers.insert(address, now);
        }
    }
}

#[cfg(test)]
mod tests;
