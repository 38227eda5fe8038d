//! The pods' own addresses, in turn: what a path can cost at least.

use std::net::SocketAddrV4;

use anyhow::Result;

use super::{Contender, DIRECT};
use crate::load::PORT;
use crate::stage::World;

pub struct Direct;

impl Contender for Direct {
    fn name(&self) -> &'static str {
        DIRECT
    }

    fn datagrams<'a>(&self, targets: &'a [SocketAddrV4]) -> std::result::Result<&'a [SocketAddrV4], &'static str> {
        Ok(targets)
    }

    fn serve(&mut self, world: &World, _services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        Ok(replicas.iter().map(|at| SocketAddrV4::new(world.pods[*at].address, PORT)).collect())
    }

    fn restart(&mut self, _world: &World) -> Result<Option<&'static str>> {
        Ok(Some("nothing runs"))
    }
}
