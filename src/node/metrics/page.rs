//! The page: families of metrics with values that were just read.

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry, Result, TextEncoder};

use super::counters::Counters;

/// A page under way.
#[derive(Debug)]
pub struct Page(Registry);

impl Page {
    /// An empty one.
    pub fn new() -> Self {
        Self(Registry::new())
    }

    /// A family of values that go up and down. One without values isn't on the page.
    pub fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    /// A family of values that only go up.
    pub fn counter(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    /// The text, with what is counted as it happens.
    pub fn text(&self, counters: &Counters) -> Result<String> {
        let mut families = self.0.gather();
        families.extend(counters.families());
        TextEncoder::new().encode_to_string(&families)
    }
}
