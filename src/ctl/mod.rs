//! `viproutectl`'s work: what a person asks, answered from the registry, the kernel and the allocator.

pub mod status;
