//! Collects what the agent serves over HTTP.

use crate::dataplane::node::notrack;
use crate::model::Family;
use crate::net::nftables;
use crate::node::Context;
use crate::{net, with_causes};

use super::allocator::{self, AllocatorStatus};
use super::page::Page;
use super::peers;
use super::vips::Reader;

/// Puts it together.
#[derive(Debug)]
pub struct Collector {
    context: Context,
    reader: Reader,
    /// Of the node's nftables table; none where the kernel has no nftables.
    nftables: Option<nftables::Counters>,
    /// What could not be read last time: it is logged once, not with every scrape.
    problems: Vec<String>,
}

impl Collector {
    /// Opens what it reads from.
    pub fn open(context: &Context) -> net::Result<Self> {
        let nftables = nftables::Counters::open().ok();
        Ok(Self { context: context.clone(), reader: Reader::open(context)?, nftables, problems: Vec::new() })
    }

    /// Reads counters that the kernel drops with their device.
    pub fn sample(&mut self) {
        self.reader.sample();
    }

    /// `/metrics`; `status` is none where the allocator doesn't answer.
    pub fn metrics(&mut self, status: Option<&AllocatorStatus>) -> prometheus::Result<String> {
        let page = Page::new();
        let mut problems = self.reader.write(&page)?;
        match status {
            Some(status) => allocator::write(&page, status)?,
            None => problems.push("the allocator doesn't answer".to_owned()),
        }
        self.denied(&page, &mut problems)?;
        peers::write(&page, &self.context.peers)?;
        let events = page.counter("viproute_events_total", "Events since viprouted started, by kind.", &["kind"])?;
        for (kind, count) in self.context.journal.counts() {
            events.with_label_values(&[kind.name()]).inc_by(count);
        }
        let help = "What viprouted is: always 1.";
        page.gauge("viproute_build_info", help, &["version"])?.with_label_values(&[crate::RELEASE]).set(1.0);
        let help = "What could not be read for this page, which lacks it then.";
        page.gauge("viproute_scrape_problems", help, &[])?
            .with_label_values::<&str>(&[])
            .set(f64::from(u32::try_from(problems.len()).unwrap_or(u32::MAX)));
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(problem, "not all metrics can be read");
        }
        self.problems = problems;
        page.text(&self.context.counters)
    }

    /// The table counts from when it was made: as a process that starts again does.
    fn denied(&self, page: &Page, problems: &mut Vec<String>) -> prometheus::Result<()> {
        let Some(nftables) = &self.nftables else { return Ok(()) };
        let counters = [
            (
                notrack::DENIED,
                "viproute_source_denied_packets_total",
                "Packets with a VIP as their source that replicas sent by their own interface: dropped.",
            ),
            (
                notrack::STRANGERS,
                "viproute_tunnel_denied_packets_total",
                "Packets to the tunnel from no node that this one knows: dropped.",
            ),
        ];
        for (counter, name, help) in counters {
            let mut counted = None;
            for family in Family::ALL {
                match nftables.packets(family, notrack::TABLE, counter) {
                    Ok(count) => counted = counted.map_or(count, |sum: u64| Some(sum + count.unwrap_or_default())),
                    Err(error) => problems.push(with_causes(&error)),
                }
            }
            if let Some(count) = counted {
                page.counter(name, help, &[])?.with_label_values::<&str>(&[]).inc_by(count);
            }
        }
        Ok(())
    }

    /// `/healthz`: which of this process's loops has ended or no longer turns, a sentence each.
    pub fn liveness_errors(&self, status: Option<&AllocatorStatus>) -> Vec<String> {
        let silent = status.is_none().then(|| "the allocator doesn't answer".to_owned());
        self.context.subsystems.errors().into_iter().chain(silent).collect()
    }

    /// `/readyz`: why a new pod could not join a VIP now, a sentence each.
    pub fn readiness_errors(&self, status: Option<&AllocatorStatus>) -> Vec<String> {
        let mut readiness_errors = self.liveness_errors(status);
        readiness_errors.extend(status.iter().flat_map(|status| status.readiness_errors.clone()));
        readiness_errors.extend(self.context.registry.vips().err().map(|e| with_causes(&e)));
        readiness_errors
    }
}
