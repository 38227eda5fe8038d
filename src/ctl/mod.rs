//! `viproutectl`'s work: what a person asks, answered from the registry, the kernel and the allocator.

pub mod arguments;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod locate;
pub mod manual;
pub mod status;
pub mod watch;
