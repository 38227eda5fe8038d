//! What clients of the socket ask for, and what the agent does.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crate::api::protocol::{
    Departed, Directory, EventEntry, Events, EventsRequest, Identity, LeaseEntry, Leases, Refusal, Released, Request,
    Status, code,
};
use crate::api::server::{self, Call};
use crate::dataplane::node::uplink;
use crate::dhcp;
use crate::lease::clock;
use crate::lease::state::{Caller, Input};
use crate::model::{BadKey, Family, VipKey};
use crate::net::link::Link;
use crate::node::leases::usage;
use crate::node::problems::{PROXIES, PROXIES6, UPLINK6};
use crate::node::{self, AllocatorStatus, journal};
use crate::with_causes;

use super::Daemon;
use super::delegation::Delegation;

impl Daemon {
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        let line = match request {
            Request::Acquire(request) => match parse(&request.vip) {
                Ok(vip) => {
                    tracing::info!(%vip, pod = %request.pod, node = %request.node, gateway = ?request.gateway, "acquire");
                    self.last_caller += 1;
                    let caller = Caller(self.last_caller);
                    // IPv6 first: what it has is known then when the other is.
                    self.callers.add(caller, reply, self.v6.is_none());
                    self.step_of(Family::V6, &vip, Input::Acquire(caller));
                    return self.step(&vip, Input::Acquire(caller));
                }
                Err(refusal) => server::line::<()>(&Err(refusal)),
            },
            Request::Release(request) => server::line(&parse(&request.vip).map(|vip| {
                self.released(&vip);
                Released { released: request.vip }
            })),
            Request::Leases {} => server::line(&Ok(Leases { leases: self.leases() })),
            Request::Status {} => server::line(&Ok(self.status())),
            Request::Identity(request) => server::line(&parse(&request.vip).and_then(|vip| self.identity(&vip))),
            Request::Events(EventsRequest { after }) => server::line(&Ok(self.events(after))),
            Request::Nodes {} => server::line(&Ok(self.agent.peers.status().unwrap_or_default())),
            Request::Kubernetes(asked) => {
                let nodes = self.agent.peers.status();
                return self.agent.services.answer(asked, nodes.as_ref(), reply);
            }
            Request::Depart {} => server::line(&Ok(Departed { departed: self.agent.peers.leave() })),
            Request::Called(called) => return node::calls::record(&self.agent, &called),
        };
        // The caller may have closed its connection.
        let _ = reply.send(line);
    }

    /// The registry decides whether the VIP is still in use: the call only has it read.
    fn released(&mut self, vip: &VipKey) {
        tracing::info!(%vip, "release");
        match usage::read_usage(&self.registry, vip) {
            Ok(usage) => {
                let beside = self.v6.is_some().then(|| usage::read_beside(&self.registry, vip, &usage));
                self.step(vip, Input::LocalUsage(usage));
                if let Some(beside) = beside {
                    self.step_of(Family::V6, vip, Input::LocalUsage(beside));
                }
            }
            Err(error) => tracing::warn!(%vip, error = &*error as &dyn std::error::Error, "registry not read"),
        }
    }

    fn status(&self) -> Status {
        let stranger = |path: &PathBuf| format!("{} belongs to no VIP", path.display());
        let strangers = self.strangers.iter().filter(|path| path.exists()).map(stranger);
        let problems = strangers.chain(self.foreign.problems()).chain(self.agent.problems.all());
        let problems = problems.chain(self.agent.watch.degraded()).collect();
        let mut vips = self.v4.state.status();
        for vip in &mut vips {
            vip.expires = vip.expires.map(clock::to_wall);
            vip.held_until = vip.held_until.map(clock::to_wall);
            let beside = || self.v6.as_ref()?.state.status_of(&vip.vip.parse().ok()?)?.error;
            vip.error = vip.error.take().or_else(|| beside().map(|error| format!("IPv6: {error}")));
        }
        self.show_claims(&mut vips);
        self.sharing.show_status(&mut vips);
        let registry = Some(Directory::at(self.registry.dir()));
        let (backend, express) = (self.settings.backend.name().into(), self.agent.express.status());
        let version = Some(crate::VERSION.to_owned());
        Status { backend, vips, registry, problems, readiness_errors: self.readiness_errors(), express, version }
    }

    /// Why a VIP that is new here would get no address now.
    fn readiness_errors(&self) -> Vec<String> {
        let nothing =
            self.v4.state.allow().is_nothing().then(|| format!("allow isn't set: it is {}", self.v4.state.allow()));
        // Sockets are bound to the link as it is: one that comes back is good again.
        let asks = if self.links.are_two() { self.v4.executor.dhcp_counters() } else { self.dhcp_counters() };
        let link = self.links.of(Family::V4).link.as_ref().filter(|_| asks.is_some());
        let want = |link: &Link| uplink::Want::Named { key: uplink::INTERFACE, name: link.name.clone() };
        let unusable = link.and_then(|link| match uplink::again(&self.node, link) {
            Ok(have) => uplink::difference(&want(link), &have).map(|why| format!("no address can be asked for: {why}")),
            Err(error) => Some(with_causes(&error)),
        });
        let general = unusable.into_iter().chain(nothing).chain(self.v4.state.is_full());
        general.chain(self.v4.state.readiness_errors(clock::now())).collect()
    }

    fn leases(&self) -> Vec<LeaseEntry> {
        let shown = |lease: LeaseEntry| LeaseEntry {
            granted: clock::to_wall(lease.granted),
            expires: lease.expires.map(clock::to_wall),
            left: lease.left.map(clock::to_wall),
            ..lease
        };
        let mut leases: Vec<_> = self.families().flat_map(|leasing| leasing.state.leases()).map(shown).collect();
        self.sharing.show(&mut leases);
        leases
    }

    fn identity(&self, vip: &VipKey) -> Result<Identity, Refusal> {
        let identity = self.families().find_map(|leasing| leasing.executor.identity(vip));
        let (Some(identity), Some(cluster)) = (identity, &self.cluster) else {
            let msg = format!("{vip} has no DHCP identity: its address comes from a pin or from a pool");
            return Err(Refusal { code: code::INVALID, msg });
        };
        Ok(Identity {
            vip: vip.to_string(),
            cluster: cluster.name.clone(),
            client_id: hexadecimal(&identity.client_id),
            mac: hexadecimal(&identity.chaddr),
            host_name: identity.hostname,
        })
    }

    fn events(&self, after: u64) -> Events {
        Events { events: self.agent.journal.events_after(after).into_iter().map(entry).collect() }
    }

    /// The messages of DHCP and of `DHCPv6` together; none: no server is asked.
    fn dhcp_counters(&self) -> Option<dhcp::Counters> {
        let of_prefix = self.delegation.iter().map(Delegation::counters);
        let of_vips = self.families().filter_map(|leasing| leasing.executor.dhcp_counters());
        of_vips.chain(of_prefix).reduce(dhcp::Counters::and)
    }

    /// For the agent's metrics and health pages.
    pub(super) fn allocator_status(&self) -> AllocatorStatus {
        let status = self.status();
        // The pods that join while IPv6 addresses can't be asked for have none.
        let problems = [PROXIES, UPLINK6, PROXIES6].into_iter().filter_map(|part| self.agent.problems.of(part));
        let readiness_errors = status.readiness_errors.iter().cloned().chain(problems).collect();
        AllocatorStatus { dhcp: self.dhcp_counters(), pools: self.pool_usage(), readiness_errors, status }
    }
}

/// Octets with colons, as servers' configurations have them.
fn hexadecimal(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
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
