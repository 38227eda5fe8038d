//! The task that runs every machine over one socket.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time;

use super::fleet::{Fleet, Outlet};
use super::machine::Event;
use super::message::{Answer, Kind, Message, Reply, WireError};
use super::transport::Transport;
use super::{Acquisition, Change, Clock, Counters, Error, Identity, Lease, Notice, Server, Settings, Trouble, Turn};

/// The longest sleep. Leases go by a clock that goes on while the machine is suspended, and the sleep by another.
const NAP: Duration = Duration::from_secs(5);
/// A server that has replied within this time is running.
const LATELY: Duration = Duration::from_secs(60);
/// How long a socket that reports an error is left alone, so that one that does so for ever doesn't take a CPU.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What a [`Handle`] asks of the task.
#[derive(Debug)]
enum Command {
    Acquire(String, Box<Acquisition>),
    Learn(String, Box<Lease>),
    Turn(String, Turn),
    Decline(String),
    Restart(String),
    Release(String),
    Forget(String),
    Rebind(String),
}

/// A DHCP client for many identities.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Opens the socket and starts the task in the current tokio runtime. It runs until the last handle is dropped.
    pub fn start(settings: Settings) -> Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let Settings { transport, servers, clock } = settings;
        let transport = Transport::open(transport)?;
        let (commands, asked) = mpsc::unbounded_channel();
        let (notices, told) = mpsc::unbounded_channel();
        let (counters, count) = watch::channel(Counters::default());
        let fleet = Fleet::new(rand::random(), clock());
        let way = Way { transport, notices, counters, outage: None, heard: None };
        runtime.spawn(Task { fleet, way, commands: asked, servers, clock }.run());
        Ok((Handle { commands, counters: count }, told))
    }
}

/// The task.
struct Task {
    fleet: Fleet,
    way: Way,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Those that count; empty: all.
    servers: Vec<IpAddr>,
    clock: Clock,
}

impl Task {
    fn counts(&self, server: Server) -> bool {
        self.servers.iter().any(|counted| server.address() == *counted)
    }

    async fn run(mut self) {
        loop {
            let is_ready = self.way.transport.is_ready();
            self.fleet.tick((self.clock)(), &mut self.way, is_ready);
            let rest = self.fleet.rest((self.clock)()).filter(|_| is_ready).map_or(NAP, |rest| rest.min(NAP));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                packet = receive(&self.way.transport) => self.take(packet),
                () = self.way.transport.changed() => self.way.transport.read_address(),
                () = time::sleep(rest) => {}
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = (self.clock)();
        match command {
            Command::Acquire(key, acquisition) => {
                if let Err(why) = self.fleet.acquire(&key, *acquisition, now) {
                    self.way.notify(&key, Change::Failed { tries: 0, why });
                }
            }
            Command::Learn(key, lease) => self.fleet.step(&key, Event::Learn(&lease), now, &mut self.way),
            Command::Turn(key, turn) => self.fleet.step(&key, Event::Turn(turn), now, &mut self.way),
            Command::Decline(key) => self.fleet.step(&key, Event::Decline, now, &mut self.way),
            Command::Restart(key) => self.fleet.step(&key, Event::Restart, now, &mut self.way),
            Command::Release(key) => self.fleet.release(&key, now, &mut self.way),
            Command::Forget(key) => self.fleet.forget(&key),
            Command::Rebind(interface) => self.way.transport.rebind(interface),
        }
    }

    fn take(&mut self, packet: io::Result<Result<Reply, WireError>>) {
        match packet {
            Ok(Ok(reply)) => {
                let counts = self.servers.is_empty() || reply.server().is_some_and(|at| self.counts(at));
                if let Some(server) = reply.server().filter(|_| counts) {
                    self.way.heard = Some((server, Instant::now()));
                }
                let ours = counts && self.fleet.reply(&reply, (self.clock)(), &mut self.way);
                self.way.count(|counters| match reply.answer {
                    _ if !ours => &mut counters.foreign,
                    Answer::Offer { .. } => &mut counters.offer,
                    Answer::Ack(_) | Answer::Noted { .. } => &mut counters.ack,
                    Answer::Nak { .. } => &mut counters.nak,
                    Answer::Unfit { .. } => &mut counters.unfit,
                });
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no DHCP reply");
                self.way.count(|counters| &mut counters.malformed);
            }
            // ENETDOWN when the interface goes down: the socket receives again when it is up. The next send reports the error.
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

/// The output of the task: to the servers and to the owner.
struct Way {
    transport: Transport,
    notices: mpsc::UnboundedSender<Notice>,
    counters: watch::Sender<Counters>,
    /// Why the last message couldn't be sent.
    outage: Option<String>,
    /// The last server that replied to any client, and when.
    heard: Option<(Server, Instant)>,
}

impl Way {
    fn count(&self, which: impl FnOnce(&mut Counters) -> &mut u64) {
        self.counters.send_modify(|counters| *which(counters) += 1);
    }

    /// What a single identity takes for silence, with what is known of the others.
    fn explain(&self, why: Trouble) -> Trouble {
        match (why, &self.outage, self.heard) {
            (Trouble::Silence, Some(why), _) => Trouble::Unsent { why: why.clone() },
            (Trouble::Silence, None, Some((server, at))) if at.elapsed() < LATELY => {
                Trouble::NothingOffered { server: server.address() }
            }
            (why, ..) => why,
        }
    }
}

impl Outlet for Way {
    fn send(&mut self, message: &Message, identity: &Identity) {
        match self.transport.send(message, identity) {
            Ok(()) => {
                if self.outage.take().is_some() {
                    tracing::info!("DHCP messages leave again");
                }
                self.count(|counters| match message.kind {
                    Kind::Discover { .. } => &mut counters.discover,
                    Kind::Select { .. } => &mut counters.request,
                    Kind::Reboot { .. } => &mut counters.reboot,
                    Kind::Rebind { .. } => &mut counters.rebind,
                    Kind::Release { .. } => &mut counters.release,
                    Kind::Decline { .. } => &mut counters.decline,
                });
            }
            Err(error) => {
                // Once per outage: every identity goes on trying.
                let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                if self.outage.is_none() {
                    tracing::warn!(error = why, "DHCP messages don't leave");
                }
                self.outage = Some(why);
                self.count(|counters| &mut counters.unsent);
            }
        }
    }

    fn notify(&mut self, key: &str, change: Change) {
        let change = match change {
            Change::Failed { tries, why } => Change::Failed { tries, why: self.explain(why) },
            other => other,
        };
        // An owner that no longer listens has dropped its handles too, or is about to.
        let _ = self.notices.send(Notice { key: key.to_owned(), change });
    }
}

/// Sends commands to a running [`Engine`], which executes them in order; none of them waits.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    counters: watch::Receiver<Counters>,
}

impl Handle {
    /// Obtains an address for an identity and keeps it, under the name `key`. With a remembered lease that address
    /// is asked for first, even when it has expired; an unexpired one may be used meanwhile, `Renewed` confirms it,
    /// and a silent server leaves it in use until it expires. Does nothing when `key` is running already.
    pub fn acquire(&self, key: String, acquisition: Acquisition) {
        self.tell(Command::Acquire(key, Box::new(acquisition)));
    }

    /// Another client of the identity was granted this lease. It is held as if it were granted here, where it is the first or
    /// lasts longer than the one held (`Bound`, `Renewed`); an address other than the one held only has that confirmed.
    pub fn learn(&self, key: &str, lease: Lease) {
        self.tell(Command::Learn(key.to_owned(), Box::new(lease)));
    }

    /// Says which of the clients that share the identity renews.
    pub fn take_turn(&self, key: &str, turn: Turn) {
        self.tell(Command::Turn(key.to_owned(), turn));
    }

    /// Declines the address held, which another host has (DECLINE), and asks for another at once. Does
    /// nothing while none is held. The owner limits how often. No `Lost` follows.
    pub fn decline(&self, key: &str) {
        self.tell(Command::Decline(key.to_owned()));
    }

    /// Drops the address held without a message to the server, and asks again by DISCOVER at once. No `Lost` follows.
    pub fn restart(&self, key: &str) {
        self.tell(Command::Restart(key.to_owned()));
    }

    /// Stops, and releases the address held (RELEASE). Only for an identity that no other node uses.
    pub fn release(&self, key: &str) {
        self.tell(Command::Release(key.to_owned()));
    }

    /// Stops. Nothing is sent: no RELEASE, since others may use the address in this identity's name.
    pub fn forget(&self, key: &str) {
        self.tell(Command::Forget(key.to_owned()));
    }

    /// Sends and receives on the link of that name from now on, as it is now; a relay's messages find their way by themselves.
    pub fn rebind(&self, interface: String) {
        self.tell(Command::Rebind(interface));
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
