//! End-to-end tests: the built programs, in throw-away network namespaces, against real servers and the real kernel.
//!
//! Run as root: `cargo test`. Nothing outside the namespaces a test makes for itself is touched, and they vanish with
//! the test process, however it ends. A tool that is missing fails the test that needs it and names its Debian package.

// A test stops at the first thing that is not as it should be: panicking is its way of saying so.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// Files here are for one reader, who waits until the writer is done.
#![allow(clippy::disallowed_methods)]

mod announce;
mod chains;
mod check;
mod claim3;
mod containerd;
mod corpus;
mod ctl;
mod damage;
mod dhcp;
mod disk;
mod doctor;
mod drain;
mod evenness;
mod events;
mod faults;
mod flood;
mod foreign;
mod guard;
mod halfopen;
mod harness;
mod heal;
mod health;
mod input;
mod install;
mod kills;
mod logs;
mod metrics;
mod notrack;
mod owner;
mod passthrough;
mod pmtu;
mod podman;
mod privileges;
mod program;
mod races;
mod renumber;
mod scale;
mod selftest;
mod servers;
mod sidecar;
mod survival;
mod traffic;
mod udp_reply;
mod udp_sticky;
mod verbs;
mod vips;
mod where_;
