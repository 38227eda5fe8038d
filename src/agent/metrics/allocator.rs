//! What the allocator says of itself: leases, DHCP.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::page::Page;
use crate::allocator::protocol::{LeaseState, Status};
use crate::dhcp;
use crate::registry::VipKey;

/// The allocator's loop answers from memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the allocator stands.
#[derive(Debug)]
pub struct Standing {
    /// VIPs and their leases.
    pub status: Status,
    /// Messages; none from another source than DHCP.
    pub dhcp: Option<dhcp::Counters>,
    /// Why a VIP that is new here would not get an address now, one sentence each.
    pub obstacles: Vec<String>,
}

/// Questions to the allocator's loop.
pub type Inquiries = mpsc::UnboundedSender<oneshot::Sender<Standing>>;

/// Asks; none where no answer comes.
pub async fn ask(inquiries: &Inquiries) -> Option<Standing> {
    let (reply, answer) = oneshot::channel();
    inquiries.send(reply).ok()?;
    tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
}

/// Writes it on the page.
pub fn write(page: &Page, standing: &Standing) -> prometheus::Result<()> {
    write_leases(page, &standing.status)?;
    standing.dhcp.as_ref().map_or(Ok(()), |counters| write_dhcp(page, counters))
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

/// Exact for the next 285 million years.
#[allow(clippy::cast_precision_loss)]
fn timestamp(seconds: u64) -> f64 {
    seconds as f64
}

fn write_dhcp(page: &Page, counters: &dhcp::Counters) -> prometheus::Result<()> {
    let dhcp::Counters { discover, request, reboot, decline, unsent, offer, ack, nak, foreign, malformed } = *counters;
    let messages = page.counter(
        "viproute_dhcp_messages_total",
        "DHCP messages since viprouted started (reboot: the REQUEST that renews a lease or takes one up again; foreign: a \
         reply to another client).",
        &["direction", "type"],
    )?;
    for (way, kind, count) in [
        ("sent", "discover", discover),
        ("sent", "request", request),
        ("sent", "reboot", reboot),
        ("sent", "decline", decline),
        ("received", "offer", offer),
        ("received", "ack", ack),
        ("received", "nak", nak),
        ("received", "foreign", foreign),
    ] {
        messages.with_label_values(&[way, kind]).inc_by(count);
    }
    let help = "DHCP messages that the kernel would not send (unsent), and packets that are no DHCP reply (malformed).";
    let errors = page.counter("viproute_dhcp_errors_total", help, &["kind"])?;
    errors.with_label_values(&["unsent"]).inc_by(unsent);
    errors.with_label_values(&["malformed"]).inc_by(malformed);
    Ok(())
}
