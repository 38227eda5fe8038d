//! The task that runs every machine over one socket.

use tokio::sync::{mpsc, watch};

use super::{Counters, Error, Identity, Lease, Notice, TransportConfig};

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
    pub fn start(_config: TransportConfig) -> Result<(Handle, mpsc::UnboundedReceiver<Notice>), Error> {
        let (commands, _) = mpsc::unbounded_channel();
        let (_, notices) = mpsc::unbounded_channel();
        let (_, counters) = watch::channel(Counters::default());
        Ok((Handle { commands, counters }, notices))
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
