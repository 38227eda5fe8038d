//! STATUS: could the ADD of a pod with a new VIP work now?

use std::time::Duration;

use crate::allocator::client;
use crate::bpf;
use crate::cni::Config;
use crate::net::{NodeNet, sysctl};
use crate::registry::{Registry, State};
use crate::vip::settings::SETTINGS;
use crate::with_causes;

use super::error::Error;
use super::node::{self, Node};
use super::report::Report;

/// viprouted answers this from memory.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Fails with code 50 and the reason where it could not.
pub fn run(config: &Config, report: &mut Report) -> Result<(), Error> {
    report.is_ours(config, []);
    let unavailable = |e: Error| Error::NotAvailable(with_causes(&e));
    node::check_kernel().map_err(unavailable)?;
    check_settings()?;
    if config.flow_owner {
        bpf::check_available(&config.bpf_dir).map_err(|e| unavailable(e.into()))?;
    }
    let net = NodeNet::open().map_err(|e| unavailable(e.into()))?;
    Node::find(&net, config).map_err(unavailable)?;
    client::status(&config.allocator, TIMEOUT).map(drop).map_err(|e| Error::NotAvailable(without_agent(config, &e)))
}

/// viprouted makes the checks too: who waits for one waits for it.
fn without_agent(config: &Config, error: &client::Error) -> String {
    let reason = with_causes(error);
    match waiting(&Registry::new(&config.data_dir)) {
        0 => reason,
        1 => format!("{reason}; 1 replica waits for its health check"),
        count => format!("{reason}; {count} replicas wait for their health checks"),
    }
}

/// How many replicas' checks haven't said yet that they are ready. What can't be read isn't counted.
fn waiting(registry: &Registry) -> usize {
    let vips = registry.vips().unwrap_or_default();
    let endpoints = vips.iter().flat_map(|vip| registry.endpoints(vip).unwrap_or_default());
    let endpoints = endpoints.filter_map(|(_, endpoint)| endpoint.ok());
    endpoints.filter(|endpoint| endpoint.health.is_some() && endpoint.state == State::Pending).count()
}

/// A setting that isn't right yet is no obstacle as long as an ADD can write it.
fn check_settings() -> Result<(), Error> {
    for (name, value) in SETTINGS {
        let have = sysctl::get(name).map_err(|e| Error::NotAvailable(with_causes(&e)))?;
        if have != value && !sysctl::is_writable(name) {
            return Err(Error::NotAvailable(format!("sysctl {name} is {have}, must be {value}, and can't be written")));
        }
    }
    Ok(())
}
