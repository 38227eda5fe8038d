//! End-to-end tests: the built programs, in throw-away network namespaces, against real servers and the real kernel.
//!
//! Run as root: `cargo test`. Nothing outside the namespaces a test makes for itself is touched, and they vanish with
//! the test process, however it ends. A tool that is missing fails the test that needs it and names its Debian package.

// A test stops at the first difference from what it expects, by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Files here are for one reader, who waits until the writer is done.
#![allow(clippy::disallowed_methods)]

mod announce;
mod answers;
mod bgp;
mod bundle;
mod chains;
mod check;
mod claim3;
mod containerd;
mod containerd2;
mod corpus;
mod ctl;
mod damage;
mod debian;
mod dhcp;
mod disk;
mod doctor;
mod drain;
mod evenness;
mod events;
mod express;
mod far;
mod faults;
mod flood;
mod foreign;
mod gateways;
mod guard;
mod halfopen;
mod harness;
mod heal;
mod health;
mod import;
mod inotify;
mod input;
mod install;
mod ipv6;
mod kept;
mod kills;
mod kubernetes;
mod leases;
mod listener;
mod locks;
mod logs;
mod membership;
mod metrics;
mod node_changes;
mod node_install;
mod nodes;
mod notrack;
mod own_calls;
mod own_source;
mod owner;
mod packaging;
mod passthrough;
mod pmtu;
mod podman;
mod ports_served;
mod ports_translated;
mod privileges;
mod program;
mod quickstart;
mod races;
mod remote;
mod renumber;
mod runtimes;
mod scale;
mod selftest;
mod servers;
mod sidecar;
mod slots;
mod survival;
mod traffic;
mod udp_reply;
mod udp_sticky;
mod upgrade;
mod uplinks;
mod verbs;
mod vips;
mod where_;
