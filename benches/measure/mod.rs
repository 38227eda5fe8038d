//! The measurements, one file each.

mod agent;
mod calls;
mod data_path;
mod dhcp;
mod rebuild;
mod replicas;
mod scale;
mod services;
mod stand;
mod survival;

use anyhow::Result;

use crate::results::Chapter;
pub use scale::Scale;

/// Every measurement by name, in the order of the report.
pub const ALL: [(&str, fn(&Scale) -> Result<Chapter>); 8] = [
    ("data-path", data_path::run),
    ("services", services::run),
    ("replicas", replicas::run),
    ("survival", survival::run),
    ("calls", calls::run),
    ("rebuild", rebuild::run),
    ("agent", agent::run),
    ("dhcp", dhcp::run),
];
