//! The loop: whatever happens goes into [`State`], and what that decides is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

mod calls;

use super::announce::Announcer;
use super::arp::{self, Arp};
use super::chronicle::Chronicle;
use super::config::{Announce, Config};
use super::dataplane::{self, Node};
use super::events::{Event, Events};
use super::hands::Hands;
use super::keeper::{Done, Keeper};
use super::lease::Report;
use super::search::{self, Search};
use super::server::Server;
use super::source::{self, Sources};
use super::state::{Findings, Input, Presence, Rules, State, Step};
use super::store::{self, Contents, Store};
use super::watch::{self, Batch};
use super::{notify, uplink};
use crate::agent;
use crate::net::link::Link;
use crate::net::{self, NodeNet, unix};
use crate::registry::{Registry, VipKey};
use crate::with_causes;

/// The loop looks around at least this often: the clock may have been set meanwhile.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// Why viprouted can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No runtime, thread or signal handler.
    #[error("{op}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No link.
    #[error(transparent)]
    Uplink(#[from] uplink::Error),
    /// No ARP on it.
    #[error(transparent)]
    Arp(#[from] arp::Error),
    /// No lease files.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// No socket.
    #[error(transparent)]
    Server(#[from] unix::Error),
    /// No DHCP.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// No searches.
    #[error(transparent)]
    Search(#[from] search::Error),
    /// No agent.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// A part that never ends did.
    #[error("{0} has ended")]
    Ended(&'static str),
}

fn failed(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, source }
}

/// Runs viprouted until SIGTERM or SIGINT. Leases, routes and proxy entries stay as they are then: traffic goes on.
pub fn run(config: &Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let result = runtime.block_on(async {
        let (mut daemon, mut events) = start(config).await?;
        let server = Server::bind(&config.socket)?;
        let (sender, inquiries) = tokio::sync::mpsc::unbounded_channel();
        events.inquiries = inquiries;
        // The metrics' socket goes with it.
        let _agent = agent::start(&daemon.agent, &config.metrics, sender)?;
        let (sender, calls) = tokio::sync::mpsc::unbounded_channel();
        events.calls = calls;
        let serving = tokio::spawn(async move { server.run(sender).await });
        notify::ready();
        tracing::info!(socket = %config.socket.display(), backend = daemon.backend, "serving");
        let result = daemon.run(&mut events).await;
        // The socket's file goes with the server.
        serving.abort();
        let _ = serving.await;
        result
    });
    // A search or a probe under way needn't be waited for.
    runtime.shutdown_background();
    result
}

struct Daemon {
    state: State,
    hands: Hands,
    registry: Registry,
    agent: agent::Context,
    chronicle: Chronicle,
    announcer: Option<Announcer>,
    /// Sees whether `link` is still there.
    node: NodeNet,
    link: Option<Link>,
    backend: &'static str,
    hold: Duration,
    /// Callers count from 1.
    last_caller: u64,
    /// What waits for a lease file to be read, VIP by VIP.
    unread: BTreeMap<VipKey, Vec<Input>>,
    /// Files in the lease directory that belong to no VIP.
    strangers: Vec<PathBuf>,
    /// Why the announcements aren't as they should be.
    trouble: Option<String>,
}

/// Opens everything, reads the leases and the registry, and goes on where the run before stopped.
async fn start(config: &Config) -> Result<(Daemon, Events), Error> {
    let node = NodeNet::open()?;
    let store = Store::open(&config.state_dir)?;
    let contents = store.load_all()?;
    let registry = Registry::new(&config.data_dir);
    if registry.exists()
        && let Err(error) = registry.begin()
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "registry not checked for another boot's state");
    }
    let link = uplink::find(&node, config)?;
    let arp = link.as_ref().map(Arp::open).transpose()?;
    let announcer = match (&link, &arp, config.announce) {
        (Some(link), Some(arp), Announce::Arp) => Some(Announcer::new(link, arp.clone())?),
        _ => None,
    };
    let search = Search::new(config, link.as_ref().zip(arp))?;
    let (sender, reports) = tokio::sync::mpsc::unbounded_channel();
    let (sources, notices) = Sources::start(config, link.as_ref().map(|link| link.name.as_str()), sender)?;
    let (keeper, done) = Keeper::start(store).map_err(failed("start the thread that keeps leases"))?;
    let (sender, failures) = tokio::sync::mpsc::unbounded_channel();
    let agent = agent::Context::new(registry.clone(), config.notrack)?;
    let dataplane = Node::open(registry.clone(), agent.journal.clone())?;
    let orders = dataplane::start(dataplane, sender).map_err(failed("start the dataplane's thread"))?;
    let (hands, found) = Hands::new(sources, search, keeper, orders);
    let mut batches = watch::start(registry.clone()).map_err(failed("watch the registry"))?;
    let first = batches.recv().await.ok_or(Error::Ended("the registry's watcher"))?;
    let events = Events {
        calls: tokio::sync::mpsc::unbounded_channel().1,
        inquiries: tokio::sync::mpsc::unbounded_channel().1,
        reports,
        notices,
        done,
        found,
        registry: batches,
        failures,
        terminate: signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?,
        interrupt: signal(SignalKind::interrupt()).map_err(failed("handle SIGINT"))?,
    };
    let mut daemon = Daemon {
        state: State::new(Rules::of(config)),
        hands,
        registry,
        chronicle: Chronicle::new(agent.journal.clone()),
        agent,
        announcer,
        node,
        link,
        backend: config.backend.name(),
        hold: config.hold,
        last_caller: 0,
        unread: BTreeMap::new(),
        strangers: contents.strangers.clone(),
        trouble: None,
    };
    daemon.resume(contents, first);
    Ok((daemon, events))
}

impl Daemon {
    async fn run(&mut self, events: &mut Events) -> Result<(), Error> {
        loop {
            let due = self.due();
            match events.next(due).await? {
                Event::End => {
                    tracing::info!("ending; leases, routes and proxy entries stay");
                    return Ok(());
                }
                event => self.handle(event)?,
            }
            let steps = self.state.tick(SystemTime::now());
            self.perform(steps);
            self.announce(false);
            if let Some(announcer) = &mut self.announcer {
                announcer.announce().await;
            }
        }
    }

    fn due(&self) -> Duration {
        let tick = self.state.next_tick().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let announcement = self.announcer.as_ref().and_then(Announcer::next);
        let announcement = announcement.map(|at| at.saturating_duration_since(Instant::now()));
        let due = [tick, announcement].into_iter().flatten().min().unwrap_or(LOOK_AROUND);
        // Not less: a timer that is due and does nothing must not take the processor.
        due.clamp(Duration::from_millis(5), LOOK_AROUND)
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Call(call) => self.call(call),
            Event::Inquiry(reply) => drop(reply.send(self.standing())), // who asked may have gone
            Event::Report(Report { vip, news }) => {
                tracing::info!(%vip, %news, "source");
                self.step(&vip, Input::News(news));
            }
            Event::Done(Done::Loaded(vip, found)) => self.loaded(&vip, found),
            Event::Done(Done::Saved(vip, number, result)) => {
                if self.hands.is_latest(&vip, number) {
                    self.step(&vip, Input::Saved(result));
                }
            }
            Event::Found(vip, address, found) => self.found(&vip, address, found),
            Event::Registry(batch) => {
                if let (true, Some(link)) = (batch.full, &self.link) {
                    // A start is the one way to bind everything to the new one; the service manager makes it.
                    uplink::check(&self.node, link)?;
                }
                self.present(batch);
            }
            Event::Stuck(vip, error) => {
                tracing::warn!(%vip, error = &error as &dyn std::error::Error, "routes not as they should be");
                self.step(&vip, Input::Stuck(with_causes(&error)));
            }
            Event::Time | Event::End => {}
        }
        Ok(())
    }

    /// Goes on with what is in use or was lately; forgets the rest.
    fn resume(&mut self, contents: Contents, first: Batch) {
        let now = SystemTime::now();
        for path in &self.strangers {
            tracing::warn!(path = %path.display(), "a file among the leases that belongs to no VIP");
        }
        let used: BTreeSet<_> = first.vips.iter().filter(|(_, p)| p.endpoints > 0).map(|(vip, _)| vip).collect();
        let mut steps = Vec::new();
        for (vip, record) in contents.records {
            let over = |left: SystemTime| left + self.hold <= now;
            // What the registry has of it could not be read if the batch isn't full: nothing follows from its absence.
            let unused = first.full && !used.contains(&vip);
            match record {
                Ok(record) if unused && record.left.is_some_and(over) => self.hands.erase(&vip),
                record => {
                    let record = record.map(Some).map_err(|error| with_causes(&error));
                    if let Err(error) = &record {
                        tracing::warn!(%vip, %error, "lease not understood");
                    }
                    steps.extend(self.state.step(&vip, Input::Loaded(record), now));
                }
            }
        }
        // All leases are known before the first address is asked for: none of them is given to another VIP.
        self.perform(steps);
        self.present(first);
    }

    /// `input` happened to `vip`; waits for the VIP's lease file if that has to be read first.
    fn step(&mut self, vip: &VipKey, input: Input) {
        if let Some(waiting) = self.unread.get_mut(vip) {
            return waiting.push(input);
        }
        let wanted = match &input {
            Input::Acquire(_) => true,
            Input::Present(presence) => presence.endpoints > 0,
            _ => false,
        };
        if wanted && self.state.needs_record(vip) {
            self.unread.insert(vip.clone(), vec![input]);
            return self.hands.load(vip);
        }
        self.advance(vip, input);
    }

    fn advance(&mut self, vip: &VipKey, input: Input) {
        let steps = self.state.step(vip, input, SystemTime::now());
        self.chronicle.look(&self.state, vip);
        self.perform(steps);
    }

    fn perform(&mut self, steps: Vec<Step>) {
        self.chronicle.steps(&self.state, &steps);
        self.hands.perform(&self.state, steps);
    }

    fn loaded(&mut self, vip: &VipKey, found: Result<Option<super::store::Record>, String>) {
        let waiting = self.unread.remove(vip).unwrap_or_default();
        for input in std::iter::once(Input::Loaded(found)).chain(waiting) {
            self.advance(vip, input);
        }
    }

    fn found(&mut self, vip: &VipKey, address: Ipv4Addr, found: Result<Findings, String>) {
        let mut findings = match found {
            Ok(findings) => findings,
            // It is tried again; whoever waits is told why it takes so long.
            Err(why) => return self.step(vip, Input::Stuck(format!("{address} could not be checked: {why}"))),
        };
        let other = self.state.addresses().find(|(taken, other)| *taken == address && *other != vip);
        if let Some((_, other)) = other {
            findings.conflicts.push(format!("{other} has it"));
        }
        tracing::info!(%vip, %address, conflicts = ?findings.conflicts, "searched for conflicts");
        self.step(vip, Input::Checked(address, findings));
    }

    fn present(&mut self, batch: Batch) {
        let full = batch.full;
        let gone: Vec<VipKey> = if full {
            let seen: BTreeSet<_> = batch.vips.iter().map(|(vip, _)| vip).collect();
            self.state.present().filter(|vip| !seen.contains(vip)).cloned().collect()
        } else {
            Vec::new()
        };
        let gone = gone.into_iter().map(|vip| (vip, Presence::default()));
        for (vip, presence) in batch.vips.into_iter().chain(gone) {
            self.step(&vip, Input::Present(presence));
        }
        self.announce(full);
    }

    /// Answers ARP for what is to be announced now.
    fn announce(&mut self, verify: bool) {
        let Some(announcer) = &mut self.announcer else { return };
        let result = announcer.set(&self.state.announced(), verify);
        let trouble = result.err().map(|error| format!("VIPs are not announced: {}", with_causes(&error)));
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::warn!("{trouble}");
        }
        self.trouble = trouble;
    }
}
