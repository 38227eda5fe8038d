//! What was measured on, and with which programs.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::stage::Run;

/// The machine and the versions.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub date: String,
    pub command: String,
    pub processor: String,
    pub processors: usize,
    pub memory: String,
    pub kernel: String,
    pub system: String,
    /// Program and what it says of itself.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    pub fn look(command: String) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let kilobytes = after(&meminfo, "MemTotal:").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
        Self {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            command,
            processor: after(&cpuinfo, "model name\t:"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory: format!("{:.0} GiB", kilobytes / f64::from(1 << 20)),
            kernel: said("uname", &["-srm"]),
            system: after(&release, "PRETTY_NAME=").trim_matches('"').to_owned(),
            versions: versions(),
        }
    }
}

fn versions() -> Vec<(String, String)> {
    let programs: [(&str, &str, &[&str]); 6] = [
        ("HAProxy", "haproxy", &["-v"]),
        ("nginx", "nginx", &["-v"]),
        ("iptables", "iptables", &["-V"]),
        ("nftables", "nft", &["-v"]),
        ("dnsmasq", "dnsmasq", &["-v"]),
        ("CNI plugins", "dpkg-query", &["-W", "-f", "${Version}", "containernetworking-plugins"]),
    ];
    let own = ("viproute".to_owned(), viproute::RELEASE.to_owned());
    let others = programs.map(|(name, program, arguments)| (name.to_owned(), version(&said(program, arguments))));
    std::iter::once(own).chain(others).collect()
}

/// The version in what a program says of itself; all of it where there is none.
fn version(said: &str) -> String {
    let is_version = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let found = said.split([' ', '/']).find(is_version).unwrap_or(said);
    found.trim_start_matches('v').to_owned()
}

/// The first line a program says.
fn said(program: &str, arguments: &[&str]) -> String {
    // nginx says it on stderr.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\" 2>&1", "sh", program]).args(arguments);
    match command.output_of("") {
        Ok(text) => text.lines().next().unwrap_or_default().trim().to_owned(),
        Err(_) => "not installed".to_owned(),
    }
}

/// The rest of the first line that begins like this.
fn after(text: &str, start: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_say_them() {
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u3 2025/10/03 - https://haproxy.org/"), "2.6.12-1+deb12u3");
        assert_eq!(version("nginx version: nginx/1.22.1"), "1.22.1");
        assert_eq!(version("iptables v1.8.9 (nf_tables)"), "1.8.9");
        assert_eq!(version("not installed"), "not installed");
    }
}
