//! Manual pages and shell completions, made from the command lines themselves, the tables' own columns and the configuration
//! that is installed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::api::protocol::LeaseState;
use crate::registry::State;

use super::arguments::Arguments;
use super::status::{self, VipState};

/// System administration.
const SECTION: &str = "8";

/// `/etc/viproute/viprouted.toml`, in which every key is explained.
const CONFIGURATION: &str = include_str!("../../conf/viprouted.toml");

const SIGNALS: [(&str, &str); 2] = [
    ("SIGTERM, SIGINT", "End in order: VIPs stay in service as they are, leases are kept and go on at the next start."),
    ("Others", "None is handled: a changed configuration counts from a restart on, which VIPs don't notice."),
];

const FILES: [(&str, &str); 6] = [
    ("/etc/viproute/viprouted.toml", "The configuration, below."),
    ("/run/viproute/viprouted.sock", "The socket (socket) that the plugin and viproutectl call, mode 0600."),
    ("/run/viproute/metrics.sock", "Metrics, /healthz and /readyz by HTTP (metrics), mode 0600."),
    ("/var/lib/viproute", "Leases (state_dir); they outlive a reboot."),
    (
        "/var/lib/cni/viproute",
        "The registry (data_dir, the conflist's \"dataDir\"): VIPs, replicas, attachments of this boot.",
    ),
    ("/sys/fs/bpf/viproute", "The flow owner's programs and maps (the conflist's \"bpfDir\")."),
];

/// What a pod says, and how: the plugin has no arguments that clap could know.
const SAID: [(&str, &str); 7] = [
    (
        "viproute.io/vip, VIPROUTE_VIP",
        "The VIP's name, or a comma list of up to 8. The VIP is of the pod's own namespace.",
    ),
    (
        "viproute.io/ports, VIPROUTE_PORTS",
        "What the VIP serves there: 80/tcp,53/udp for all VIPs, web=80/tcp for one, 80:8080/tcp where the pod has 8080.",
    ),
    ("viproute.io/health, VIPROUTE_HEALTH", "What makes it ready: none, listen, tcp or http:PORT/PATH, with options."),
    ("viproute.io/weight, VIPROUTE_WEIGHT", "Its share beside the other replicas', from 1 to 255."),
    ("viproute.io/udp-reply, VIPROUTE_UDP_REPLY", "vip: unbound UDP sockets answer from the VIP."),
    ("viproute.io/udp-sticky, VIPROUTE_UDP_STICKY", "true: UDP flows keep their replica."),
    (
        "viproute.io/families, VIPROUTE_FAMILIES",
        "By which families the VIP is served: ipv4, ipv6 or ipv4,ipv6. Without it by those of which it has an address.",
    ),
];

/// A section behind those that clap makes.
struct Section {
    title: &'static str,
    text: String,
}

/// Writes a manual page for each program, one for each of viproutectl's verbs, and one for the configuration.
pub fn write(dir: &Path) -> io::Result<()> {
    write_page(dir, crate::node::arguments::Arguments::command())?;
    // A page about `help` would say nothing.
    let mut tool = Arguments::command().disable_help_subcommand(true);
    tool.build();
    for verb in tool.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(dir, verb.clone())?;
    }
    write_page(dir, tool)?;
    for (name, text) in [("viproute.8", plugin()), ("viprouted.toml.5", configuration())] {
        File::create(dir.join(name))?.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// The head of a page that no command line makes.
fn head(name: &str, section: &str, purpose: &str) -> String {
    let (name, release) = (escaped(name), crate::RELEASE);
    format!(".TH {name} {section} \"\" \"viproute {release}\"\n.SH NAME\n{name} \\- {}\n", escaped(purpose))
}

/// viproute(8)
fn plugin() -> String {
    let synopsis =
        ".SH SYNOPSIS\n\\fBviproute\\fR < the network's configuration\n.br\n\\fBviproute \\-\\-version\\fR\n";
    let description = "A container runtime calls it as the last plugin of a chain, with CNI_... variables and JSON on standard input: a pod that \
                       names a VIP becomes one of its replicas. It joins no VIP by itself, and passes a pod that names none through. \
                       People need it for its version alone; viproutectl node join puts it into the runtime's chain.";
    let said = "By the pod's annotations, or by the arguments of a Nomad job (cni { args }, with : in place of =):";
    let exit =
        "0, or 1 and the error as JSON on standard output, with a code of the CNI specification or of viproute's own.";
    [
        head("viproute", SECTION, "the CNI plugin that makes pods replicas of VIPs"),
        synopsis.to_owned(),
        format!(".SH DESCRIPTION\n{}\n", escaped(description)),
        format!(".SH WHAT A POD SAYS\n{}\n{}", escaped(said), terms(SAID)),
        format!(".SH EXIT STATUS\n{}\n", escaped(exit)),
        ".SH SEE ALSO\nviproutectl(8), viproutectl\\-node(8), viprouted(8)\n".to_owned(),
    ]
    .concat()
}

/// viprouted.toml(5)
fn configuration() -> String {
    let description = "As it is installed: each key with its default behind a # and what it means. An unknown key or a bad value ends viprouted's \
                       start, and is named.";
    [
        head("viprouted.toml", "5", "the configuration of viprouted, /etc/viproute/viprouted.toml"),
        format!(".SH DESCRIPTION\n{}\n.SH KEYS\n{}", escaped(description), verbatim(CONFIGURATION)),
        ".SH SEE ALSO\nviprouted(8)\n".to_owned(),
    ]
    .concat()
}

/// A verb is displayed as `viproutectl-VERB`.
fn write_page(dir: &Path, command: Command) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut file = File::create(dir.join(format!("{name}.{SECTION}")))?;
    Man::new(command).section(SECTION).render(&mut file)?;
    for Section { title, text } in sections(&name) {
        write!(file, ".SH {title}\n{text}")?;
    }
    Ok(())
}

fn sections(page: &str) -> Vec<Section> {
    match page {
        "viprouted" => vec![
            Section { title: "CONFIGURATION", text: verbatim(CONFIGURATION) },
            Section { title: "SIGNALS", text: terms(SIGNALS) },
            Section { title: "FILES", text: terms(FILES) },
        ],
        "viproutectl-status" => vec![
            Section {
                title: "COLUMNS",
                text: terms(status::COLUMNS)
                    + ".PP\nPackets of connections:\n"
                    + &terms(status::PACKETS)
                    + ".PP\nUplinks:\n"
                    + &terms(status::UPLINKS)
                    + ".PP\nKubernetes Services:\n"
                    + &terms(status::SERVICES),
            },
            Section {
                title: "STATES",
                text: "Of a VIP (STATE):\n".to_owned()
                    + &terms(VipState::ALL.map(|state| (state.name(), state.meaning())))
                    + ".PP\nOf a lease (LEASE):\n"
                    + &terms(LeaseState::ALL.map(|state| (state.name(), status::of_lease(state))))
                    + ".PP\nOf a replica (REPLICA STATE):\n"
                    + &terms(State::ALL.map(|state| (state.name(), status::of_replica(state)))),
            },
        ],
        _ => Vec::new(),
    }
}

/// A list of terms with what they mean (man(7), `.TP`).
fn terms<'a>(terms: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let term = |(name, meaning)| format!(".TP\n\\fB{}\\fR\n{}\n", escaped(name), escaped(meaning));
    terms.into_iter().map(term).collect()
}

/// A file's text, line by line.
fn verbatim(text: &str) -> String {
    let lines: String = text.lines().map(|line| escaped(line) + "\n").collect();
    format!(".nf\n{lines}.fi\n")
}

/// As text: no escapes, no requests, hyphens that can be copied.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

/// The completion script of viproutectl for a shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "viproutectl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
