//! The wall clock is set while leases run.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::{DhcpServer, Lan, Node, RANGE, Run, Sidecar, TempDir, tool, until};

use super::{SOON, web};

/// Adds so many seconds as a file says to what the wall clock shows, and leaves the other clocks alone.
const SETTABLE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (id == CLOCK_REALTIME) {
        long seconds = 0;
        FILE *file = fopen(getenv("CLOCK_STEP"), "re");
        if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
        time->tv_sec += seconds;
    }
    return result;
}
"#;

/// The wall clock of one process.
struct Clock {
    dir: TempDir,
}

impl Clock {
    fn new() -> Self {
        let clock = Self { dir: TempDir::new() };
        fs::write(clock.dir.file("clock.c"), SETTABLE).expect("write a library");
        let mut compiler = std::process::Command::new(tool("clang"));
        compiler.args(["-shared", "-fPIC", "-o", &clock.dir.file("clock.so"), &clock.dir.file("clock.c")]);
        compiler.finish("").ok();
        clock.set(0);
        clock
    }

    fn set(&self, seconds: i64) {
        let (path, new) = (self.dir.file("step"), self.dir.file("step.new"));
        fs::write(&new, seconds.to_string()).expect("write the step");
        fs::rename(new, path).expect("set the clock");
    }

    fn sidecar(&self, node: &Node) -> Sidecar {
        let (library, step) = (self.dir.file("clock.so"), self.dir.file("step"));
        let environment = [("LD_PRELOAD", library.as_str()), ("CLOCK_STEP", step.as_str())];
        Sidecar::start_with(node, "backend = \"dhcp\"\nallow = [\"192.0.2.0/24\"]", &environment)
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs().try_into().expect("seconds")
}

#[test]
fn a_step_ends_no_lease_and_makes_none_longer() {
    let lan = Lan::new();
    let server = DhcpServer::dnsmasq(&lan, RANGE, "10m", "");
    let node = Node::without_allocator(&lan, 1);
    let clock = Clock::new();
    let mut sidecar = clock.sidecar(&node);
    let pod = node.joined(&web());
    let vip = pod.vip();
    until("the lease is confirmed", SOON, || sidecar.daemon.log().contains("renewed: ").then_some(()));
    let expires = |sidecar: &Sidecar| sidecar.status("shop/web").unwrap()["expires"].as_i64().unwrap();
    for step in [7200, -7200] {
        let asked = server.log().matches("DHCPREQUEST(").count();
        clock.set(step);
        sleep(Duration::from_secs(7)); // longer than the client ever sleeps
        let log = sidecar.daemon.log();
        assert!(!log.contains("lost:") && !log.contains("withdraw"), "{step}: {log}");
        let left = expires(&sidecar) - step - now();
        assert!((400..=600).contains(&left), "{step}: {left} s, as that process's wall clock has it");
        assert_eq!(server.log().matches("DHCPREQUEST(").count(), asked, "nothing to ask for");
        // What was written by another wall clock in the same boot is read right.
        sidecar.stop();
        clock.set(0);
        sidecar = clock.sidecar(&node);
        until("the lease is confirmed again", SOON, || {
            (server.log().matches("DHCPREQUEST(").count() > asked).then_some(())
        });
        assert_eq!(pod.vips(), [vip]);
        let left = expires(&sidecar) - now();
        assert!((400..=600).contains(&left), "{step}: {left} s after a restart");
        assert!(!sidecar.daemon.log().contains("withdraw"), "{}", sidecar.daemon.log());
    }
}
