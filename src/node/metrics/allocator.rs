//! The allocator's metrics: leases, DHCP.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::api::protocol::{LeaseState, Status};
use crate::dhcp;
use crate::lease::pools::Usage;
use crate::model::VipKey;

use super::page::Page;

/// The allocator's loop answers from memory: one that takes longer counts as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The allocator's status.
#[derive(Debug)]
pub struct AllocatorStatus {
    /// VIPs and their leases.
    pub status: Status,
    /// How much of each pool is given out; none with DHCP.
    pub pools: Vec<Usage>,
    /// Messages; none from another source than DHCP.
    pub dhcp: Option<dhcp::Counters>,
    /// Why a VIP that is new here would not get an address now, one sentence each.
    pub readiness_errors: Vec<String>,
}

/// Questions to the allocator's loop.
pub type StatusRequests = mpsc::UnboundedSender<oneshot::Sender<AllocatorStatus>>;

/// Asks; none where no answer comes.
pub async fn ask(status_requests: &StatusRequests) -> Option<AllocatorStatus> {
    let (reply, answer) = oneshot::channel();
    status_requests.send(reply).ok()?;
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()
}

/// Writes it on the page.
pub fn write(page: &Page, status: &AllocatorStatus) -> prometheus::Result<()> {
    write_leases(page, &status.status)?;
    write_pools(page, &status.pools)?;
    status.dhcp.as_ref().map_or(Ok(()), |counters| write_dhcp(page, counters))
}

fn write_leases(page: &Page, status: &Status) -> prometheus::Result<()> {
    let help = "VIPs that this node has to do with, by the state of their lease.";
    let leases = page.gauge("viproute_leases", help, &["state"])?;
    for state in LeaseState::ALL {
        leases.with_label_values(&[state.name()]);
    }
    let expiry = page.gauge(
        "viproute_lease_expiry_timestamp_seconds",
        "When a VIP's lease runs out unless it is renewed, since 1970. One that never does isn't here.",
        &["namespace", "vip"],
    )?;
    for vip in &status.vips {
        leases.with_label_values(&[vip.state.name()]).inc();
        if let (Ok(key), Some(expires)) = (vip.vip.parse::<VipKey>(), vip.expires) {
            expiry.with_label_values(&[key.namespace(), key.name()]).set(timestamp(expires));
        }
    }
    Ok(())
}

fn write_pools(page: &Page, pools: &[Usage]) -> prometheus::Result<()> {
    if pools.is_empty() {
        return Ok(());
    }
    let help = "Addresses of a pool that VIPs can have: neither excluded nor pinned.";
    let size = page.gauge("viproute_pool_addresses", help, &["pool"])?;
    let help = "Addresses of a pool that are given out, as far as this node knows.";
    let used = page.gauge("viproute_pool_addresses_used", help, &["pool"])?;
    for usage in pools {
        size.with_label_values(&[&usage.pool]).set(number(usage.size));
        used.with_label_values(&[&usage.pool]).set(number(usage.used));
    }
    Ok(())
}

/// Exact for every IPv4 address there is.
#[allow(clippy::cast_precision_loss)]
fn number(addresses: usize) -> f64 {
    addresses as f64
}

/// Exact for the next 285 million years.
#[allow(clippy::cast_precision_loss)]
fn timestamp(seconds: u64) -> f64 {
    seconds as f64
}

fn write_dhcp(page: &Page, counters: &dhcp::Counters) -> prometheus::Result<()> {
    let dhcp::Counters {
        discover,
        request,
        reboot,
        rebind,
        decline,
        release,
        unsent,
        offer,
        ack,
        nak,
        foreign,
        unfit,
        malformed,
    } = *counters;
    let messages = page.counter(
        "viproute_dhcp_messages_total",
        "DHCP messages since viprouted started, those of DHCPv6 by the names of DHCP's (reboot: the REQUEST that renews a \
         lease or takes one up again; rebind: the one that follows a NAK; foreign: a reply to another client, or of a server that dhcp.servers leaves out).",
        &["direction", "type"],
    )?;
    for (way, kind, count) in [
        ("sent", "discover", discover),
        ("sent", "request", request),
        ("sent", "reboot", reboot),
        ("sent", "rebind", rebind),
        ("sent", "decline", decline),
        ("sent", "release", release),
        ("received", "offer", offer),
        ("received", "ack", ack),
        ("received", "nak", nak),
        ("received", "foreign", foreign),
    ] {
        messages.with_label_values(&[way, kind]).inc_by(count);
    }
    let help = "DHCP messages that the kernel would not send (unsent), replies that lack an option they must have (unfit), and \
                packets that are no DHCP reply (malformed).";
    let errors = page.counter("viproute_dhcp_errors_total", help, &["kind"])?;
    errors.with_label_values(&["unsent"]).inc_by(unsent);
    errors.with_label_values(&["unfit"]).inc_by(unfit);
    errors.with_label_values(&["malformed"]).inc_by(malformed);
    Ok(())
}
