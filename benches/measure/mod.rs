//! The measurements, one file each.

#![allow(clippy::unnecessary_wraps)] // one form for all, though some can't fail

mod agent;
mod bystander;
mod calls;
mod changes;
mod counters;
mod cpu_time;
mod data_path;
mod dhcp;
mod families;
mod flood;
mod nodes;
mod rebuild;
mod replicas;
mod scale;
mod services;
mod setup;
mod survival;

use anyhow::Result;

use crate::results::Chapter;
pub use scale::Scale;

/// A measurement.
type Measurement = fn(&Scale) -> Result<Chapter>;

/// Every measurement by name, in the order of the report.
pub const ALL: [(&str, Measurement); 13] = [
    ("cpu-time", cpu_time::run),
    ("families", families::run),
    ("changes", changes::run),
    ("data-path", data_path::run),
    ("services", services::run),
    ("replicas", replicas::run),
    ("flood", flood::run),
    ("nodes", nodes::run),
    ("survival", survival::run),
    ("calls", calls::run),
    ("rebuild", rebuild::run),
    ("agent", agent::run),
    ("dhcp", dhcp::run),
];
