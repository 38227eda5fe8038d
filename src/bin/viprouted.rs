//! The daemon: leases addresses for VIPs, reconciles the kernel's state, checks replicas.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use viproute::node::arguments::Arguments;
use viproute::node::config::Config;
use viproute::node::{log, run};
use viproute::with_causes;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config.of_node(arguments.node.as_deref()),
        Err(error) => {
            // The log's form is not known yet.
            let _ = writeln!(std::io::stderr(), "viprouted: {}", with_causes(&error));
            return ExitCode::FAILURE;
        }
    };
    log::init(config.log);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("viprouted: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// In the place of the C library's resolver, which a static program must not have in it: it loads libraries of the machine's, and
/// crashes with those of another version. viprouted resolves names by hickory; a crate that asks the C library (chitchat would for
/// a seed's name) hears that there is no such name.
mod resolver {
    use std::ffi::{c_char, c_int};

    use libc::{EAI_NONAME, addrinfo};

    #[unsafe(no_mangle)]
    extern "C" fn getaddrinfo(
        _node: *const c_char,
        _service: *const c_char,
        _hints: *const addrinfo,
        _found: *mut *mut addrinfo,
    ) -> c_int {
        EAI_NONAME
    }

    /// Nothing was ever found.
    #[unsafe(no_mangle)]
    extern "C" fn freeaddrinfo(_found: *mut addrinfo) {}
}
