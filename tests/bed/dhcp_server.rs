//! Real DHCP servers on a LAN, handing out 192.0.2.100 to .150.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::Command;

use super::command::{Run, tool};
use super::daemon::Daemon;
use super::lan::Lan;
use super::netns::Netns;
use super::tempdir::TempDir;
use super::wait::{SOON, until};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    Dnsmasq,
    Kea,
    /// Kea's server for IPv6.
    Kea6,
    Dhcpd,
}

pub struct DhcpServer {
    daemon: Option<Daemon>,
    dir: TempDir,
    software: Software,
}

/// The whole range of addresses for VIPs on the LAN.
pub const RANGE: &str = "192.0.2.100,192.0.2.150";

/// The same as Kea writes it.
pub const KEA_POOL: &str = "192.0.2.100 - 192.0.2.150";

/// What servers for IPv6 hand out on the LAN, as dnsmasq writes it and as Kea does.
pub const RANGE6: &str = "2001:db8::100,2001:db8::150";
pub const KEA_POOL6: &str = "2001:db8::100 - 2001:db8::150";

/// What Kea delegates prefixes of: 60 bits each, of these 48.
pub const DELEGATED6: &str = "2001:db8:100::";

/// A subnet that is on no link: 10.99.0.100 to .110 are handed out to relays.
pub const RELAYED: &str = "10.99.0.0";

/// The same for IPv6: `2001:db8:99::100` to `::110`.
pub const RELAYED6: &str = "2001:db8:99::";

impl DhcpServer {
    /// Any of them, with leases of so few seconds as a test needs, for the LAN and for [`RELAYED`].
    pub fn quick(software: Software, lan: &Lan, lease_seconds: u32) -> Self {
        let dir = TempDir::new();
        match software {
            // Its own limit is two minutes; what the client gets can be shorter.
            Software::Dnsmasq => {
                let extra = format!(
                    "dhcp-option-force=51,{lease_seconds}\ndhcp-option=option:T1,{}\ndhcp-option=option:T2,{}\n\
                     dhcp-range=10.99.0.100,10.99.0.110,255.255.255.0,2m",
                    lease_seconds / 2,
                    lease_seconds * 7 / 8
                );
                write_dnsmasq(&dir, "br0", RANGE, "2m", &extra);
            }
            Software::Kea => write_kea(&dir, lease_seconds, Some(KEA_POOL)),
            Software::Kea6 => write_kea6(&dir, lease_seconds, (KEA_POOL6, DELEGATED6)),
            Software::Dhcpd => write_dhcpd(&dir, lease_seconds),
        }
        Self::start(software, lan, dir)
    }

    /// dnsmasq over `range`, with leases of `lease` (at least 2 minutes, its own limit) and `extra` lines of configuration.
    pub fn dnsmasq(lan: &Lan, range: &str, lease: &str, extra: &str) -> Self {
        let dir = TempDir::new();
        write_dnsmasq(&dir, "br0", range, lease, extra);
        Self::start(Software::Dnsmasq, lan, dir)
    }

    /// Kea: leases as short as a test needs them. It offers the addresses of `pool` (`FIRST - LAST`) in their order; with
    /// `None` it has nothing to offer and refuses what it knows nothing of.
    pub fn kea(lan: &Lan, lease_seconds: u32, pool: Option<&str>) -> Self {
        let dir = TempDir::new();
        write_kea(&dir, lease_seconds, pool);
        Self::start(Software::Kea, lan, dir)
    }

    /// Kea for IPv6, as [`Self::kea`]; the LAN's gateway is `2001:db8::fe`.
    pub fn kea6(lan: &Lan, lease_seconds: u32, pool: &str) -> Self {
        let dir = TempDir::new();
        lan.has_ipv6();
        write_kea6(&dir, lease_seconds, (pool, DELEGATED6));
        Self::start(Software::Kea6, lan, dir)
    }

    /// While it is stopped: it has another pool from now on.
    pub fn change_pool6(&self, lease_seconds: u32, pool: &str) {
        write_kea6(&self.dir, lease_seconds, (pool, DELEGATED6));
    }

    /// The same with other 48 bits to delegate prefixes of.
    pub fn change_delegated6(&self, lease_seconds: u32, delegated: &str) {
        write_kea6(&self.dir, lease_seconds, (KEA_POOL6, delegated));
    }

    /// dnsmasq for both families, with leases of two minutes, its own limit.
    pub fn dnsmasq6(lan: &Lan, range6: &str) -> Self {
        lan.has_ipv6();
        Self::dnsmasq(lan, RANGE, "10m", &format!("dhcp-range={range6},64,2m"))
    }

    /// ISC dhcpd.
    pub fn dhcpd(lan: &Lan, lease_seconds: u32) -> Self {
        let dir = TempDir::new();
        write_dhcpd(&dir, lease_seconds);
        Self::start(Software::Dhcpd, lan, dir)
    }

    /// Another dnsmasq on the LAN: in a client's namespace, with a range of its own.
    pub fn another(ns: &Netns, range: &str) -> Self {
        let dir = TempDir::new();
        write_dnsmasq(&dir, "eth0", range, "10m", "");
        let mut server = Self { daemon: None, dir, software: Software::Dnsmasq };
        server.launch(ns);
        server
    }

    fn start(software: Software, lan: &Lan, dir: TempDir) -> Self {
        let mut server = Self { daemon: None, dir, software };
        server.start_again(lan);
        server
    }

    /// Starts it, with the leases it had.
    pub fn start_again(&mut self, lan: &Lan) {
        self.launch(&lan.ns);
    }

    fn launch(&mut self, ns: &Netns) {
        let dir = &self.dir;
        let (name, ready, mut command) = match self.software {
            Software::Dnsmasq => {
                let mut command = ns.cmd("dnsmasq");
                command.args(["-k", "--log-facility=-", "-C", &dir.file("dnsmasq.conf"), "--pid-file="]);
                ("dnsmasq", "DHCP, sockets bound", command)
            }
            Software::Kea => {
                let mut command = ns.cmd(unconfined("kea-dhcp4", dir));
                command.args(["-c", &dir.file("kea.conf")]);
                command.env("KEA_PIDFILE_DIR", dir.path()).env("KEA_LOCKFILE_DIR", dir.path());
                ("kea", "DHCP4_STARTED", command)
            }
            Software::Kea6 => {
                let mut command = ns.cmd(unconfined("kea-dhcp6", dir));
                command.args(["-c", &dir.file("kea6.conf")]);
                command.env("KEA_PIDFILE_DIR", dir.path()).env("KEA_LOCKFILE_DIR", dir.path());
                ("kea6", "DHCP6_STARTED", command)
            }
            Software::Dhcpd => {
                let mut command = ns.cmd(unconfined("dhcpd", dir));
                let (config, leases) = (dir.file("dhcpd.conf"), dir.file("leases"));
                command.args(["-4", "-f", "-d", "--no-pid", "-cf", &config, "-lf", &leases, "br0"]);
                ("dhcpd", "Server starting service", command)
            }
        };
        // What an earlier run said is in the log too.
        let log = read_if_present(&dir.file(&format!("{name}.log")));
        let before = log.matches(ready).count();
        let mut daemon = Daemon::start(name, &mut command, dir);
        until(&format!("{name} is ready"), SOON, || {
            assert!(!daemon.ended(), "{name} ended:\n{}", daemon.log());
            (daemon.log().matches(ready).count() > before).then_some(())
        });
        self.daemon = Some(daemon);
    }

    /// The lease file's lines; none, before the server has written it.
    pub fn leases(&self) -> Vec<String> {
        read_if_present(&self.dir.file("leases")).lines().map(str::to_string).collect()
    }

    /// dnsmasq: waits until so many leases are in its file, which it writes anew, after it has answered.
    pub fn has_leases(&self, count: usize) {
        until(&format!("{count} leases in the server's file"), SOON, || (self.leases().len() == count).then_some(()));
    }

    /// dnsmasq: who holds `address`, as the host name in its lease table.
    pub fn host_name(&self, address: Ipv4Addr) -> String {
        let address = address.to_string();
        let fields = |line: &String| line.split(' ').map(str::to_string).collect::<Vec<_>>();
        until(&format!("a lease of {address} in the server's file"), SOON, || {
            self.leases().iter().map(fields).find(|lease| lease.get(2) == Some(&address))?.get(3).cloned()
        })
    }

    /// Stops the server; the LAN has none any more.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// While it is stopped: all leases are forgotten.
    pub fn wipe(&self) {
        for name in ["leases", "leases~", "leases.2", "kea-dhcp6-serverid"] {
            let _ = fs::remove_file(self.dir.file(name));
        }
        // dhcpd insists on a file.
        fs::write(self.dir.file("leases"), "").expect("write an empty lease file");
    }

    /// While it is stopped: all leases become another client's.
    pub fn give_away(&self) {
        const MAC: &str = "02:00:00:00:00:99";
        let text = self.leases().into_iter().map(|line| match self.software {
            Software::Dnsmasq => replace(&line, " ", &[(1, MAC), (4, "01:02:00:00:00:00:99")]),
            Software::Kea if line.starts_with("address,") => line,
            Software::Kea => replace(&line, ",", &[(1, MAC), (2, "01:02:00:00:00:00:99")]),
            Software::Dhcpd if line.contains("hardware ethernet") => format!("  hardware ethernet {MAC};"),
            Software::Dhcpd if line.contains("uid ") => "  uid \"another\";".into(),
            Software::Kea6 | Software::Dhcpd => line,
        });
        let text: String = text.map(|line| line + "\n").collect();
        fs::write(self.dir.file("leases"), text).expect("write the lease file");
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

fn write_dnsmasq(dir: &TempDir, interface: &str, range: &str, lease: &str, extra: &str) {
    // no-ping: the check costs three seconds an address and is the server's affair, not ours.
    let config = format!(
        "port=0\ninterface={interface}\nbind-interfaces\ndhcp-authoritative\nno-ping\nlog-dhcp\nuser=root\n\
         dhcp-range={range},255.255.255.0,{lease}\ndhcp-leasefile={}\n{extra}\n",
        dir.file("leases"),
    );
    fs::write(dir.file("dnsmasq.conf"), config).expect("write dnsmasq.conf");
}

fn write_kea(dir: &TempDir, lease_seconds: u32, pool: Option<&str>) {
    let pools = pool.map(|pool| format!(r#"{{ "pool": "{pool}" }}"#)).unwrap_or_default();
    let config = format!(
        r#"{{ "Dhcp4": {{
            "interfaces-config": {{ "interfaces": [ "br0" ], "dhcp-socket-type": "raw" }},
            "lease-database": {{ "type": "memfile", "persist": true, "name": "{}", "lfc-interval": 0 }},
            "authoritative": true, "valid-lifetime": {lease_seconds},
            "subnet4": [ {{ "id": 1, "subnet": "192.0.2.0/24", "interface": "br0", "pools": [ {pools} ] }},
                         {{ "id": 99, "subnet": "{RELAYED}/24",
                           "pools": [ {{ "pool": "10.99.0.100 - 10.99.0.110" }} ] }} ],
            "loggers": [ {{ "name": "kea-dhcp4", "severity": "INFO",
                           "output_options": [ {{ "output": "stdout" }} ] }} ] }} }}"#,
        dir.file("leases")
    );
    fs::write(dir.file("kea.conf"), config).expect("write kea.conf");
}

fn write_kea6(dir: &TempDir, lease_seconds: u32, (pool, delegated): (&str, &str)) {
    let (renew, rebind) = (lease_seconds / 2, lease_seconds * 7 / 8);
    let config = format!(
        r#"{{ "Dhcp6": {{
            "interfaces-config": {{ "interfaces": [ "br0/2001:db8::fe" ] }}, "data-directory": "{}",
            "lease-database": {{ "type": "memfile", "persist": true, "name": "{}", "lfc-interval": 0 }},
            "preferred-lifetime": {rebind}, "valid-lifetime": {lease_seconds},
            "renew-timer": {renew}, "rebind-timer": {rebind},
            "subnet6": [ {{ "id": 1, "subnet": "2001:db8::/64", "interface": "br0", "pools": [ {{ "pool": "{pool}" }} ],
                           "pd-pools": [ {{ "prefix": "{delegated}", "prefix-len": 48, "delegated-len": 60 }} ] }},
                         {{ "id": 99, "subnet": "{RELAYED6}/64",
                           "pools": [ {{ "pool": "2001:db8:99::100 - 2001:db8:99::110" }} ] }} ],
            "loggers": [ {{ "name": "kea-dhcp6", "severity": "INFO",
                           "output_options": [ {{ "output": "stdout" }} ] }} ] }} }}"#,
        dir.path().display(),
        dir.file("leases")
    );
    fs::write(dir.file("kea6.conf"), config).expect("write kea6.conf");
}

fn write_dhcpd(dir: &TempDir, lease_seconds: u32) {
    let config = format!(
        "authoritative; ping-check false; min-lease-time 1; default-lease-time {lease_seconds};\n\
         max-lease-time {lease_seconds};\nsubnet 192.0.2.0 netmask 255.255.255.0 {{ range 192.0.2.100 192.0.2.150; }}\n\
         subnet {RELAYED} netmask 255.255.255.0 {{ range 10.99.0.100 10.99.0.110; }}\n"
    );
    fs::write(dir.file("dhcpd.conf"), config).expect("write dhcpd.conf");
    fs::write(dir.file("leases"), "").expect("write an empty lease file");
}

fn read_if_present(path: &str) -> String {
    match fs::read(path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => panic!("read {path}: {error}"),
    }
}

/// `line` with some of its fields replaced.
fn replace(line: &str, separator: &str, with: &[(usize, &str)]) -> String {
    let mut fields: Vec<_> = line.split(separator).collect();
    for (at, text) in with {
        if let Some(field) = fields.get_mut(*at) {
            *field = text;
        }
    }
    fields.join(separator)
}

/// A copy of the program in `dir`: Ubuntu's `AppArmor` profiles go by path and keep these daemons to their own directories.
fn unconfined(name: &str, dir: &TempDir) -> String {
    let copy = dir.file(name);
    // By another process: were the copy open for writing here, another test's fork would hold it open for a moment, and
    // the kernel refuses to run a file that is open for writing (ETXTBSY).
    Command::new("cp").arg(tool(name)).arg(&copy).finish("").ok();
    copy
}
