//! A contender in a world of its own, with servers in the pods.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};

use crate::contenders::Contender;
use crate::load::{Load, Server};
use crate::results::{Column, Outcome, Table, interleaved};
use crate::stage::{Netns, PodKind, World};

use super::Scale;

/// Fields are dropped in this order: whoever runs on the node ends before the node does.
pub struct Setup {
    pub contender: Box<dyn Contender>,
    pub servers: Server,
    pub world: World,
    /// Where clients connect.
    pub targets: Vec<SocketAddrV4>,
}

impl Setup {
    /// `services` services over `pods` pods. `number` makes the world's name one of its own.
    pub fn new(mut contender: Box<dyn Contender>, number: usize, services: usize, pods: usize) -> Result<Self> {
        let world = World::new(&format!("w{number}"), pods, PodKind::Connected)?;
        let servers = Server::start(&world.pods)?;
        let replicas: Vec<usize> = (0..pods).collect();
        let targets = contender.serve(&world, services, &replicas)?;
        contender.settle()?;
        Ok(Self { contender, servers, world, targets })
    }

    pub fn load<'a>(&'a self, from: &'a Netns, scale: &Scale, concurrency: usize) -> Load<'a> {
        Load { from, to: &self.targets, concurrency, time: scale.time }
    }
}

/// A setup, or why there is none.
pub struct Candidate {
    pub name: &'static str,
    pub setup: std::result::Result<Setup, String>,
}

/// Stands for these contenders.
pub fn set_up(contenders: Vec<Box<dyn Contender>>, services: usize, pods: usize) -> Vec<Candidate> {
    let candidate = |(number, contender): (usize, Box<dyn Contender>)| {
        let name = contender.name();
        let setup = Setup::new(contender, number, services, pods);
        Candidate { name, setup: setup.map_err(|error| format!("{error:#}")) }
    };
    contenders.into_iter().enumerate().map(candidate).collect()
}

/// Requests/s that the slowest of them carries, just now; `None`: none of them any.
pub fn slowest(candidates: &[Candidate], scale: &Scale, concurrency: usize) -> Option<f64> {
    let able = |candidate: &Candidate| {
        let setup = candidate.setup.as_ref().ok()?;
        setup.load(&setup.world.client, scale, concurrency).requests().ok()?.rate().ok()
    };
    candidates.iter().filter_map(able).reduce(f64::min)
}

/// Measures these columns for all of them in turn, in the state that lasts, and adds them to the table.
pub fn measure(
    table: &mut Table,
    candidates: &[Candidate],
    rounds: usize,
    columns: &[Column],
    one: impl Fn(&Setup) -> Result<Vec<f64>>,
) {
    let outcomes = interleaved(candidates.len(), rounds, |at| match &candidates[at].setup {
        Ok(setup) => {
            let numbers = one(setup)?;
            ensure!(setup.contender.is_settled()?, "measured while a change had its after-effects");
            Ok(numbers)
        }
        Err(reason) => Err(anyhow::anyhow!(reason.clone())),
    });
    let named = candidates.iter().zip(outcomes).map(|(candidate, outcome)| (candidate.name.to_owned(), outcome));
    table.add(columns, named.collect::<Vec<(String, Outcome)>>());
}
