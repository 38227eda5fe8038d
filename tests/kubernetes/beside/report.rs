//! The page that the measurements are written to.

use std::fmt::Write;
use std::fs;

use crate::harness::Run;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks-kubernetes.md");

/// What one contender did.
pub struct Column {
    title: String,
    lines: Vec<(String, String)>,
}

impl Column {
    pub fn new(title: String) -> Self {
        Self { title, lines: Vec::new() }
    }

    pub fn say(&mut self, line: &str, value: String) {
        eprintln!("{}: {line}: {value}", self.title);
        self.lines.push((line.to_owned(), value));
    }
}

pub struct Report {
    columns: Vec<Column>,
    load: String,
}

const TEXT: &str = "\
# Benchmarks beside MetalLB

Written by `./install.sh bench --kubernetes`. Each contender has a [cluster of Kubernetes' own parts](design/test-cluster.md) to itself: two nodes, kube-proxy in nftables mode, four pods,
two a node, and a client on the LAN that is no node. MetalLB runs in L2 mode, of its own module's programs and manifests; the client calls the Service's address.

*Live*: 60 connections, each of which is asked once more 10 seconds after the event; broken is one that was reset, or silent for 30 seconds. *New*: 50 connections a second meanwhile,
failed is one without an answer within 5 seconds. *ARP after*: when another node answered the client, which asked all the time. Pods that end take their own connections with them, and a
node without a link those of its pods: what counts there is the number in brackets.
";

impl Report {
    pub fn new() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self { columns: Vec::new(), load: load.split(' ').next().unwrap_or_default().to_owned() }
    }

    pub fn add(&mut self, column: Column) {
        self.columns.push(column);
    }

    pub fn write(&self) {
        let mut page = TEXT.to_owned();
        let kernel = std::process::Command::new("uname").arg("-r").finish("").ok();
        let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        writeln!(
            page,
            "\nLinux {}, {processors} processors, load average {} at the beginning.\n",
            kernel.trim(),
            self.load
        )
        .expect("memory");
        let titles: Vec<_> = self.columns.iter().map(|column| column.title.as_str()).collect();
        writeln!(page, "| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(titles.len())).expect("memory");
        for (number, (line, _)) in self.columns[0].lines.iter().enumerate() {
            let values: Vec<_> = self.columns.iter().map(|column| column.lines[number].1.as_str()).collect();
            writeln!(page, "| {line} | {} |", values.join(" | ")).expect("memory");
        }
        fs::write(PAGE, page).expect("write the page");
    }
}
