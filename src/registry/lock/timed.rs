//! flock(2) with a limit. The system call has none: it is made on a thread of its own, so that waiters stay in the order in
//! which they came, and a signal ends it when the time is over.

use std::fs::File;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Between two signals: one that comes before the system call ends nothing.
const AGAIN: Duration = Duration::from_millis(10);
/// Nothing else uses it; by default it is ignored, and so would end no system call.
const SIGNAL: Signal = Signal::SIGURG;

/// Locks a file. `None`: its lock was not to be had within `limit`.
pub fn lock_within(file: File, limit: Duration) -> io::Result<Option<File>> {
    handle_signal()?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let (done, outcome) = mpsc::channel();
    let is_cancelled = Arc::clone(&cancelled);
    let wait = move || {
        let result = loop {
            match file.lock() {
                Ok(()) => break Ok(Some(file)),
                Err(e) if e.kind() != io::ErrorKind::Interrupted => break Err(e),
                Err(_) if is_cancelled.load(Ordering::Relaxed) => break Ok(None),
                Err(_) => {}
            }
        };
        // Where the limit was over a moment before, the file is closed here, and its lock let go of.
        let _ = done.send(result);
    };
    let thread = thread::Builder::new().name("lock".into()).spawn(wait)?;
    if let Ok(result) = outcome.recv_timeout(limit) {
        return result;
    }
    cancelled.store(true, Ordering::Relaxed);
    loop {
        // SAFETY: the thread was not joined, so its id is valid, whether it has ended or not.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL as libc::c_int) };
        match outcome.recv_timeout(AGAIN) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

extern "C" fn ignore(_: libc::c_int) {}

/// A handler that does nothing and lets system calls end (no `SA_RESTART`).
fn handle_signal() -> io::Result<()> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    let handle = || {
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(SIGNAL, &action) }.map(drop)
    };
    DONE.get_or_init(handle).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_held_lock_is_waited_for_so_long_and_a_free_one_is_taken() {
        let path = std::env::temp_dir().join(format!("viproute-timed-{}", std::process::id()));
        let open = || File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let held = open();
        held.lock().unwrap();
        let begun = Instant::now();
        assert!(lock_within(open(), Duration::from_millis(100)).unwrap().is_none());
        assert!(begun.elapsed() >= Duration::from_millis(100));
        let waiter = thread::spawn({
            let file = open();
            move || lock_within(file, Duration::from_secs(60)).unwrap().is_some()
        });
        drop(held);
        assert!(waiter.join().unwrap());
        assert!(lock_within(open(), Duration::ZERO).unwrap_or_default().is_some() || open().try_lock().is_ok());
        std::fs::remove_file(path).unwrap();
    }
}
