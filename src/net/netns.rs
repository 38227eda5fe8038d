//! Network namespaces: opened by path, checked to be one, entered only by a closure on a thread of its own.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
#[cfg(feature = "node")]
use std::sync::mpsc;

use netlink_packet_core::Parseable;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::{Error, Result, Socket};

/// The node's network namespace: the one the runtime calls the plugin in.
#[derive(Debug)]
pub struct NodeNet(Socket);

impl NodeNet {
    /// Opens the socket in the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Socket::open().map(Self)
    }
}

impl Deref for NodeNet {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.0
    }
}

/// A pod's network namespace.
#[derive(Debug)]
pub struct PodNet {
    socket: Socket,
    netns: Netns,
}

impl PodNet {
    /// Opens a socket that lives in `netns`.
    pub fn open(netns: Netns) -> Result<Self> {
        let socket = netns.run(Socket::open)??;
        Ok(Self { socket, netns })
    }

    /// The namespace itself.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Deref for PodNet {
    type Target = Socket;
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// `NS_GET_NSTYPE` of linux/nsfs.h: which kind of namespace a descriptor refers to.
mod ioctl {
    #![allow(missing_docs)]
    nix::ioctl_none_bad!(ns_get_nstype, 0xb703);
}

impl Netns {
    /// Opens a namespace file. `EINVAL`: it exists and is something else.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = || path.display().to_string();
        // Symbolic links lead to namespaces everywhere (`/proc/PID/ns/net`, `/var/run`): what counts is what is there. A
        // FIFO isn't waited for.
        let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|e| Error::io("open network namespace", shown(), &e))?;
        // SAFETY: the ioctl takes no argument and the descriptor is open.
        let kind = unsafe { ioctl::ns_get_nstype(file.as_raw_fd()) };
        if kind == Ok(CloneFlags::CLONE_NEWNET.bits()) {
            return Ok(Self { file, path: path.to_owned() });
        }
        Err(Error::new("open network namespace", shown(), Errno::EINVAL))
    }

    /// As [`Netns::open`]; `None` where the namespace is gone: no file, the empty file that an unmount leaves, or something
    /// else by now (`ENXIO`: a socket, which can't be opened).
    pub fn open_if_alive(path: &Path) -> Result<Option<Self>> {
        match Self::open(path) {
            Ok(netns) => Ok(Some(netns)),
            Err(e) if matches!(e.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL | Errno::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Device and inode: which namespace it is, whatever the path leads to by now.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let failed = |e: std::io::Error| Error::io("look at network namespace", self.path.display().to_string(), &e);
        self.file.metadata().map(|m| (m.dev(), m.ino())).map_err(failed)
    }

    /// Its id in the node's namespace (`ip netns list-id`), where it has one: a pair between the two gives it one, and it
    /// keeps that to its end.
    pub fn id(&self, node: &NodeNet) -> Result<Option<u32>> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(self.fd().cast_unsigned()));
        let found = node.get(("get id", self.path.display()), &Message::GetNsId(message), |_, payload| {
            let message = NsidMessage::parse(payload).ok()?;
            message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) => Some(*id),
                _ => None,
            })
        })?;
        Ok(found.and_then(|id| u32::try_from(id).ok()))
    }

    /// Whether it is the calling thread's own.
    pub fn is_own(&self) -> Result<bool> {
        let path = Path::new("/proc/thread-self/ns/net");
        let own = std::fs::metadata(path).map_err(|e| Error::io("look at", path.display().to_string(), &e))?;
        Ok(self.identity()? == (own.dev(), own.ino()))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For `IFLA_NET_NS_FD`.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` inside. On a thread that ends afterwards: a failed way back can't leave the caller in the
    /// wrong namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let failed = |errno| Error::new("enter network namespace", self.path.display().to_string(), errno);
        #[allow(clippy::disallowed_methods)] // the one place
        let inside = || nix::sched::setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| work());
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, inside);
            let thread =
                thread.map_err(|e| Error::io("enter network namespace", self.path.display().to_string(), &e))?;
            thread.join().map_err(|_| failed(Errno::ECANCELED))?.map_err(failed)
        })
    }
}

/// A job that a [`Visitor`] runs inside; it sends its own result.
#[cfg(feature = "node")]
type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs jobs in other network namespaces, one after the other, for callers that would otherwise start a
/// thread for each ([`Netns::run`]). Between two jobs it is back in its own namespace, so that it keeps no other alive.
#[cfg(feature = "node")]
#[derive(Debug)]
pub struct Visitor(mpsc::Sender<(Netns, Job)>);

#[cfg(feature = "node")]
impl Visitor {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let (sender, jobs) = mpsc::channel::<(Netns, Job)>();
        let work = move || {
            #[allow(clippy::disallowed_methods)] // this thread does nothing else
            let enter = |file: &File| nix::sched::setns(file.as_fd(), CloneFlags::CLONE_NEWNET).is_ok();
            for (netns, job) in jobs {
                if enter(&netns.file) {
                    job();
                }
                // In a wrong namespace nothing more may be done: the next caller gets the error that the thread has ended.
                if !enter(&home) {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("visitor".into()).spawn(work)?;
        Ok(Self(sender))
    }

    /// Runs `work` inside `netns` and waits for it. `ECANCELED`: the namespace can't be entered, or the thread has ended.
    pub fn run<T: Send + 'static>(&self, netns: Netns, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let path = netns.path.display().to_string();
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move || drop(reply.send(work())));
        let failed = || Error::new("enter network namespace", &path, Errno::ECANCELED);
        self.0.send((netns, job)).map_err(|_| failed())?;
        answer.recv().map_err(|_| failed())
    }
}
