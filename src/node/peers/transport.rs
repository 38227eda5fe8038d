//! chitchat's messages and the nodes' notes over UDP, by [`Sessions`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::sessions::{Drop, Opened, Sessions};

/// Longer than any datagram of ours.
const BUFFER: usize = 2048;

/// Notes that wait to be read; more are lost, as a wire may lose them.
const NOTES: usize = 1024;

/// A note, and where it came from.
pub type Received = (SocketAddr, Vec<u8>);

/// The sessions, which the engine asks who was heard. Clones are the same.
#[derive(Clone, Debug)]
pub struct Keyed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sessions: Mutex<Sessions>,
    /// Once it is open.
    socket: Mutex<Option<Arc<UdpSocket>>>,
    notes: Sender<Received>,
}

impl Keyed {
    /// Over these; notes come by the receiver.
    pub fn new(sessions: Sessions) -> (Self, Receiver<Received>) {
        let (notes, received) = channel(NOTES);
        let (sessions, socket) = (Mutex::new(sessions), Mutex::default());
        (Self(Arc::new(Inner { sessions, socket, notes })), received)
    }

    /// The sessions, for a moment.
    pub fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a note; it may be lost.
    pub fn send_note(&self, to: SocketAddr, note: &str) {
        let datagram = self.sessions().seal_note(to, note.as_bytes(), Instant::now());
        let socket = self.0.socket.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let (Some(socket), Some(datagram)) = (socket, datagram) {
            // A full socket loses it, as a wire may.
            let _ = socket.try_send_to(&datagram, to);
        }
    }
}

struct KeyedSocket {
    keyed: Keyed,
    socket: Arc<UdpSocket>,
    buffer: Box<[u8; BUFFER]>,
}

#[async_trait]
impl Transport for Keyed {
    async fn open(&self, at: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = Arc::new(UdpSocket::bind(at).await?);
        *self.0.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&socket));
        Ok(Box::new(KeyedSocket { keyed: self.clone(), socket, buffer: Box::new([0; BUFFER]) }))
    }
}

#[async_trait]
impl Socket for KeyedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let datagrams = self.keyed.sessions().seal(to, &message.serialize_to_vec(), Instant::now());
        for datagram in datagrams {
            // A node that is away answers with an ICMP error, which is no reason to stop.
            let _ = self.socket.send_to(&datagram, to).await;
        }
        Ok(())
    }

    /// Nothing is lost where the future is dropped: behind the one point where it waits it doesn't wait again.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Ok((length, from)) = self.socket.recv_from(&mut self.buffer[..]).await else { continue };
            // As seeds and nodes are written: without what else the kernel says of an address of IPv6.
            let from = SocketAddr::new(from.ip(), from.port());
            if let Some(message) = self.opened(length, from) {
                return Ok((from, message));
            }
        }
    }
}

impl KeyedSocket {
    fn opened(&self, length: usize, from: SocketAddr) -> Option<ChitchatMessage> {
        let opened = self.keyed.sessions().open(from, &self.buffer[..length], Instant::now());
        let Opened { message, note, replies } = opened.ok()?;
        for reply in replies {
            // A full socket loses it, as a wire may.
            let _ = self.socket.try_send_to(&reply, from);
        }
        if let Some(note) = note {
            let _ = self.keyed.0.notes.try_send((from, note));
        }
        let message = message?;
        let message = ChitchatMessage::deserialize(&mut &message[..]).ok();
        if message.is_none() {
            self.keyed.sessions().count(Drop::Malformed);
        }
        message
    }
}

/// Reads a datagram as a node does that has this key, and as the message of a node that is believed: for fuzzing. Whether it is
/// such a message.
pub fn read_anything(data: &[u8]) -> bool {
    let [here, there] = [1, 2].map(|last| SocketAddr::from(([192, 0, 2, last], 8119)));
    let keys = super::key::Keys::new([1; 32], None);
    let (mut receiver, mut sender) = (Sessions::new(keys.clone(), here), Sessions::new(keys, there));
    let now = Instant::now();
    let _ = receiver.open(there, data, now);
    let mut understood = false;
    // The first one asks for the token.
    for _ in 0..2 {
        for datagram in sender.seal(here, data, now) {
            let Ok(Opened { message, replies, .. }) = receiver.open(there, &datagram, now) else { continue };
            for reply in replies {
                let _ = sender.open(here, &reply, now);
            }
            understood |= message.is_some_and(|message| ChitchatMessage::deserialize(&mut &message[..]).is_ok());
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<super::word::Word>();
        let _ = super::word::vips(text.lines().filter_map(|line| line.split_once('=')));
        let _ = super::holding::holdings(text.lines().filter_map(|line| line.split_once('=')));
        let _ = text.parse::<super::note::Note>();
    }
    understood
}
