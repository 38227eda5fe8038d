//! What the agent is told of a call once it is done: it counts calls, and shows them as events.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::allocator::client;
use crate::allocator::protocol::Called;
use crate::cni::{Call, Config};
use crate::registry::VipKey;
use crate::{vip, with_causes};

use super::error::Error;

/// So much of an error is told, in characters.
const MAX_ERROR: usize = 500;

/// How long each sync of this process took.
static SYNCS: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

/// Grows while the call is carried out.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    /// The allocator's socket; `None`: the call has found nothing of ours to do so far, and nobody is told.
    socket: Option<PathBuf>,
    vips: Vec<String>,
}

impl Report {
    /// The call begins.
    pub fn begin() -> Self {
        vip::observe_syncs(|taken| SYNCS.lock().unwrap_or_else(PoisonError::into_inner).push(taken));
        Self { begun: Instant::now(), socket: None, vips: Vec::new() }
    }

    /// It isn't a pod's that is passed through: it is about these VIPs.
    pub fn is_ours(&mut self, config: &Config, vips: impl IntoIterator<Item = VipKey>) {
        self.socket = Some(config.allocator.clone());
        self.vips = vips.into_iter().map(|vip| vip.to_string()).collect();
    }

    /// The call is done. Takes no time, whoever listens or doesn't.
    pub fn send(self, call: &Call, error: Option<&Error>) {
        let Some(socket) = self.socket else { return };
        let syncs = std::mem::take(&mut *SYNCS.lock().unwrap_or_else(PoisonError::into_inner));
        let error_text = error.map(|error| with_causes(error).chars().take(MAX_ERROR).collect());
        let called = Called {
            verb: call.command.name().to_owned(),
            code: error.map_or(0, |error| error.code() as u16),
            micros: micros(self.begun.elapsed()),
            pod: pod(call),
            vips: self.vips,
            error: error_text.unwrap_or_default(),
            syncs: syncs.into_iter().map(micros).collect(),
        };
        client::tell(&socket, called);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// As the runtime names it.
fn pod(call: &Call) -> String {
    match (&call.attachment, call.pod.name.as_str()) {
        (None, _) => String::new(),
        (Some(attachment), "") => attachment.container_id.clone(),
        (Some(_), name) => format!("{}/{name}", call.pod.namespace),
    }
}
