//! The task that runs every machine over one socket.

use std::io;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time;

use super::fleet::{Fleet, Outlet};
use super::machine::Event;
use super::transport::Transport;
use super::wire::{Answer, Kind, Message, Reply, WireError};
use super::{Change, Counters, Error, Identity, Lease, Notice, TransportConfig};

/// The longest sleep. Leases go by the wall clock and the sleep by another: neither a suspended machine nor a clock
/// set is noticed while asleep.
const NAP: Duration = Duration::from_secs(5);
/// How long a socket that reports an error is left alone, so that one that does so for ever doesn't take a CPU.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What a [`Handle`] asks of the task.
#[derive(Debug)]
enum Command {
    Acquire { key: String, identity: Identity, remembered: Option<Lease> },
    Decline(String),
    Restart(String),
    Forget(String),
}

/// A DHCP client for many identities.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Opens the socket and starts the task in the current tokio runtime. It runs until the last handle is dropped.
    pub fn start(config: TransportConfig) -> Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let transport = Transport::open(config)?;
        let (commands, asked) = mpsc::unbounded_channel();
        let (notices, told) = mpsc::unbounded_channel();
        let (counters, count) = watch::channel(Counters::default());
        let fleet = Fleet::new(rand::random(), SystemTime::now());
        let way = Way { transport, notices, counters, outage: false };
        runtime.spawn(Task { fleet, way, commands: asked }.run());
        Ok((Handle { commands, counters: count }, told))
    }
}

/// What runs.
struct Task {
    fleet: Fleet,
    way: Way,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.fleet.tick(SystemTime::now(), &mut self.way);
            let rest = self.fleet.rest(SystemTime::now()).map_or(NAP, |rest| rest.min(NAP));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                packet = receive(&self.way.transport) => self.take(packet),
                () = time::sleep(rest) => {}
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = SystemTime::now();
        match command {
            Command::Acquire { key, identity, remembered } => {
                if let Err(change) = self.fleet.acquire(&key, identity, remembered, now) {
                    self.way.notify(&key, change);
                }
            }
            Command::Decline(key) => self.fleet.step(&key, Event::Decline, now, &mut self.way),
            Command::Restart(key) => self.fleet.step(&key, Event::Restart, now, &mut self.way),
            Command::Forget(key) => self.fleet.forget(&key),
        }
    }

    fn take(&mut self, packet: io::Result<Result<Reply, WireError>>) {
        match packet {
            Ok(Ok(reply)) => {
                let ours = self.fleet.reply(&reply, SystemTime::now(), &mut self.way);
                self.way.count(|counters| match reply.answer {
                    _ if !ours => &mut counters.foreign,
                    Answer::Offer { .. } => &mut counters.offer,
                    Answer::Ack(_) => &mut counters.ack,
                    Answer::Nak { .. } => &mut counters.nak,
                });
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no DHCP reply");
                self.way.count(|counters| &mut counters.malformed);
            }
            // ENETDOWN when the interface goes down: the socket receives again when it is up. Sending says so aloud.
            Err(error) => tracing::debug!(%error, "the DHCP socket"),
        }
    }
}

/// As [`Transport::receive`], and a while later after an error.
async fn receive(transport: &Transport) -> io::Result<Result<Reply, WireError>> {
    let packet = transport.receive().await;
    if packet.is_err() {
        time::sleep(AFTER_ERROR).await;
    }
    packet
}

/// The way out of the task: to the servers and to the owner.
struct Way {
    transport: Transport,
    notices: mpsc::UnboundedSender<Notice>,
    counters: watch::Sender<Counters>,
    /// The last message couldn't be sent.
    outage: bool,
}

impl Way {
    fn count(&self, which: impl FnOnce(&mut Counters) -> &mut u64) {
        self.counters.send_modify(|counters| *which(counters) += 1);
    }
}

impl Outlet for Way {
    fn send(&mut self, message: &Message, identity: &Identity) {
        match self.transport.send(message, identity) {
            Ok(()) => {
                if self.outage {
                    tracing::info!("DHCP messages leave again");
                }
                self.outage = false;
                self.count(|counters| match message.kind {
                    Kind::Discover => &mut counters.discover,
                    Kind::Select { .. } => &mut counters.request,
                    Kind::Reboot { .. } => &mut counters.reboot,
                    Kind::Decline { .. } => &mut counters.decline,
                });
            }
            Err(error) => {
                // Once per outage: every identity goes on trying.
                if !self.outage {
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::warn!(%error, cause, "DHCP messages don't leave");
                }
                self.outage = true;
                self.count(|counters| &mut counters.unsent);
            }
        }
    }

    fn notify(&mut self, key: &str, change: Change) {
        // An owner that no longer listens has dropped its handles too, or is about to.
        let _ = self.notices.send(Notice { key: key.to_owned(), change });
    }
}

/// Tells a running [`Engine`] what to do. Commands are carried out in order; none of them waits.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    counters: watch::Receiver<Counters>,
}

impl Handle {
    /// Obtains an address for `identity` and keeps it, under the name `key`. With a `remembered` lease that address
    /// is asked for first, even when it has expired; an unexpired one may be used meanwhile, `Renewed` confirms it,
    /// and a silent server leaves it in use until it expires. Does nothing when `key` is running already.
    pub fn acquire(&self, key: String, identity: Identity, remembered: Option<Lease>) {
        self.tell(Command::Acquire { key, identity, remembered });
    }

    /// Tells the server that the address held is somebody else's (DECLINE), and asks for another at once. Does
    /// nothing while none is held. The owner limits how often. No `Lost` follows.
    pub fn decline(&self, key: &str) {
        self.tell(Command::Decline(key.to_owned()));
    }

    /// Gives the address held up without a word to the server, and asks again by DISCOVER at once. No `Lost` follows.
    pub fn restart(&self, key: &str) {
        self.tell(Command::Restart(key.to_owned()));
    }

    /// Stops. Nothing is sent: no RELEASE, since others may use the address in this identity's name.
    pub fn forget(&self, key: &str) {
        self.tell(Command::Forget(key.to_owned()));
    }

    /// Messages sent and received so far.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the DHCP engine has ended");
        }
    }
}
