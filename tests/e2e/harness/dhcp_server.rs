//! Real DHCP servers on a LAN, handing out 192.0.2.100 to .150.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use super::command::{Run, tool};
use super::daemon::Daemon;
use super::lan::Lan;
use super::tempdir::TempDir;
use super::wait::until;

pub struct DhcpServer {
    daemon: Option<Daemon>,
    dir: TempDir,
}

/// The whole range of addresses for VIPs on the LAN.
pub const RANGE: &str = "192.0.2.100,192.0.2.150";

/// The same as Kea writes it.
pub const KEA_POOL: &str = "192.0.2.100 - 192.0.2.150";

impl DhcpServer {
    /// dnsmasq over `range`, with leases of `lease` (at least 2 minutes, its own limit) and `extra` lines of configuration.
    pub fn dnsmasq(lan: &Lan, range: &str, lease: &str, extra: &str) -> Self {
        let dir = TempDir::new();
        // no-ping: the check costs three seconds an address and is the server's affair, not ours.
        let config = format!(
            "port=0\ninterface=br0\nbind-interfaces\ndhcp-authoritative\nno-ping\nlog-dhcp\nuser=root\n\
             dhcp-range={range},255.255.255.0,{lease}\ndhcp-leasefile={}\n{extra}\n",
            dir.file("leases"),
        );
        fs::write(dir.file("dnsmasq.conf"), config).expect("write dnsmasq.conf");
        let mut command = lan.ns.cmd("dnsmasq");
        command.args(["-k", "--log-facility=-", "-C", &dir.file("dnsmasq.conf"), "--pid-file="]);
        Self::start("dnsmasq", &mut command, dir, "DHCP, sockets bound")
    }

    /// Kea: leases as short as a test needs them. It offers the addresses of `pool` (`FIRST - LAST`) in their order; with
    /// `None` it has nothing to offer and refuses what it knows nothing of.
    pub fn kea(lan: &Lan, lease_seconds: u32, pool: Option<&str>) -> Self {
        let dir = TempDir::new();
        let pools = pool.map(|pool| format!(r#"{{ "pool": "{pool}" }}"#)).unwrap_or_default();
        let config = format!(
            r#"{{ "Dhcp4": {{
                "interfaces-config": {{ "interfaces": [ "br0" ], "dhcp-socket-type": "raw" }},
                "lease-database": {{ "type": "memfile", "persist": true, "name": "{}", "lfc-interval": 0 }},
                "authoritative": true, "valid-lifetime": {lease_seconds},
                "subnet4": [ {{ "id": 1, "subnet": "192.0.2.0/24", "interface": "br0",
                               "pools": [ {pools} ] }} ],
                "loggers": [ {{ "name": "kea-dhcp4", "severity": "INFO",
                               "output_options": [ {{ "output": "stdout" }} ] }} ] }} }}"#,
            dir.file("leases")
        );
        fs::write(dir.file("kea.conf"), config).expect("write kea.conf");
        let mut command = lan.ns.cmd(&unconfined("kea-dhcp4", &dir));
        command.args(["-c", &dir.file("kea.conf")]);
        command.env("KEA_PIDFILE_DIR", dir.path()).env("KEA_LOCKFILE_DIR", dir.path());
        Self::start("kea", &mut command, dir, "DHCP4_STARTED")
    }

    /// ISC dhcpd.
    pub fn dhcpd(lan: &Lan, lease_seconds: u32) -> Self {
        let dir = TempDir::new();
        let config = format!(
            "authoritative; ping-check false; min-lease-time 1; default-lease-time {lease_seconds};\n\
             max-lease-time {lease_seconds};\nsubnet 192.0.2.0 netmask 255.255.255.0 {{ range 192.0.2.100 192.0.2.150; }}\n"
        );
        fs::write(dir.file("dhcpd.conf"), config).expect("write dhcpd.conf");
        fs::write(dir.file("leases"), "").expect("write an empty lease file");
        let mut command = lan.ns.cmd(&unconfined("dhcpd", &dir));
        command.args(["-4", "-f", "-d", "--no-pid", "-cf", &dir.file("dhcpd.conf"), "-lf", &dir.file("leases"), "br0"]);
        Self::start("dhcpd", &mut command, dir, "Server starting service")
    }

    fn start(name: &str, command: &mut Command, dir: TempDir, ready: &str) -> Self {
        let mut daemon = Daemon::start(name, command, &dir);
        until(&format!("{name} is ready"), Duration::from_secs(10), || {
            assert!(!daemon.ended(), "{name} ended:\n{}", daemon.log());
            daemon.log().contains(ready).then_some(())
        });
        Self { daemon: Some(daemon), dir }
    }

    /// The lease file's lines.
    pub fn leases(&self) -> Vec<String> {
        fs::read_to_string(self.dir.file("leases")).unwrap_or_default().lines().map(str::to_string).collect()
    }

    /// dnsmasq: who holds `address`, as the host name in its lease table.
    pub fn host_name(&self, address: Ipv4Addr) -> Option<String> {
        let address = address.to_string();
        let fields = |line: &String| line.split(' ').map(str::to_string).collect::<Vec<_>>();
        self.leases().iter().map(fields).find(|lease| lease.get(2) == Some(&address))?.get(3).cloned()
    }

    /// Stops the server; the LAN has none any more.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- DHCP server\n{}\n{}", self.log(), self.leases().join("\n"));
        }
    }
}

/// A copy of the program in `dir`: Ubuntu's `AppArmor` profiles go by path and keep these daemons to their own directories.
fn unconfined(name: &str, dir: &TempDir) -> String {
    let copy = dir.file(name);
    // By another process: were the copy open for writing here, another test's fork would hold it open for a moment, and
    // the kernel refuses to run a file somebody writes (ETXTBSY).
    Command::new("cp").arg(tool(name)).arg(&copy).finish("").ok();
    copy
}
