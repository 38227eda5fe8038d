//! A thread's sign of life.

use std::sync::mpsc::Receiver;

/// Held by a thread that works on a queue for as long as it works.
pub trait Heartbeat: Send + 'static {
    /// The queue's next item, giving a sign of life while there is none. `None`: all senders are dropped.
    fn receive<T>(&self, queue: &Receiver<T>) -> Option<T>;

    /// The thread ends in order.
    fn finish(self);
}

/// No sign of life.
#[cfg(test)]
impl Heartbeat for () {
    fn receive<T>(&self, queue: &Receiver<T>) -> Option<T> {
        queue.recv().ok()
    }

    fn finish(self) {}
}
