//! The documentation against the programs, and against itself. Each reference table is compared with the code in both
//! directions: what the code has must be documented, and what is documented must be in the code. Needs no root.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods)] // files that no program under test reads half

mod blocks;
mod code;
mod inputs;
mod links;
mod markdown;
mod reference;
