//! Membership among nodes: who the others are, whether they live, and how many ready replicas of each VIP they have.
//!
//! [`key`], [`sessions`] and [`transport`] carry the gossip of chitchat, [`word`] is what nodes say by it, [`view`] what this one
//! makes of their silence, [`far`] which legs follow, [`records`] writes them down, [`leases`] says who renews which lease by
//! [`holding`] and [`note`], [`engine`] drives all of it.

mod engine;
mod far;
mod holding;
pub mod key;
mod leases;
mod names;
mod note;
mod open;
mod own_address;
mod permits;
mod rate;
mod records;
mod report;
mod sessions;
mod state;
mod transport;
mod view;
mod word;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

pub use holding::LeaseKey;
pub use leases::{Heard, Own};
pub use names::lookup;
pub use sessions::Drop;
pub use transport::read_anything;

use crate::api::protocol;
use crate::lease::beside::Beside;
use crate::lease::decider::message::Message;
use crate::lease::settings::Backend;
use crate::model::VipKey;
use crate::model::address::ipv6;
use crate::model::node::NodeId;
use crate::net::{self, NodeNet};
use crate::node::config::Config;
use crate::node::subsystems::{PEER_RECORDS, PEERS};
use crate::node::uplink;

use super::{Context, own_name};
use engine::Order;
use key::Keys;
use leases::Leases;
use records::Records;
use state::{Setup, State};
use word::Phase;

/// The others are told of a restart within this time.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why nodes can't know of each other.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key, no listening.
    #[error("[membership] in viprouted.toml")]
    Key(#[from] key::Error),
    /// The node has no name.
    #[error(
        "membership.name is missing: expected a name of lower-case letters, digits, '-' and '.', because the host name is {0:?}"
    )]
    Name(String),
    /// Nothing to work with in the kernel.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No thread.
    #[error("start the threads of the membership")]
    Io(#[from] io::Error),
    /// What an earlier configuration has left can't be removed.
    #[error("remove what is recorded of other nodes: {0}")]
    Former(String),
}

/// What viprouted's other parts know of it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    status: Option<protocol::Nodes>,
    dropped: Vec<(Drop, u64)>,
    orders: Option<tokio::sync::mpsc::UnboundedSender<Order>>,
}

impl Peers {
    /// This node and the others; none: it stands alone.
    pub fn status(&self) -> Option<protocol::Nodes> {
        self.shared().status.clone()
    }

    /// How many datagrams were dropped, by reason; none: nothing listens.
    pub fn dropped(&self) -> Vec<(Drop, u64)> {
        self.shared().dropped.clone()
    }

    /// Tells the others that this node leaves, until its viprouted starts again. False: it stands alone.
    pub fn leave(&self) -> bool {
        self.order(Order::Leave)
    }

    /// It has said that it leaves.
    pub fn has_left(&self) -> bool {
        self.shared()
            .status
            .as_ref()
            .and_then(|nodes| nodes.own.as_ref())
            .is_some_and(|own| own.state == Phase::Left.name())
    }

    /// It stays after all.
    pub fn stay(&self) {
        self.order(Order::Stay);
    }

    /// Tells the others that viprouted ends and comes back; returns once they know, or can't be told.
    pub fn restart(&self) {
        let (told, done) = mpsc::channel();
        if self.order(Order::Restart(told)) {
            let _ = done.recv_timeout(FAREWELL);
        }
    }

    /// Tells the others what this node has of a lease; none: nothing, and it wants nothing.
    pub fn tell_lease(&self, key: LeaseKey, own: Option<Own>) {
        self.order(Order::Lease(key, own));
    }

    /// Sends another node what there is to say about an address of the pool; it may be lost.
    pub fn send_pool(&self, to: NodeId, message: Message) {
        self.order(Order::Pool(to, message));
    }

    fn order(&self, order: Order) -> bool {
        self.shared().orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    fn publish(&self, status: protocol::Nodes, dropped: Vec<(Drop, u64)>) {
        let mut shared = self.shared();
        (shared.status, shared.dropped) = (Some(status), dropped);
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys of the configuration's file; none: the node stands alone.
pub fn keys(config: &Config) -> Result<Option<Keys>, Error> {
    Ok(config.membership.as_ref().map(|membership| Keys::read(&membership.key_file)).transpose()?)
}

/// What nodes hear of each other's leases; none: this node stands alone.
pub type OthersLeases = Option<tokio::sync::mpsc::UnboundedReceiver<Heard>>;

/// The IPv6 addresses that the configuration gives VIPs.
fn beside(config: &Config) -> Beside {
    let of_ipv6 = |(vip, pin): (&VipKey, &IpAddr)| Some((vip.clone(), ipv6(*pin)?));
    let leased = config.lease6.iter().flat_map(|lease| lease.pins.iter().filter_map(of_ipv6));
    let mut beside = config.lease.beside.clone();
    beside.pins.extend(leased);
    beside
}

/// Starts the threads. `cluster`: what sets the node's VIPs apart at a DHCP server.
pub fn start(context: &Context, config: &Config, cluster: Option<&str>) -> Result<OthersLeases, Error> {
    let (Some(membership), Some(keys)) = (config.membership.clone(), keys(config)?) else {
        return records::clear(&NodeNet::open()?, &context.registry).map(|()| None).map_err(Error::Former);
    };
    let name = own_name(membership.name.as_deref()).map_err(Error::Name)?;
    let pools = match &config.lease.backend {
        Backend::Pool(pools) => pools.networks(),
        Backend::Dhcp(_) => Vec::new(),
    };
    let (orders, heard) = tokio::sync::mpsc::unbounded_channel();
    let (updates, registry) = tokio::sync::mpsc::unbounded_channel();
    let (desired, wanted) = mpsc::channel();
    let setup = Setup {
        context: context.clone(),
        net: NodeNet::open()?,
        name,
        membership,
        keys,
        cluster: cluster.map(str::to_owned),
        allow: config.lease.allow.clone(),
        pools,
        beside: beside(config),
        leases_ipv6: config.lease6.is_some(),
        leases_on: config.interface6.clone().or_else(|| config.interface.clone()),
        own_link6: uplink::want_ipv6(config).and(config.interface6.clone()),
        desired,
    };
    context.peers.shared().orders = Some(orders);
    context.watch.subscribe(move |update| updates.send(update).is_ok());
    let records = Records::new(NodeNet::open()?, context);
    context.subsystems.spawn(&PEER_RECORDS, move |guard| records.run(&wanted, &guard))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, others) = tokio::sync::mpsc::unbounded_channel();
    let state = State::new(setup, Leases::new(Some(sender)));
    context.subsystems.spawn(&PEERS, move |guard| runtime.block_on(engine::run(state, (registry, heard), &guard)))?;
    Ok(Some(others))
}
