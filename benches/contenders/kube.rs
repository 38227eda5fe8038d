//! What both of kube-proxy's modes have in common: names, and the numbers in its rules.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use super::service;
use crate::stage::{POD_NET, World};

/// The bit that says "masquerade this".
pub const MASQUERADE: &str = "0x4000";
/// The pods' network in kube-proxy's configuration (`--cluster-cidr`): clients outside of it are masqueraded.
pub const CLUSTER: &str = POD_NET;

/// A port of a service and the pods behind it.
pub struct ServicePort {
    /// `bench/svc-17:http`
    pub name: String,
    pub address: Ipv4Addr,
    pub protocol: &'static str,
    pub endpoints: Vec<Ipv4Addr>,
}

/// So many TCP services, and UDP under the first one's address, in front of these pods.
pub fn ports(world: &World, services: usize, replicas: &[usize]) -> Vec<ServicePort> {
    let endpoints: Vec<Ipv4Addr> = replicas.iter().map(|at| world.pods[*at].address).collect();
    let port = |place: usize, protocol: &'static str| ServicePort {
        name: format!("bench/svc-{place}:{}", if protocol == "tcp" { "http" } else { "udp" }),
        address: service(place),
        protocol,
        endpoints: endpoints.clone(),
    };
    let mut ports: Vec<_> = (0..services).map(|place| port(place, "tcp")).collect();
    ports.push(port(0, "udp"));
    ports
}

/// 16 characters for `text` in a chain's name.
pub fn hash(text: &str) -> String {
    let digest = Sha256::digest(text);
    let first = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{first:016X}")
}
