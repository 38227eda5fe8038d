//! Everything that is asked of the agent over HTTP, put together.

use super::allocator::{self, Standing};
use super::page::Page;
use super::vips::Reader;
use crate::agent::Context;
use crate::{net, with_causes};

/// Puts it together.
#[derive(Debug)]
pub struct Collector {
    context: Context,
    reader: Reader,
    /// What could not be read last time: it is logged once, not with every scrape.
    problems: Vec<String>,
}

impl Collector {
    /// Opens what it reads from.
    pub fn open(context: &Context) -> net::Result<Self> {
        Ok(Self { context: context.clone(), reader: Reader::open(context)?, problems: Vec::new() })
    }

    /// Looks at what can't be looked at later.
    pub fn sample(&mut self) {
        self.reader.sample();
    }

    /// `/metrics`; `standing` is none where the allocator doesn't answer.
    pub fn metrics(&mut self, standing: Option<&Standing>) -> prometheus::Result<String> {
        let page = Page::new();
        let mut problems = self.reader.write(&page)?;
        match standing {
            Some(standing) => allocator::write(&page, standing)?,
            None => problems.push("the allocator doesn't answer".to_owned()),
        }
        let events = page.counter("viproute_events_total", "Events since viprouted started, by kind.", &["kind"])?;
        for (kind, count) in self.context.journal.counts() {
            events.with_label_values(&[kind.name()]).inc_by(count);
        }
        let help = "What viprouted is: always 1.";
        page.gauge("viproute_build_info", help, &["version"])?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
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

    /// `/healthz`: what of this process isn't at work, a sentence each.
    pub fn ailments(&self, standing: Option<&Standing>) -> Vec<String> {
        let ended = self.context.parts.ended().into_iter().map(|part| format!("{part} has ended"));
        let silent = standing.is_none().then(|| "the allocator doesn't answer".to_owned());
        ended.chain(silent).collect()
    }

    /// `/readyz`: why a new pod could not join a VIP now, a sentence each.
    pub fn obstacles(&self, standing: Option<&Standing>) -> Vec<String> {
        let mut obstacles = self.ailments(standing);
        obstacles.extend(standing.iter().flat_map(|standing| standing.obstacles.clone()));
        obstacles.extend(self.context.registry.vips().err().map(|e| with_causes(&e)));
        obstacles
    }
}
