//! Everything the loop waits for, in one place.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::hands::Found;
use super::keeper::Done;
use super::lease::Report;
use super::run::Error;
use super::server::Call;
use super::source::{self, Notices};
use super::state::Findings;
use super::watch::Batch;
use crate::agent::Standing;
use crate::registry::VipKey;
use crate::vip;

/// Everything that can happen, other than time passing.
pub struct Events {
    /// What clients of the socket want.
    pub calls: UnboundedReceiver<Call>,
    /// Who wants to know how the allocator stands.
    pub inquiries: UnboundedReceiver<oneshot::Sender<Standing>>,
    /// What pins and the pool say.
    pub reports: UnboundedReceiver<Report>,
    /// What the DHCP engine says.
    pub notices: Notices,
    /// Lease files read and written.
    pub done: UnboundedReceiver<Done>,
    /// What searches for conflicts found.
    pub found: UnboundedReceiver<Found>,
    /// What the registry says.
    pub registry: UnboundedReceiver<Batch>,
    /// What the dataplane could not do.
    pub failures: UnboundedReceiver<(VipKey, vip::Error)>,
    /// SIGTERM.
    pub terminate: Signal,
    /// SIGINT.
    pub interrupt: Signal,
}

/// One of them.
pub enum Event {
    /// A client of the socket wants something.
    Call(Call),
    /// Somebody wants to know how the allocator stands.
    Inquiry(oneshot::Sender<Standing>),
    /// A source of addresses has something to say.
    Report(Report),
    /// A lease file is read or written.
    Done(Done),
    /// A search for conflicts is done.
    Found(VipKey, Ipv4Addr, Result<Findings, String>),
    /// The registry was read.
    Registry(Batch),
    /// The dataplane could not do what it was told.
    Stuck(VipKey, vip::Error),
    /// Time has passed.
    Time,
    /// viprouted is to end.
    End,
}

impl Events {
    /// Waits for the next one, or until `due`.
    pub async fn next(&mut self, due: Duration) -> Result<Event, Error> {
        let ended = Error::Ended;
        let event = tokio::select! {
            _ = self.terminate.recv() => Some(Event::End),
            _ = self.interrupt.recv() => Some(Event::End),
            call = self.calls.recv() => Some(Event::Call(call.ok_or(ended("the server"))?)),
            Some(inquiry) = self.inquiries.recv() => Some(Event::Inquiry(inquiry)),
            report = self.reports.recv() => Some(Event::Report(report.ok_or(ended("the source of addresses"))?)),
            notice = next_notice(&mut self.notices) => {
                source::report(notice.ok_or(ended("the DHCP engine"))?).map(Event::Report)
            }
            done = self.done.recv() => Some(Event::Done(done.ok_or(ended("the thread that keeps leases"))?)),
            found = self.found.recv() => {
                let (vip, address, found) = found.ok_or(ended("the search"))?;
                Some(Event::Found(vip, address, found))
            }
            batch = self.registry.recv() => Some(Event::Registry(batch.ok_or(ended("the registry's watcher"))?)),
            failure = self.failures.recv() => {
                let (vip, error) = failure.ok_or(ended("the dataplane's thread"))?;
                Some(Event::Stuck(vip, error))
            }
            () = tokio::time::sleep(due) => None,
        };
        Ok(event.unwrap_or(Event::Time))
    }
}

async fn next_notice(notices: &mut Notices) -> Option<crate::dhcp::Notice> {
    match notices {
        Some(notices) => notices.recv().await,
        None => std::future::pending().await,
    }
}
