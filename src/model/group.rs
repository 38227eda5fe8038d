//! How a VIP's flows are spread over its replicas.

use serde::{Deserialize, Serialize};

/// The `group` key; also how the registry keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupSpec {
    /// How many buckets flows are hashed to.
    pub buckets: u16,
    /// Seconds.
    pub idle_timer: u32,
    /// Seconds; 0: never.
    pub unbalanced_timer: u32,
}

impl Default for GroupSpec {
    fn default() -> Self {
        Self { buckets: 1024, idle_timer: 1, unbalanced_timer: 10 }
    }
}

impl GroupSpec {
    /// Without the flow owner a bucket that moves breaks its connections: only idle ones may.
    pub const PATIENT: Self = Self { buckets: 1024, idle_timer: 30, unbalanced_timer: 0 };
}
