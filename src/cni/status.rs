//! STATUS: can the network serve pods?
//!
//! Pods that name no VIP are passed through whatever state viproute is in, and one plugin's failure is the whole node's: with
//! containerd 2 it is `NotReady` then, and Kubernetes evicts its pods. So STATUS fails only where pods can't start at all.
//! That departs from the specification's SHOULD (section 4, STATUS: "unable to service ADD requests") where only pods with a
//! VIP couldn't; `"strictStatus": true` follows it. Readiness, metrics and doctor report the rest.

use std::time::Duration;

use crate::api::client;
use crate::cni::protocol::Config;
use crate::dataplane::settings::SETTINGS;
use crate::membership::node::{self, Node};
use crate::net::{NodeNet, sysctl};
use crate::registry::{Registry, State};
use crate::{ebpf, with_causes};

use super::error::Error;
use super::report::Report;

/// viprouted answers this from memory.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Fails with code 50 and the reason where an ADD of a pod with a new VIP could not work, if every pod has one
/// (`"vips"`) or `"strictStatus"` is set. A configuration that each such ADD refuses has code 7 here too: unlike what 50 tells of,
/// no waiting cures it. (libcni's own plugins answer STATUS with 1 and 6 in such cases.)
pub fn run(config: &Config, report: &mut Report) -> Result<(), Error> {
    report.is_ours(config, []);
    if !config.strict_status && config.vips.is_empty() {
        return Ok(());
    }
    if let Some(flaw) = &config.flaw {
        return Err(flaw.clone().into());
    }
    let unavailable = |e: Error| Error::NotAvailable(with_causes(&e));
    node::check_kernel().map_err(|e| unavailable(e.into()))?;
    check_settings()?;
    if config.flow_owner {
        ebpf::check_available(&config.bpf_dir).map_err(|e| unavailable(e.into()))?;
    }
    let net = NodeNet::open().map_err(|e| unavailable(e.into()))?;
    Node::find(&net, &config.network()).map_err(|e| unavailable(e.into()))?;
    client::status(&config.allocator, TIMEOUT).map(drop).map_err(|e| Error::NotAvailable(without_agent(config, &e)))
}

/// The reason while viprouted can't be reached. viprouted makes the health checks, so replicas that wait for one are counted.
fn without_agent(config: &Config, error: &client::Error) -> String {
    let cure = match error {
        client::Error::Unreachable { .. } => "start viprouted (systemctl start viprouted, or its DaemonSet)",
        _ => "see what viproutectl doctor finds",
    };
    let reason = format!("{}; {cure}", with_causes(error));
    match waiting(&Registry::new(&config.data_dir)) {
        0 => reason,
        1 => format!("{reason}; 1 replica waits for its health check"),
        count => format!("{reason}; {count} replicas wait for their health checks"),
    }
}

/// The number of replicas whose check has not succeeded yet. Unreadable records aren't counted.
fn waiting(registry: &Registry) -> usize {
    let vips = registry.vips().unwrap_or_default();
    let endpoints = vips.iter().flat_map(|vip| registry.endpoints(vip).unwrap_or_default());
    let endpoints = endpoints.filter_map(|(_, endpoint)| endpoint.ok());
    endpoints.filter(|endpoint| endpoint.health.is_some() && endpoint.state == State::Pending).count()
}

/// A wrong setting is no obstacle as long as an ADD can write it.
fn check_settings() -> Result<(), Error> {
    for (name, value) in SETTINGS {
        let have = sysctl::get(name).map_err(|e| Error::NotAvailable(with_causes(&e)))?;
        if have != value && !sysctl::is_writable(name) {
            return Err(Error::NotAvailable(format!("sysctl {name} is {have}, must be {value}, and can't be written")));
        }
    }
    Ok(())
}
