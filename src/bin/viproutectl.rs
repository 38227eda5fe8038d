//! The administrator's tool: shows the VIPs of this node, drains replicas, finds faults.

mod resolver;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use viproute::chain::{self, runtimes};
use viproute::ctl::arguments::{
    Action, Announce, Arguments, Bundle, Doctor, Drain, Events, Form, Health, Identity, Import, Join, Key, KeyOrder,
    Leave, Node, Nodes, NodesOrder, Output, Probe, Retire, Status, UdpReply, Verb, Where, default,
};
use viproute::ctl::bundle::{self, Written};
use viproute::ctl::doctor::{self, Severity};
use viproute::ctl::import::Imported;
use viproute::ctl::join::{self, Left, Options, Places};
use viproute::ctl::trace::{self, Flow};
use viproute::ctl::uninstall::{self, uninstall};
use viproute::ctl::{announce, cluster, drain, events, identity, import, manual, nodes, probe, status, unload, watch};
use viproute::internals::membership::running;
use viproute::internals::model::Transport;
use viproute::internals::registry::{Registry, State};
use viproute::node::config::{Config, DEFAULT_KEY_FILE, DEFAULT_PATH};
use viproute::node::peers::key;
use viproute::with_causes;

/// drain: connections are left. doctor: there are warnings. import: something has no counterpart.
const LEFT: u8 = 3;
/// doctor: there are errors.
const BROKEN: u8 = 4;

/// The exit status, or what went wrong.
type Outcome = Result<ExitCode, String>;

fn main() -> ExitCode {
    let Arguments { data_dir, allocator, verb } = Arguments::parse();
    let registry = Registry::new(data_dir.clone().unwrap_or_else(|| default::DATA_DIR.into()));
    let socket = allocator.clone().unwrap_or_else(|| default::ALLOCATOR.into());
    let outcome = match verb {
        Verb::Status(question) => show_status(&registry, &socket, &question),
        Verb::Where(question) => show_where(&registry, &question),
        Verb::Identity(question) => show_identity(&socket, &question),
        Verb::Events(question) => show_events(&socket, question),
        Verb::Drain(order) => take_out(&registry, &order),
        Verb::Undrain(order) => bring_back(&registry, &order.pod),
        Verb::Join(order) => join_vip(Places { registry: &registry, allocator: &socket }, order),
        Verb::Leave(order) => leave_vip(Places { registry: &registry, allocator: &socket }, &order),
        Verb::Announce(question) => write_announcement(&question),
        Verb::Import(order) => print_imported(&order),
        Verb::Nodes(question) => nodes_of(&socket, &question),
        Verb::Key(Key { order: KeyOrder::New { path, secret } }) => new_key(path, secret),
        Verb::Doctor(question) => examine(data_dir, allocator, question),
        Verb::Bundle(order) => bundle(data_dir, allocator, order),
        Verb::Node(order) => change_node(order, &registry, socket),
        Verb::Probe(question) => probe(&question),
        Verb::PluginDirs { root } => {
            let dirs = runtimes::plugin_dirs(&root);
            Ok(print_each(dirs.iter().map(|dir| dir.display())))
        }
        Verb::Attached => list_attached(data_dir),
        Verb::Unload => unload(),
        Verb::Retire(order) => retire(&order),
        Verb::Pause => pause(),
        Verb::Completions { shell } => Ok(print(manual::completions(shell).trim_end())),
        Verb::Man { dir } => written(manual::write(&dir).map_err(|e| format!("write manual pages: {e}"))),
    };
    outcome.unwrap_or_else(|sentence| {
        let _ = writeln!(std::io::stderr(), "viproutectl: {sentence}");
        ExitCode::FAILURE
    })
}

/// Of the registry that viprouted's configuration names, unless the command line names one.
fn list_attached(data_dir: Option<PathBuf>) -> Outcome {
    let configured = || Config::load(Path::new(DEFAULT_PATH)).ok().map(|config| config.data_dir);
    let registry = Registry::new(data_dir.or_else(configured).unwrap_or_else(|| default::DATA_DIR.into()));
    let names = running::attached(&registry).map_err(|e| with_causes(&e))?;
    Ok(print_each(names.iter()))
}

fn unload() -> Outcome {
    let removed = unload::unload().map_err(|e| format!("take programs off devices: {}", with_causes(&e)))?;
    for what in removed {
        print(&format!("Removed: {what}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // the reader has closed stdout
    }
}

/// A line each; perhaps none.
fn print_each(mut lines: impl Iterator<Item: std::fmt::Display>) -> ExitCode {
    match lines.try_for_each(|line| writeln!(std::io::stdout(), "{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn written(result: Result<(), String>) -> Outcome {
    result.map(|()| ExitCode::SUCCESS)
}

fn show_status(registry: &Registry, allocator: &Path, question: &Status) -> Outcome {
    let look = || status::read(registry, allocator, question.vip.as_ref()).map_err(|e| with_causes(&e));
    let frame = || match question.output {
        Output::Table => look().map(|report| status::table(&report)),
        Output::Json if question.watch => serde_json::to_string(&look()?).map_err(|e| e.to_string()),
        Output::Json => json(&look()?),
    };
    if question.watch { written(watch::watch(&std::io::stdout(), frame)) } else { Ok(print(&frame()?)) }
}

fn show_where(registry: &Registry, question: &Where) -> Outcome {
    let transport = if question.udp { Transport::Udp } else { Transport::Tcp };
    let flow = Flow { client: question.client, vip: question.vip, transport };
    let place = trace::find(registry, flow).map_err(|e| with_causes(&e))?;
    Ok(match question.output {
        Form::Text => print(&place.to_string()),
        Form::Json => print(&json(&place)?),
    })
}

fn show_identity(allocator: &Path, question: &Identity) -> Outcome {
    let identity = identity::ask(allocator, &question.vip).map_err(|e| with_causes(&e))?;
    Ok(match question.output {
        Form::Text => print(&identity::text(&identity)),
        Form::Json => print(&json(&identity)?),
    })
}

fn nodes_of(allocator: &Path, question: &Nodes) -> Outcome {
    if let Some(NodesOrder::Leave) = question.order {
        return nodes::leave(allocator).map(print).map_err(|e| with_causes(&e));
    }
    let found = nodes::ask(allocator).map_err(|e| with_causes(&e))?;
    Ok(match question.output {
        Output::Table => print(&nodes::table(&found)),
        Output::Json => print(&json(&found)?),
    })
}

/// The command line has one of the two.
fn new_key(path: Option<PathBuf>, secret: Option<(String, String)>) -> Outcome {
    if let Some(secret) = secret {
        let is_new = cluster::new_key(&secret).map_err(|e| with_causes(&e))?;
        let what = if is_new { "has a new key" } else { "is there already, and stays as it is" };
        return Ok(print(&format!("{}/{} {what}", secret.0, secret.1)));
    }
    let path = path.unwrap_or_else(|| DEFAULT_KEY_FILE.into());
    key::write_new(&path).map_err(|e| with_causes(&e))?;
    Ok(print(&format!("{} is a new key: copy it to the other nodes, mode 0600", path.display())))
}

fn retire(order: &Retire) -> Outcome {
    let Retire { daemonset, by, namespace, timeout } = order;
    cluster::retire(namespace, (daemonset, by), *timeout).map_err(|e| with_causes(&e))?;
    Ok(print(&format!("{namespace}/{daemonset} has ended, and each node is cleaned")))
}

/// To the first process of a container SIGTERM does nothing unless it is asked for.
fn pause() -> Outcome {
    let mut ends = SigSet::empty();
    ends.extend([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block().and_then(|()| ends.wait()).map_err(|errno| format!("wait for a signal: {errno}"))?;
    Ok(ExitCode::SUCCESS)
}

/// As they come, so not as one text.
fn show_events(allocator: &Path, question: Events) -> Outcome {
    let Events { vip, follow, output } = question;
    let question = events::Question { vip, follow, json: matches!(output, Form::Json) };
    written(events::print(allocator, &question, &mut std::io::stdout().lock()).map_err(|e| with_causes(&e)))
}

fn take_out(registry: &Registry, order: &Drain) -> Outcome {
    let replica = drain::set(registry, &order.pod, true).map_err(|e| with_causes(&e))?;
    let printed = print(&format!("{} gets no new connection to {}", replica.name, replica.vips()));
    if !order.wait {
        return Ok(printed);
    }
    match replica.wait(registry, order.timeout).map_err(|e| with_causes(&e))? {
        0 => Ok(print(&format!("{} has no connection left", replica.name))),
        left => {
            let time = order.timeout.as_ref().map_or(0, Duration::as_secs);
            let sentence = format!("viproutectl: {left} connections of {} are left after {time} s", replica.name);
            let _ = writeln!(std::io::stderr(), "{sentence}");
            Ok(ExitCode::from(LEFT))
        }
    }
}

fn bring_back(registry: &Registry, pod: &str) -> Outcome {
    let replica = drain::set(registry, pod, false).map_err(|e| with_causes(&e))?;
    let when = if replica.waits { ", once its check finds that it can answer" } else { "" };
    Ok(print(&format!("{} gets new connections to {} again{when}", replica.name, replica.vips())))
}

fn join_vip(places: Places<'_>, order: Join) -> Outcome {
    let Join { pod, vip, ports, health, weight, udp_reply, udp_sticky, families, conf_dir } = order;
    let (health, udp_reply) = (health.map(|Health(check)| check), udp_reply.map(|UdpReply::Vip| true));
    let options = Options { ports, health, weight, udp_reply, udp_sticky, families };
    let joined = join::join(places, &conf_dir, (&pod, &vip), &options).map_err(|e| with_causes(&e))?;
    let state = match joined.state {
        State::Ready => "",
        State::Pending => ", and gets connections once its check finds that it can answer",
        State::Draining => ", and gets no new connections until its check, or undrain, says so",
    };
    Ok(print(&format!("{} is a replica of {vip} at {}{state}", joined.name, joined.address)))
}

fn leave_vip(places: Places<'_>, order: &Leave) -> Outcome {
    let vip = &order.vip;
    let left = join::leave(places, &order.pod, vip).map_err(|e| with_causes(&e))?;
    Ok(print(&match left {
        Left { name, was_replica: false, .. } => format!("{name} is no replica of {vip}"),
        Left { name, connections: 0, .. } => format!("{name} has left {vip}"),
        Left { name, connections, .. } => {
            format!(
                "{name} has left {vip}, and {connections} of its connections end: `drain --wait` before spares them"
            )
        }
    }))
}

fn write_announcement(question: &Announce) -> Outcome {
    let text = announce::write(question).map_err(|e| with_causes(&e))?;
    Ok(print(text.trim_end()))
}

fn print_imported(order: &Import) -> Outcome {
    let Imported { toml, left } = import::import(order).map_err(|e| with_causes(&e))?;
    let printed = print(toml.trim_end());
    for what in &left {
        let _ = writeln!(std::io::stderr(), "viproutectl: {what}");
    }
    Ok(if left.is_empty() { printed } else { ExitCode::from(LEFT) })
}

/// Paths that the command line doesn't name are those of viprouted's configuration.
fn examine(data_dir: Option<PathBuf>, allocator: Option<PathBuf>, question: Doctor) -> Outcome {
    let Doctor { conf_dir, bin_dir, config, output } = question;
    let theirs = Config::load(&config).ok();
    let data_dir = data_dir.or_else(|| theirs.as_ref().map(|theirs| theirs.data_dir.clone()));
    let allocator = allocator.or_else(|| theirs.map(|theirs| theirs.socket));
    let places = doctor::Places {
        registry: Registry::new(data_dir.unwrap_or_else(|| default::DATA_DIR.into())),
        allocator: allocator.unwrap_or_else(|| default::ALLOCATOR.into()),
        conf_dir,
        bin_dirs: bin_dir,
        runtimes: runtimes::find(Path::new("/")),
        config,
    };
    let report = doctor::examine(&places).map_err(|e| with_causes(&e))?;
    let printed = match output {
        Form::Text => print(&report.to_string()),
        Form::Json => print(&json(&report)?),
    };
    Ok(match report.worst() {
        Some(Severity::Error) => ExitCode::from(BROKEN),
        Some(Severity::Warning) => ExitCode::from(LEFT),
        Some(Severity::Hint) | None => printed,
    })
}

fn bundle(data_dir: Option<PathBuf>, allocator: Option<PathBuf>, order: Bundle) -> Outcome {
    let Bundle { file, conf_dir, config } = order;
    let places = bundle::Places { data_dir, allocator, conf_dir, config };
    let Written { path, files, missing } = bundle::write(&places, file).map_err(|e| with_causes(&e))?;
    Ok(print(&format!(
        "{}: {files} files. {missing} things could not be had: missing.txt in it says which, and why.\n\
         Secrets are blanked as far as they can be known as such: read it before you send it.",
        path.display()
    )))
}

fn change_node(order: Node, registry: &Registry, socket: PathBuf) -> Outcome {
    fits(&order)?;
    let Node { action, root, conf_dir, bin_dir, no_chain, register, dry_run, wait } = order;
    let data_dir = registry.dir().to_owned();
    if action == Action::Uninstall {
        let places = uninstall::Places { root, conf_dir, bin_dir, data_dir, socket };
        let lines = uninstall(&places, wait).map_err(|e| with_causes(&e))?;
        return Ok(print_each(lines.iter()));
    }
    let places = chain::Places { root, conf_dir };
    let own = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    let plugin = chain::Plugin { program: own.with_file_name("viproute"), bin_dir };
    let plugin = (action == Action::Install).then_some(&plugin);
    let lines = if action == Action::Leave {
        places.leave()
    } else if dry_run {
        foretell(&places, plugin, !no_chain)
    } else {
        set_up(&places, plugin, (!no_chain).then_some(register))
    };
    let lines = lines.map_err(|e| with_causes(&e))?;
    Ok(print_each(lines.iter()))
}

/// Options of another action would be passed over: refused, since leave and uninstall change the network all the same.
fn fits(order: &Node) -> Result<(), &'static str> {
    match order.action {
        Action::Leave | Action::Uninstall if order.dry_run || order.no_chain || order.register => Err(
            "--dry-run, --no-chain and --register are for install and join: without them leave and uninstall change the network",
        ),
        Action::Install | Action::Join | Action::Leave if order.wait.is_some() => Err("--wait is for uninstall"),
        _ => Ok(()),
    }
}

/// What was done, a sentence each. `joins`: a network, with all its pods recorded or not.
fn set_up(
    places: &chain::Places,
    plugin: Option<&chain::Plugin>,
    joins: Option<bool>,
) -> Result<Vec<String>, chain::Error> {
    let mut lines = plugin.map(|plugin| places.install(plugin)).transpose()?.unwrap_or_default();
    if let Some(register) = joins {
        lines.push(places.join(register)?);
    }
    Ok(lines)
}

/// What would be done, a line each.
fn foretell(places: &chain::Places, plugin: Option<&chain::Plugin>, joins: bool) -> Result<Vec<String>, chain::Error> {
    let mut lines = Vec::new();
    if let Some(plugin) = plugin {
        lines.extend(places.missing(plugin)?.iter().map(ToString::to_string));
    }
    if joins {
        lines.push(places.plan()?.to_string());
        lines.extend(places.first_is_loopback().map(|path| format!("loopback {}", path.display())));
    }
    Ok(lines)
}

fn probe(question: &Probe) -> Outcome {
    let config = Config::load(&question.config).map_err(|e| with_causes(&e))?;
    let socket = config.metrics.socket.ok_or_else(|| probe::Error::NoSocket(question.config.clone()).to_string())?;
    let answer = probe::ask(&socket, question.question.path()).map_err(|e| with_causes(&e))?;
    if answer.ok { Ok(print(&answer.text)) } else { Err(answer.text) }
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(value).map_err(|e| e.to_string())
}
