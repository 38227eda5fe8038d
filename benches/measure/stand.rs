//! A contender in a world of its own, with servers in the pods.

use std::net::SocketAddrV4;

use anyhow::Result;

use crate::contenders::Contender;
use crate::load::{Load, Server};
use crate::results::{Column, Outcome, Table, interleaved};
use crate::stage::{Ns, PodKind, World};

use super::Scale;

/// Fields are dropped in this order: whoever runs on the node ends before the node does.
pub struct Stand {
    pub contender: Box<dyn Contender>,
    pub servers: Server,
    pub world: World,
    /// Where clients connect.
    pub targets: Vec<SocketAddrV4>,
}

impl Stand {
    /// `services` services over `pods` pods. `number` makes the world's name one of its own.
    pub fn new(mut contender: Box<dyn Contender>, number: usize, services: usize, pods: usize) -> Result<Self> {
        let world = World::new(&format!("w{number}"), pods, PodKind::Connected)?;
        let servers = Server::start(&world.pods)?;
        let replicas: Vec<usize> = (0..pods).collect();
        let targets = contender.serve(&world, services, &replicas)?;
        Ok(Self { contender, servers, world, targets })
    }

    /// As many services.
    pub fn serve(&mut self, services: usize) -> Result<()> {
        let replicas: Vec<usize> = (0..self.world.pods.len()).collect();
        self.targets = self.contender.serve(&self.world, services, &replicas)?;
        Ok(())
    }

    pub fn load<'a>(&'a self, from: &'a Ns, scale: &Scale, concurrency: usize) -> Load<'a> {
        Load { from, to: &self.targets, concurrency, time: scale.time }
    }
}

/// A stand, or why there is none.
pub struct Entrant {
    pub name: &'static str,
    pub stand: std::result::Result<Stand, String>,
}

/// Stands for these contenders.
pub fn enter(contenders: Vec<Box<dyn Contender>>, services: usize, pods: usize) -> Vec<Entrant> {
    let entrant = |(number, contender): (usize, Box<dyn Contender>)| {
        let name = contender.name();
        let stand = Stand::new(contender, number, services, pods);
        Entrant { name, stand: stand.map_err(|error| format!("{error:#}")) }
    };
    contenders.into_iter().enumerate().map(entrant).collect()
}

/// Requests/s that the slowest of them carries, just now; `None`: none of them any.
pub fn slowest(entrants: &[Entrant], scale: &Scale, concurrency: usize) -> Option<f64> {
    let able = |entrant: &Entrant| {
        let stand = entrant.stand.as_ref().ok()?;
        stand.load(&stand.world.client, scale, concurrency).requests().ok()?.rate().ok()
    };
    entrants.iter().filter_map(able).reduce(f64::min)
}

/// Does `change` on every stand; one that fails is none any more.
pub fn change_all(entrants: &mut [Entrant], change: impl Fn(&mut Stand) -> Result<()>) {
    for entrant in entrants {
        if let Ok(stand) = &mut entrant.stand
            && let Err(error) = change(stand)
        {
            entrant.stand = Err(format!("{error:#}"));
        }
    }
}

/// Measures these columns for all of them in turn, and adds them to the table.
pub fn measure(
    table: &mut Table,
    entrants: &[Entrant],
    rounds: usize,
    columns: &[Column],
    one: impl Fn(&Stand) -> Result<Vec<f64>>,
) {
    let outcomes = interleaved(entrants.len(), rounds, |at| match &entrants[at].stand {
        Ok(stand) => one(stand),
        Err(reason) => Err(anyhow::anyhow!(reason.clone())),
    });
    let named = entrants.iter().zip(outcomes).map(|(entrant, outcome)| (entrant.name.to_owned(), outcome));
    table.add(columns, named.collect::<Vec<(String, Outcome)>>());
}
