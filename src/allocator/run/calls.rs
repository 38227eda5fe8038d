//! What clients of the socket ask for, and what the agent does.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::Daemon;
use crate::agent::{self, Standing, journal};
use crate::allocator::protocol::{EventEntry, Events, EventsRequest, Leases, Refusal, Released, Request, Status, code};
use crate::allocator::server::{self, Call};
use crate::allocator::state::{Caller, Input};
use crate::allocator::watch;
use crate::net::link;
use crate::registry::{BadKey, VipKey};
use crate::with_causes;

impl Daemon {
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        let line = match request {
            Request::Acquire(request) => match parse(&request.vip) {
                Ok(vip) => {
                    tracing::info!(%vip, pod = %request.pod, node = %request.node, gateway = ?request.gateway, "acquire");
                    self.last_caller += 1;
                    let caller = Caller(self.last_caller);
                    self.hands.expect(caller, reply);
                    return self.step(&vip, Input::Acquire(caller));
                }
                Err(refusal) => server::line::<()>(&Err(refusal)),
            },
            Request::Release(request) => server::line(&parse(&request.vip).map(|vip| {
                self.released(&vip);
                Released { released: request.vip }
            })),
            Request::Leases {} => server::line(&Ok(Leases { leases: self.state.leases() })),
            Request::Status {} => server::line(&Ok(self.status())),
            Request::Events(EventsRequest { after }) => server::line(&Ok(self.events(after))),
            Request::Called(called) => return agent::calls::record(&self.agent, &called),
        };
        // Who asked may have gone.
        let _ = reply.send(line);
    }

    /// The registry decides; this only makes sure that it is looked at.
    fn released(&mut self, vip: &VipKey) {
        tracing::info!(%vip, "release");
        match watch::presence(&self.registry, vip) {
            Ok(presence) => self.step(vip, Input::Present(presence)),
            Err(error) => tracing::warn!(%vip, error = &error as &dyn std::error::Error, "registry not read"),
        }
    }

    fn status(&self) -> Status {
        let stranger = |path: &PathBuf| format!("{} belongs to no VIP", path.display());
        let strangers = self.strangers.iter().filter(|path| path.exists()).map(stranger);
        let problems = strangers.chain(self.trouble.clone()).collect();
        Status { backend: self.backend.into(), vips: self.state.status(), problems }
    }

    fn events(&self, after: u64) -> Events {
        Events { events: self.agent.journal.events_after(after).into_iter().map(entry).collect() }
    }

    /// For the agent's metrics and health pages.
    pub(super) fn standing(&self) -> Standing {
        let dhcp = self.hands.dhcp_counters();
        // Sockets are bound to the link as it is: one that comes back is good again.
        let link = self.link.as_ref().filter(|_| dhcp.is_some());
        let down = link.and_then(|link| match link::by_index(&self.node, link.index) {
            Ok(Some(now)) if now.up => None,
            Ok(_) => Some(format!("no address can be asked for: {} is down or gone", link.name)),
            Err(error) => Some(with_causes(&error)),
        });
        Standing { status: self.status(), dhcp, obstacles: down.into_iter().chain(self.trouble.clone()).collect() }
    }
}

fn entry(event: journal::Event) -> EventEntry {
    let at = event.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    EventEntry {
        number: event.number,
        at: u64::try_from(at).unwrap_or(u64::MAX),
        kind: event.kind.name().to_owned(),
        vip: event.vip.map(|vip| vip.to_string()),
        text: event.text,
    }
}

fn parse(vip: &str) -> Result<VipKey, Refusal> {
    vip.parse().map_err(|error: BadKey| Refusal { code: code::INVALID, msg: error.to_string() })
}
