//! The CNI protocol, versions 0.3.0 to 1.1.0: the runtime's call (environment and stdin) and the answer to it.
//! Knows nothing of the kernel, of registries or of VIPs. Sections refer to the CNI specification's `SPEC.md`.

pub mod config;
pub mod env;
pub mod error;
pub mod result;
pub mod version;

pub use config::Config;
pub use env::{Call, Command};
pub use error::{Code, Error};
pub use result::PrevResult;
