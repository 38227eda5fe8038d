//! epoll, edge-triggered, and threads that share no descriptors with the rest of the program.

use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;

pub struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy)]
pub struct Ready {
    /// What it was added with.
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

impl Poll {
    pub fn new() -> Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, events: vec![EpollEvent::empty(); 256] })
    }

    pub fn add(&self, what: impl AsFd, token: usize) -> Result<()> {
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        Ok(self.epoll.add(what, EpollEvent::new(both, token as u64))?)
    }

    /// What has become ready; waits `timeout` at most.
    pub fn wait(&mut self, timeout: Duration) -> Result<Vec<Ready>> {
        let timeout = TimeSpec::from_duration(timeout);
        let room = self.events.len().try_into()?;
        // Not epoll_wait, which knows milliseconds only: a client at a fixed rate would always be late.
        // SAFETY: the buffer is as long as is said, EpollEvent is a transparent epoll_event, the timeout outlives the call.
        let count = unsafe {
            libc::epoll_pwait2(
                std::os::fd::AsRawFd::as_raw_fd(&self.epoll.0),
                self.events.as_mut_ptr().cast(),
                room,
                timeout.as_ref(),
                std::ptr::null(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                return Ok(Vec::new());
            }
            bail!("epoll_pwait2: {error}");
        };
        let end = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLRDHUP;
        let ready = |event: &EpollEvent| Ready {
            token: usize::try_from(event.data()).unwrap_or_default(),
            readable: event.events().intersects(EpollFlags::EPOLLIN | end),
            writable: event.events().intersects(EpollFlags::EPOLLOUT | end),
        };
        Ok(self.events[..count].iter().map(ready).collect())
    }
}

/// Gives the calling thread a table of descriptors of its own, empty but for the standard ones: opening and closing sockets
/// then waits for no other thread. What the caller has open is closed *here*, and open elsewhere as before.
pub fn unshare_descriptors() -> Result<()> {
    const FIRST: RawFd = 3;
    // SAFETY: descriptors that this thread goes on to use are opened after this; the other threads keep their table.
    let done = unsafe { libc::close_range(FIRST.cast_unsigned(), u32::MAX, libc::CLOSE_RANGE_UNSHARE.cast_signed()) };
    if done != 0 {
        bail!("close_range: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
