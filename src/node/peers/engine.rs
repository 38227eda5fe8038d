//! The loop: gossip, echoes and the registry come in; words, records and the status go out.

mod leases;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use chitchat::{ChitchatHandle, ChitchatId, spawn_chitchat};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::api::protocol::{NodeFinding, NodeFindingKind};
use crate::lease::decider::Members;
use crate::lease::decider::message::Message;
use crate::model::address::ipv6;
use crate::model::node::{ClusterNode, NodeId, OwnNode};
use crate::model::{Cluster, Family, VipKey};
use crate::net::echo::Echo;
use crate::node::Kind;
use crate::node::problems::MEMBERSHIP;
use crate::node::subsystems::SubsystemGuard;
use crate::registry::watch::Update;
use crate::with_causes;

use super::far;
use super::holding::LeaseKey;
use super::key::Keys;
use super::leases::Own;
use super::names::{Named, resolve};
use super::open::{Words, config, modified, read_words, remembered, words};
use super::own_address::OwnAddresses;
use super::permits::Permits;
use super::records::Desired;
use super::report;
use super::sessions::Sessions;
use super::state::{Setup, State};
use super::transport::{Keyed, Received};
use super::view::{Answers, Incarnation, Node, View};
use super::word::{self, Phase, Word};
use leases::obey_unheard;

/// Between two looks at the gossip.
const LOOK: Duration = Duration::from_millis(100);
/// Echoes are asked for every so many looks.
const ECHOES: u32 = 3;
/// What is slow is done every so many looks.
const SLOWLY: u32 = 10;
/// What can't be opened is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// The node's word reaches the others in a round of three datagrams.
const ROUND: Duration = Duration::from_millis(100);

/// What it is told to do.
#[derive(Debug)]
pub enum Order {
    /// To say that the node leaves.
    Leave,
    /// To say that it stays after all.
    Stay,
    /// To say what the node has of a lease; none: nothing, and it wants nothing.
    Lease(LeaseKey, Option<Own>),
    /// To send a note about an address of the pool.
    Pool(NodeId, Message),
    /// To say that viprouted ends, and when that is said.
    Restart(mpsc::Sender<()>),
}

/// What comes from viprouted's other parts.
type Inputs = (UnboundedReceiver<Update>, UnboundedReceiver<Order>);

/// Gossips for as long as the process lives. Where the node has no address it waits for one; where it gets another, it begins
/// anew.
pub async fn run(mut state: State, mut inputs: Inputs, guard: &SubsystemGuard) {
    // What this node has itself is known before anybody hears of it.
    loop {
        guard.turn();
        match tokio::time::timeout(AGAIN, inputs.0.recv()).await {
            Ok(Some(update)) => break drop(state.learn(&update)),
            Ok(None) => return,
            Err(_) => {}
        }
    }
    loop {
        guard.turn();
        match Engine::open(&state).await {
            Ok(mut engine) => {
                state.setup.context.problems.set(MEMBERSHIP, None);
                if let Err(why) = engine.run(&mut state, &mut inputs, guard).await {
                    tracing::warn!(why, "the gossip begins anew");
                }
                state.leases.on_members(Members::default());
            }
            Err(why) => state.setup.context.problems.set(MEMBERSHIP, Some(format!("other nodes aren't heard: {why}"))),
        }
        tokio::time::sleep(AGAIN).await;
        while let Ok(update) = inputs.0.try_recv() {
            state.learn(&update);
        }
        while let Ok(order) = inputs.1.try_recv() {
            obey_unheard(&mut state, order);
        }
    }
}

/// The gossip from one address.
struct Engine {
    own: OwnNode,
    socket: SocketAddr,
    addresses: OwnAddresses,
    keyed: Keyed,
    /// What other nodes ask and answer.
    notes: tokio::sync::mpsc::Receiver<Received>,
    chitchat: ChitchatHandle,
    echo: Echo,
    view: View,
    /// What was read of each process's state, by version.
    read: HashMap<ChitchatId, (u64, Option<Words>)>,
    echoed: BTreeSet<IpAddr>,
    heard: BTreeMap<NodeId, Instant>,
    /// Seeds by name, as they were resolved last.
    named: tokio::sync::watch::Receiver<Named>,
    looks: u32,
    /// What legs were worked out from last.
    seen: Option<u64>,
    /// What decided last who renews.
    seen_leases: u64,
    findings: BTreeSet<NodeFinding>,
    /// Those about VIPs' addresses.
    far: BTreeSet<String>,
    key_time: Option<SystemTime>,
    begun: Instant,
}

impl Engine {
    async fn open(state: &State) -> Result<Self, String> {
        let Setup { context, net, membership, keys, .. } = &state.setup;
        let addresses = OwnAddresses::find(net, membership, None)?;
        let OwnAddresses { gossip: address, tunnel } = addresses;
        let socket = SocketAddr::new(address, membership.port);
        let id = NodeId::of(address);
        let (name, left) = (state.setup.name.clone(), state.phase == Phase::Left);
        let own = OwnNode { id, name, tunnel, heard6: ipv6(address), left };
        let (keyed, notes) = Keyed::new(Sessions::new(keys.clone(), socket));
        let echo = Echo::open(address).map_err(|e| with_causes(&e))?;
        let view = View::new(id, remembered(context)?, Instant::now());
        let (literal, names): (Vec<_>, Vec<_>) =
            membership.seeds.iter().cloned().partition(|seed| seed.parse::<SocketAddr>().is_ok());
        let chitchat = spawn_chitchat(config(socket, literal), words(state, &own), &keyed).await;
        let chitchat = chitchat.map_err(|e| format!("UDP {socket}: {e:#}"))?;
        let key_time = modified(membership);
        Ok(Self {
            own,
            socket,
            addresses,
            keyed,
            notes,
            chitchat,
            echo,
            view,
            read: HashMap::new(),
            echoed: BTreeSet::new(),
            heard: BTreeMap::new(),
            named: resolve(names, Family::of(address)),
            looks: 0,
            seen: None,
            seen_leases: 0,
            findings: BTreeSet::new(),
            far: BTreeSet::new(),
            key_time,
            begun: Instant::now(),
        })
    }

    /// Until the node's address is another, or the socket is broken.
    async fn run(&mut self, state: &mut State, inputs: &mut Inputs, guard: &SubsystemGuard) -> Result<(), String> {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = self.chitchat.termination_watcher();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                update = inputs.0.recv() => match update {
                    Some(update) => self.update(state, &update).await,
                    None => return Err("viprouted ends".to_owned()),
                },
                Some(order) = inputs.1.recv() => self.obey(state, order).await,
                Some((from, note)) = self.notes.recv() => self.read_note(state, from, &note),
                from = self.echo.answer() => drop(self.echoed.insert(from)),
                result = &mut ended => return Err(format!("{result:?}")),
                _ = ticks.tick() => {
                    guard.turn();
                    self.look(state).await?;
                }
            }
        }
    }

    async fn update(&mut self, state: &mut State, update: &Update) {
        let changed = state.learn(update);
        self.tell(state, &changed).await;
        self.seen = None;
    }

    /// Tells the others of these VIPs.
    async fn tell(&self, state: &State, keys: &BTreeSet<VipKey>) {
        let said = keys.iter().map(|key| (word::key_of(key), state.share(key)));
        let said: Vec<_> = said.take(word::MAX_VIPS).collect();
        self.chitchat
            .with_chitchat(|chitchat| {
                let own = chitchat.self_node_state();
                for (key, share) in &said {
                    match share {
                        Some(share) => own.set(key, share),
                        None if own.contains_key(key) => own.delete(key),
                        None => {}
                    }
                }
            })
            .await;
    }

    async fn obey(&mut self, state: &mut State, order: Order) {
        let (phase, told) = match order {
            Order::Leave => (Phase::Left, None),
            Order::Stay => (Phase::Up, None),
            Order::Restart(told) => (Phase::Restarting, Some(told)),
            Order::Lease(key, own) => return self.tell_lease(state, &key, own).await,
            Order::Pool(to, message) => return self.send_note(to, &message.to_string()),
        };
        if state.phase != Phase::Left || phase == Phase::Up {
            state.phase = phase;
            self.own.left = phase == Phase::Left;
            self.seen = None;
        }
        let keys = state.own.keys().cloned().collect();
        self.tell(state, &keys).await;
        self.tell_of_itself(state).await;
        for node in self.view.nodes().values() {
            let _ = self.chitchat.gossip(self.heard_at(node.at));
        }
        if let Some(told) = told {
            tokio::time::sleep(ROUND).await;
            let _ = told.send(());
        }
    }

    async fn tell_of_itself(&self, state: &State) {
        let word = state.word(self.own.tunnel).to_string();
        // The same as before is no news.
        self.chitchat.with_chitchat(|chitchat| chitchat.self_node_state().set(word::NODE, &word)).await;
    }

    async fn look(&mut self, state: &mut State) -> Result<(), String> {
        self.looks = self.looks.wrapping_add(1);
        let incarnations = self.incarnations().await;
        let answers = self.answers(&incarnations);
        for event in self.view.step(Instant::now(), &incarnations, &answers) {
            tracing::info!("{event}");
            state.setup.context.journal.record(Kind::Node, None, event);
        }
        if self.looks.is_multiple_of(ECHOES) {
            let echo = &mut self.echo;
            self.view.nodes().values().for_each(|node| echo.ask(node.word.tunnel));
        }
        if self.seen != Some(self.view.changes()) {
            self.seen = Some(self.view.changes());
            self.work_out(state)?;
        }
        self.look_at_leases(state);
        if self.looks.is_multiple_of(SLOWLY) {
            self.slowly(state).await?;
        }
        self.publish(state);
        Ok(())
    }

    /// The gossip's processes, as far as what they say can be read. What hasn't changed isn't read again.
    async fn incarnations(&mut self) -> Vec<Incarnation> {
        let (read, own) = (&mut self.read, self.socket);
        self.chitchat
            .with_chitchat(|chitchat| {
                let live: BTreeSet<ChitchatId> = chitchat.live_nodes().cloned().collect();
                read.retain(|id, _| chitchat.node_state(id).is_some());
                let mut incarnations = Vec::new();
                for (id, state) in chitchat.node_states() {
                    let version = state.max_version();
                    let known = read.get(id).filter(|(known, _)| *known == version);
                    let word = known.map_or_else(|| read_words(id, state, own), |(_, word)| word.clone());
                    if known.is_none() {
                        read.insert(id.clone(), (version, word.clone()));
                    }
                    let Some((word, vips, leases)) = word else { continue };
                    let (at, generation, live) = (id.gossip_advertise_addr.ip(), id.generation_id, live.contains(id));
                    incarnations.push(Incarnation { id: NodeId::of(at), at, generation, live, word, vips, leases });
                }
                incarnations
            })
            .await
    }

    fn answers(&mut self, incarnations: &[Incarnation]) -> Answers {
        let echoed = std::mem::take(&mut self.echoed);
        let nodes = self.view.nodes();
        let is_echo = |node: &Node| echoed.contains(&node.word.tunnel);
        let echoed = nodes.iter().filter(|(_, node)| is_echo(node)).map(|(id, _)| *id).collect();
        let sessions = self.keyed.sessions();
        let known = nodes.iter().map(|(id, node)| (*id, node.at));
        let all = known.chain(incarnations.iter().map(|incarnation| (incarnation.id, incarnation.at)));
        let mut heard = BTreeSet::new();
        for (id, at) in all {
            let at = sessions.heard(SocketAddr::new(at, self.socket.port()));
            if let Some(at) = at.filter(|at| self.heard.get(&id) != Some(at)) {
                self.heard.insert(id, at);
                heard.insert(id);
            }
        }
        Answers { echoed, heard }
    }

    /// What follows for this node's records.
    fn work_out(&mut self, state: &State) -> Result<(), String> {
        let known = |(id, node): (&NodeId, &Node)| {
            let Word { name, tunnel, mac6, .. } = node.word.clone();
            ClusterNode { id: *id, name, number: node.number, tunnel, heard6: ipv6(node.at), mac6, state: node.state }
        };
        let cluster = Cluster::new(self.own.clone(), self.view.nodes().iter().map(known).collect());
        let cluster = cluster.map_err(|e| e.to_string())?;
        let mut permits = Permits::read(state, self.addresses.gossip, self.view.nodes())?;
        let far::Legs { vips, findings } =
            far::legs(self.view.nodes(), &state.own, |key, address| permits.refusal(key, address));
        self.far = findings;
        let node = self.addresses.source_of_vips(&state.setup.net).map_err(|e| with_causes(&e))?;
        let desired = Desired { cluster, vips, node };
        state.setup.desired.send(desired).map_err(|_| "the records' thread has ended".to_owned())
    }

    /// What needn't be done ten times a second.
    async fn slowly(&mut self, state: &mut State) -> Result<(), String> {
        let Setup { net, membership, .. } = &state.setup;
        if OwnAddresses::find(net, membership, Some(self.addresses))? != self.addresses {
            return Err(format!("{} is no longer the node's address", self.addresses.gossip));
        }
        let key_time = modified(membership);
        if key_time != self.key_time {
            self.key_time = key_time;
            match Keys::read(&membership.key_file) {
                Ok(keys) => {
                    tracing::info!(path = %membership.key_file.display(), "keys read again");
                    self.keyed.sessions().change_keys(keys.clone());
                    state.setup.keys = keys;
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the keys stay as they were"),
            }
        }
        // A link made anew has another Ethernet address.
        self.tell_of_itself(state).await;
        // chitchat looks names up at its start and once a minute.
        let named = self.named.borrow().addresses.clone();
        let silent = |seed: &SocketAddr| {
            let heard = self.keyed.sessions().heard(*seed);
            *seed != self.socket && heard.is_none_or(|heard| heard.elapsed() > AGAIN * 2)
        };
        for seed in named.into_iter().filter(silent) {
            let _ = self.chitchat.gossip(seed);
        }
        let findings = self.findings(state).await;
        for finding in findings.difference(&self.findings) {
            tracing::warn!("{}", finding.text);
            state.setup.context.journal.record(Kind::Trouble, None, finding.text.as_str());
        }
        self.findings = findings;
        Ok(())
    }

    async fn findings(&self, state: &State) -> BTreeSet<NodeFinding> {
        let seeds: BTreeSet<SocketAddr> = self
            .chitchat
            .with_chitchat(|chitchat| chitchat.seed_nodes())
            .await
            .into_iter()
            .chain(self.named.borrow().addresses.iter().copied())
            .filter(|seed| *seed != self.socket)
            .collect();
        let word = state.word(self.own.tunnel);
        let sessions = self.keyed.sessions();
        let gossip = report::Gossip { net: &state.setup.net, sessions: &sessions, seeds: &seeds, since: self.begun };
        let mut findings = report::findings(&self.own, &word, &self.view, &gossip);
        let of_address = |text: &String| NodeFinding { kind: NodeFindingKind::Address, text: text.clone() };
        findings.extend(self.far.iter().map(of_address));
        findings.extend(report::of_families(&self.named.borrow().of_other_family, self.addresses.gossip));
        findings.extend(report::of_underlay(state, &self.own, &self.view));
        findings.extend(report::of_sources(&state.setup, &self.own, &self.view));
        findings
    }

    fn publish(&self, state: &State) {
        let dropped = self.keyed.sessions().dropped().collect();
        let status = report::status(&self.own, state, &self.view, &self.findings);
        state.setup.context.peers.publish(status, dropped);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.chitchat.abort();
    }
}
