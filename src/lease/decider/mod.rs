//! Who decides which address of the pool a VIP has.
//!
//! A node that stands alone decides for itself ([`super::source`]). Of nodes that know each other one decides for all, always the
//! same: the one of the lowest address among `membership.seeds`. Whoever lives can't be the measure: two halves of a partition would
//! have one each, and give one address to two VIPs. While that node isn't heard, no VIP that is new on a node gets an address there.

mod keeper;
pub mod message;
pub mod register;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::model::VipKey;
use crate::model::address::ipv4;
use crate::model::node::NodeId;

use super::clock;
use super::grant::{Lease, News};
use super::pools::Pools;
use keeper::{Claim, Keeper, Step};
use message::{Message, What};
use register::Register;

/// A question is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// And after a refusal after this.
const REFUSED: Duration = Duration::from_secs(2);
/// The node that decides says within two seconds what it waits for; one that says nothing isn't there.
const SILENT: Duration = Duration::from_secs(4);

/// Decides which address of the pool a VIP has.
pub trait Decider: fmt::Debug + Send {
    /// A VIP is to have an address, the remembered one if that can be. `others`: the addresses of all other VIPs of this node.
    /// `None`: the answer follows as a report.
    fn ask(&mut self, vip: &VipKey, remembered: Option<IpAddr>, others: &BTreeSet<IpAddr>) -> Option<News>;
    /// The address given is in conflict here: another one.
    fn another(&mut self, vip: &VipKey, others: &BTreeSet<IpAddr>) -> Option<News>;
    /// The VIP needs its address no longer.
    fn stop(&mut self, vip: &VipKey);
}

/// What is asked of the node that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// An address for a VIP, the remembered one first.
    Ask(VipKey, Option<IpAddr>),
    /// Another one than it was given.
    Another(VipKey),
    /// None any more.
    Stop(VipKey),
}

/// Has another node decide. The orders' reader does what is left to do ([`PoolClaims`]).
#[derive(Debug)]
pub struct Remote(pub UnboundedSender<Order>);

impl Decider for Remote {
    fn ask(&mut self, vip: &VipKey, remembered: Option<IpAddr>, _: &BTreeSet<IpAddr>) -> Option<News> {
        self.order(Order::Ask(vip.clone(), remembered))
    }

    fn another(&mut self, vip: &VipKey, _: &BTreeSet<IpAddr>) -> Option<News> {
        self.order(Order::Another(vip.clone()))
    }

    fn stop(&mut self, vip: &VipKey) {
        self.order(Order::Stop(vip.clone()));
    }
}

impl Remote {
    fn order(&self, order: Order) -> Option<News> {
        // Its reader is gone only while viprouted ends.
        let _ = self.0.send(order);
        None
    }
}

/// What this node's VIPs have.
pub trait Uses {
    /// Another VIP than `vip` that has `address` here.
    fn holder(&self, address: IpAddr, vip: &VipKey) -> Option<VipKey>;
    /// Whether the VIP has an address here, or wants one.
    fn has(&self, vip: &VipKey) -> bool;
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// To send a message.
    Send(NodeId, Message),
    /// To write the register to disk; the number comes back with the result.
    Save(u64, Register),
    /// To report what has become of a VIP's address.
    Report(VipKey, News),
}

/// This node and the others that live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// This node; none: it has no address yet by which others would hear it.
    pub own: Option<NodeId>,
    /// The others.
    pub others: BTreeSet<NodeId>,
}

/// With what a node takes part.
#[derive(Debug)]
pub struct Setup {
    /// The pools; none: this node's addresses come from elsewhere.
    pub pools: Option<Pools>,
    /// Pinned addresses.
    pub pins: BTreeSet<IpAddr>,
    /// Where the node is heard that decides; none: no seed is an address.
    pub decides: Option<IpAddr>,
    /// The register of this node, or why it can't be read.
    pub register: Result<Register, String>,
}

impl Setup {
    /// The node that decides.
    fn decider(&self) -> Option<NodeId> {
        self.decides.map(NodeId::of)
    }
}

/// This node's part in it: it asks the node that decides, says what it has itself, and may be the one that decides.
#[derive(Debug)]
pub struct PoolClaims {
    setup: Setup,
    members: Members,
    keeper: Option<Keeper>,
    open: BTreeMap<VipKey, Open>,
    numbers: u64,
}

/// A VIP that has, or is to have, an address of the pool.
#[derive(Debug)]
struct Open {
    number: u64,
    remembered: Option<Ipv4Addr>,
    unfit: Option<Ipv4Addr>,
    granted: Option<Ipv4Addr>,
    /// When it is to be asked, while nothing is granted.
    due: Instant,
    /// When to say that there is no answer.
    explain: Instant,
}

impl PoolClaims {
    /// With no VIP yet.
    pub fn new(setup: Setup) -> Self {
        // Answers to the process before are none to this one.
        let numbers = u64::from(rand::random::<u32>()) << 16;
        Self { setup, members: Members::default(), keeper: None, open: BTreeMap::new(), numbers }
    }

    /// The nodes have changed.
    pub fn on_members(&mut self, members: Members, now: Instant) {
        self.members = members;
        let is_own = self.members.own.is_some() && self.members.own == self.setup.decider();
        if let (true, None, Some(pools), Ok(register)) = (is_own, &self.keeper, &self.setup.pools, &self.setup.register)
        {
            self.keeper = Some(Keeper::new(pools.clone(), self.setup.pins.clone(), register.clone(), now));
        }
    }

    /// What this node's VIPs want.
    pub fn order(&mut self, order: Order, uses: &dyn Uses, now: Instant) -> Vec<Out> {
        let (vip, remembered, unfit) = match order {
            Order::Stop(vip) => {
                self.open.remove(&vip);
                return Vec::new();
            }
            Order::Ask(vip, remembered) => (vip, remembered.and_then(ipv4), None),
            Order::Another(vip) => {
                let unfit = self.open.get(&vip).and_then(|open| open.granted);
                (vip, None, unfit)
            }
        };
        self.numbers += 1;
        let open = Open { number: self.numbers, remembered, unfit, granted: None, due: now, explain: now + SILENT };
        self.open.insert(vip, open);
        self.tick(uses, now)
    }

    /// It is `now`: asks what is to be asked.
    pub fn tick(&mut self, uses: &dyn Uses, now: Instant) -> Vec<Out> {
        let mut out = Vec::new();
        let (decides, silent) = (self.decides(), silent(&self.setup));
        for (vip, open) in self.open.iter_mut().filter(|(_, open)| open.granted.is_none() && open.due <= now) {
            open.due = now + ASK_AGAIN;
            match &decides {
                Ok(node) => {
                    if now >= open.explain {
                        open.explain = now + SILENT;
                        let why = silent.clone();
                        out.push(Out::Report(vip.clone(), News::Trouble { why, exhausted: false }));
                    }
                    let what = What::Claim { remembered: open.remembered, unfit: open.unfit };
                    out.push(Out::Send(*node, Message { number: open.number, vip: vip.clone(), what }));
                }
                Err(why) => {
                    open.due = now + REFUSED;
                    out.push(Out::Report(vip.clone(), News::Trouble { why: why.clone(), exhausted: false }));
                }
            }
        }
        let nodes = self.nodes();
        if let Some(keeper) = &mut self.keeper {
            keeper.tick(&mut Step { nodes: &nodes, now, out: &mut out });
        }
        self.delivered(out, uses, now)
    }

    /// What is given out, as far as this node decides that.
    pub fn given(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.keeper.iter().flat_map(Keeper::given)
    }

    /// When [`PoolClaims::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Instant> {
        let open = self.open.values().filter(|open| open.granted.is_none()).map(|open| open.due);
        open.chain(self.keeper.as_ref().and_then(Keeper::next_tick)).min()
    }

    /// The register is on disk, or why not.
    pub fn saved(&mut self, number: u64, result: &Result<(), String>, uses: &dyn Uses, now: Instant) -> Vec<Out> {
        let mut out = Vec::new();
        if let Some(keeper) = &mut self.keeper {
            keeper.saved(number, result, &mut out);
        }
        self.delivered(out, uses, now)
    }

    /// Another node says something.
    pub fn on_message(&mut self, from: NodeId, message: Message, uses: &dyn Uses, now: Instant) -> Vec<Out> {
        let mut out = Vec::new();
        self.take((from, message), uses, now, &mut out);
        self.delivered(out, uses, now)
    }

    /// Without what is for this node itself: that is done at once.
    fn delivered(&mut self, out: Vec<Out>, uses: &dyn Uses, now: Instant) -> Vec<Out> {
        let (mut rest, mut queue) = (Vec::new(), std::collections::VecDeque::from(out));
        while let Some(next) = queue.pop_front() {
            match next {
                Out::Send(to, message) if Some(to) == self.members.own => {
                    let mut more = Vec::new();
                    self.take((to, message), uses, now, &mut more);
                    queue.extend(more);
                }
                other => rest.push(other),
            }
        }
        rest
    }

    fn take(&mut self, (from, message): (NodeId, Message), uses: &dyn Uses, now: Instant, out: &mut Vec<Out>) {
        let Message { number, vip, what } = message;
        let nodes = self.nodes();
        let answer = |what| Out::Send(from, Message { number, vip: vip.clone(), what });
        match what {
            What::Claim { remembered, unfit } => {
                if let Some(keeper) = &mut self.keeper {
                    let claim = Claim { from, number, vip, remembered, unfit };
                    return keeper.claim(claim, &mut Step { nodes: &nodes, now, out });
                }
                let why = why_not(&self.setup, self.members.own);
                out.push(answer(What::not_now(&why)));
            }
            What::May(address) => out.push(match uses.holder(IpAddr::V4(address), &vip) {
                Some(other) => answer(What::Taken(address, other)),
                None => answer(What::Fine(address)),
            }),
            What::Has => {
                let has = self.open.contains_key(&vip) || uses.has(&vip);
                out.push(answer(if has { What::HasIt } else { What::HasNot }));
            }
            What::Granted(address) => {
                if let Some(open) = self.asked((from, number), &vip) {
                    open.granted = Some(address);
                    let lease = Lease::permanent(address.into(), clock::now());
                    out.push(Out::Report(vip, News::Bound(lease)));
                }
            }
            What::Refused { exhausted, why } => {
                if let Some(open) = self.asked((from, number), &vip) {
                    (open.due, open.explain) = (now + REFUSED, now + SILENT);
                    out.push(Out::Report(vip, News::Trouble { why, exhausted }));
                }
            }
            What::Fine(_) | What::Taken(..) | What::HasIt | What::HasNot => {
                let Some(keeper) = &mut self.keeper else { return };
                let mut step = Step { nodes: &nodes, now, out };
                match what {
                    What::Fine(_) => keeper.on_verdict(from, (number, &vip), None, &mut step),
                    What::Taken(_, other) => keeper.on_verdict(from, (number, &vip), Some(&other), &mut step),
                    has => keeper.on_review(from, (number, vip), has == What::HasIt, step.out),
                }
            }
        }
    }

    /// The VIP for which that was asked, of that node, and nothing is granted yet.
    fn asked(&mut self, (of, number): (NodeId, u64), vip: &VipKey) -> Option<&mut Open> {
        let is_decider = Some(of) == self.setup.decider();
        self.open.get_mut(vip).filter(|open| is_decider && open.number == number && open.granted.is_none())
    }

    /// Who decides, if it is heard; else why no address can be had, and what to do.
    fn decides(&self) -> Result<NodeId, String> {
        let Some(decides) = self.setup.decider() else {
            return Err("the pool's addresses are given out by the lowest of membership.seeds, none of which is an address: name one \
                        node there by its address, the same on all nodes"
                .to_owned());
        };
        if self.members.own == Some(decides) || self.members.others.contains(&decides) {
            return Ok(decides);
        }
        Err(silent(&self.setup))
    }

    fn nodes(&self) -> BTreeSet<NodeId> {
        self.members.others.iter().copied().chain(self.members.own).collect()
    }
}

/// Why no address can be had while the node that decides is silent.
fn silent(setup: &Setup) -> String {
    let decides = setup.decides.map_or_else(|| "no node".to_owned(), |decides| decides.to_string());
    format!(
        "{decides} gives out the pool's addresses, as the lowest of membership.seeds, and isn't heard: see that viprouted runs there \
         and that nothing is between the nodes (viproutectl nodes)"
    )
}

/// Why this node can't give out an address.
fn why_not(setup: &Setup, own: Option<NodeId>) -> String {
    let node = own.map_or_else(|| "that node".to_owned(), |own| own.to_string());
    let is_own = own.is_some() && own == setup.decider();
    match (&setup.pools, &setup.register) {
        (Some(_), Err(why)) if is_own => format!("{node} can't read its register of the pool: {why}"),
        (None, _) if is_own => {
            format!("{node} gives out the pool's addresses, and its backend isn't \"pool\": let it be on all nodes")
        }
        _ => {
            let by = setup.decides.map_or_else(|| "no node".to_owned(), |decides| decides.to_string());
            format!(
                "by the membership.seeds of {node}, {by} gives out the pool's addresses: let the seeds be the same on all nodes"
            )
        }
    }
}

#[cfg(test)]
mod tests;
