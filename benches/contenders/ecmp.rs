//! A plain multipath route to the pods, which have the service's address on their loopback. What routing alone does: for comparison
//! where live connections are counted.

use std::fmt::Write;
use std::net::SocketAddrV4;

use anyhow::Result;

use super::{Contender, ECMP, service, targets};
use crate::stage::World;

pub struct Ecmp;

impl Contender for Ecmp {
    fn name(&self) -> &'static str {
        ECMP
    }

    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        // By addresses and ports, as it is usually set.
        world.node.set_sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        let mut routes = String::new();
        for place in 0..services {
            write!(routes, "route replace {}/32", service(place))?;
            for pod in replicas.iter().map(|at| &world.pods[*at]) {
                write!(routes, " nexthop via {} dev {} onlink", pod.address, pod.host)?;
            }
            routes.push('\n');
        }
        for pod in replicas.iter().map(|at| &world.pods[*at]) {
            let addresses = (0..services).map(|place| format!("addr replace {}/32 dev lo\n", service(place)));
            pod.ns.ip_lines(&addresses.collect::<Vec<_>>().concat())?;
        }
        world.node.ip_lines(&routes)?;
        Ok(targets(services))
    }

    fn restart(&mut self, _world: &World) -> Result<Option<&'static str>> {
        Ok(Some("nothing runs"))
    }
}
