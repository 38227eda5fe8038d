//! What is counted as it happens. All other metrics are read at the scrape.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, Result, exponential_buckets,
    proto,
};

use crate::model::VipKey;
use crate::registry::State;

/// The verbs of the plugin that do anything.
const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/// The agent's counters. Clones are the same; every part may count.
#[derive(Clone, Debug)]
pub struct Counters {
    registry: Registry,
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    sync_seconds: HistogramVec,
    health: IntCounterVec,
    repairs: IntCounter,
    address_claims: IntCounterVec,
    reconcile_seconds: Histogram,
}

impl Counters {
    /// All zero.
    pub fn new() -> Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let counters = Self {
            registry: Registry::new(),
            calls: counter(
                "viproute_plugin_calls_total",
                "Calls of the CNI plugin that were about VIPs, by verb and CNI error code (0: success), since viprouted \
                 started. Calls while it didn't run are missing.",
                &["verb", "code"],
            )?,
            call_seconds: HistogramVec::new(
                HistogramOpts::new("viproute_plugin_call_duration_seconds", "How long those calls took.")
                    .buckets(exponential_buckets(0.001, 2.0, 15)?),
                &["verb"],
            )?,
            sync_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "viproute_sync_duration_seconds",
                    "How long it took to compare a VIP with the kernel and to repaired what differed, by who did it.",
                )
                .buckets(exponential_buckets(0.000_125, 2.0, 15)?),
                &["by"],
            )?,
            health: counter(
                "viproute_health_transitions_total",
                "Changes of a replica's state that its health check decided, by the state it came to.",
                &["namespace", "vip", "to"],
            )?,
            repairs: IntCounter::new(
                "viproute_repairs_total",
                "Times that something of the kernel's was missing or wrong and was repaired.",
            )?,
            address_claims: counter(
                "viproute_address_claims_total",
                "ARP packets in which another host of the link said that a VIP's address is its own.",
                &["namespace", "vip"],
            )?,
            reconcile_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "viproute_reconcile_duration_seconds",
                    "How long it took to compare the whole node with the registry.",
                )
                .buckets(exponential_buckets(0.001, 2.0, 14)?),
            )?,
        };
        counters.register()?;
        Ok(counters)
    }

    /// Series that may come later are there from the start, as zero: a rate over them sees the first one.
    fn register(&self) -> Result<()> {
        for verb in VERBS {
            self.calls.with_label_values(&[verb, "0"]);
            self.call_seconds.with_label_values(&[verb]);
        }
        for by in [Syncer::Agent, Syncer::Plugin] {
            self.sync_seconds.with_label_values(&[by.name()]);
        }
        self.registry.register(Box::new(self.calls.clone()))?;
        self.registry.register(Box::new(self.call_seconds.clone()))?;
        self.registry.register(Box::new(self.sync_seconds.clone()))?;
        self.registry.register(Box::new(self.health.clone()))?;
        self.registry.register(Box::new(self.repairs.clone()))?;
        self.registry.register(Box::new(self.address_claims.clone()))?;
        self.registry.register(Box::new(self.reconcile_seconds.clone()))
    }

    /// The plugin was called. A `verb` that the plugin doesn't have is not counted: another program sent it.
    pub fn called(&self, verb: &str, code: u16, taken: Duration) {
        let Some(verb) = VERBS.into_iter().find(|known| *known == verb) else { return };
        self.calls.with_label_values(&[verb, &code.to_string()]).inc();
        self.call_seconds.with_label_values(&[verb]).observe(taken.as_secs_f64());
    }

    /// A VIP was synced.
    pub fn synced(&self, by: Syncer, taken: Duration) {
        self.sync_seconds.with_label_values(&[by.name()]).observe(taken.as_secs_f64());
    }

    /// A health check decided that a replica of the VIP is in this state from now on.
    pub fn health_changed(&self, vip: &VipKey, to: State) {
        self.health.with_label_values(&[vip.namespace(), vip.name(), to.name()]).inc();
    }

    /// Another host said that the VIP's address is its own.
    pub fn address_claimed(&self, vip: &VipKey) {
        self.address_claims.with_label_values(&[vip.namespace(), vip.name()]).inc();
    }

    /// Something was repaired.
    pub fn repaired(&self) {
        self.repairs.inc();
    }

    /// The whole node was compared with the registry.
    pub fn reconciled(&self, taken: Duration) {
        self.reconcile_seconds.observe(taken.as_secs_f64());
    }

    /// The VIP is on this node: its series are there from now on.
    pub fn know(&self, vip: &VipKey) {
        for state in State::ALL {
            self.health.with_label_values(&[vip.namespace(), vip.name(), state.name()]);
        }
        self.address_claims.with_label_values(&[vip.namespace(), vip.name()]);
    }

    /// Nothing of the VIP is on this node any more.
    pub fn forget(&self, vip: &VipKey) {
        for state in State::ALL {
            // One that isn't known is forgotten.
            let _ = self.health.remove_label_values(&[vip.namespace(), vip.name(), state.name()]);
        }
        let _ = self.address_claims.remove_label_values(&[vip.namespace(), vip.name()]);
    }

    pub(super) fn families(&self) -> Vec<proto::MetricFamily> {
        self.registry.gather()
    }
}

/// Who synced a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncer {
    /// This process.
    Agent,
    /// A call of the plugin.
    Plugin,
}

impl Syncer {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Plugin => "plugin",
        }
    }
}
