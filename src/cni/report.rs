//! The report of a finished call to the agent, which counts calls and shows them as events.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::client;
use crate::api::protocol::Called;
use crate::cni::protocol::{Call, Config};
use crate::model::VipKey;
use crate::{dataplane, with_causes};

use super::error::Error;

/// Longer errors are cut, in characters.
const MAX_ERROR: usize = 500;

/// How long each reconciliation by this process took.
static SYNCS: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

/// What is reported of the call, collected while it runs.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    /// The allocator's socket; `None`: the call has found nothing of ours to do so far, and is not
    /// reported.
    socket: Option<PathBuf>,
    vips: Vec<String>,
    /// What has gone wrong in a call that succeeds.
    trouble: String,
}

impl Report {
    /// The call begins.
    pub fn begin() -> Self {
        dataplane::observe_syncs(|taken| SYNCS.lock().unwrap_or_else(PoisonError::into_inner).push(taken));
        Self { begun: Instant::now(), socket: None, vips: Vec::new(), trouble: String::new() }
    }

    /// The call is about these VIPs, not about a pod that is passed through.
    pub fn is_ours(&mut self, config: &Config, vips: impl IntoIterator<Item = VipKey>) {
        self.socket = Some(config.allocator.clone());
        self.vips = vips.into_iter().map(|vip| vip.to_string()).collect();
    }

    /// A pod that is passed through could not be recorded, for which its ADD must not fail.
    pub fn not_registered(&mut self, config: &Config, error: &Error) {
        self.socket = Some(config.allocator.clone());
        self.trouble = format!("not registered: {}", with_causes(error));
    }

    /// Reports the finished call. Never waits, whether viprouted listens or not.
    pub fn send(self, call: &Call, error: Option<&Error>) {
        let Some(socket) = self.socket else { return };
        let syncs = std::mem::take(&mut *SYNCS.lock().unwrap_or_else(PoisonError::into_inner));
        let error_text = error.map_or(self.trouble, |error| with_causes(error)).chars().take(MAX_ERROR).collect();
        let called = Called {
            verb: call.command.name().to_owned(),
            code: error.map_or(0, |error| error.code() as u16),
            micros: micros(self.begun.elapsed()),
            pod: pod(call),
            vips: self.vips,
            error: error_text,
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
        (Some(_), name) => format!("{}/{name}", call.pod.namespace).escape_debug().to_string(),
    }
}
