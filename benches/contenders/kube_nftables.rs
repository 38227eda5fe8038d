//! kube-proxy's nftables mode: its table, chains, sets and verdict maps, loaded in one transaction as it does on a full sync.

use std::fmt::{Result as Written, Write};
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};

use super::kube::{CLUSTER, ServicePort, hash, ports};
use super::{Contender, KUBE_NFTABLES, targets};
use crate::load::PORT;
use crate::stage::{Netns, Run, World};

#[derive(Default)]
pub struct KubeNftables {
    rules: String,
}

impl KubeNftables {
    fn load(&self, world: &World) -> Result<()> {
        world.node.cmd("nft").args(["-f", "-"]).output_of(&self.rules).context("kube-proxy's rules").map(drop)
    }
}

impl Contender for KubeNftables {
    fn name(&self) -> &'static str {
        KUBE_NFTABLES
    }

    fn serve(&mut self, world: &World, services: usize, replicas: &[usize]) -> Result<Vec<SocketAddrV4>> {
        self.rules = rules(&ports(world, services, replicas))?;
        self.load(world)?;
        Ok(targets(services))
    }

    fn has_kube_rules(&self) -> bool {
        true
    }

    /// A new kube-proxy writes all rules anew; connections are in the kernel's table.
    fn restart(&mut self, world: &World) -> Result<Option<&'static str>> {
        self.load(world).map(|()| None)
    }
}

/// What a Kubernetes node has beside any other path: these rules, for services that aren't measured, and with them connection
/// tracking of all that passes.
pub fn track_connections(world: &World) -> Result<()> {
    let replicas: Vec<usize> = (0..world.pods.len()).collect();
    let mut ports = ports(world, OTHERS, &replicas);
    for port in &mut ports {
        port.address = Ipv4Addr::from(u32::from(port.address) + (1 << 16));
    }
    KubeNftables { rules: rules(&ports)? }.load(world)
}

/// One service in front of these pods, on that node.
pub fn dnat_to(node: &Netns, address: Ipv4Addr, pods: &[Ipv4Addr]) -> Result<()> {
    let port = ServicePort { name: "bench/web:http".to_owned(), address, protocol: "tcp", endpoints: pods.to_vec() };
    node.cmd("nft").args(["-f", "-"]).output_of(&rules(&[port])?).context("kube-proxy's rules").map(drop)
}

/// How many services those are.
const OTHERS: usize = 10;

/// All but the services'. The first two lines delete what was there, in the same transaction.
const BASE: &str = "add table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {
  set cluster-ips { type ipv4_addr; comment \"Active ClusterIPs\"; }
  set nodeport-ips { type ipv4_addr; comment \"IPs that accept NodePort traffic\"; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }
  chain filter-prerouting-pre-dnat {
    type filter hook prerouting priority dstnat - 10;
    ct state new jump firewall-check
  }
  chain filter-output-pre-dnat {
    type filter hook output priority -110;
    ct state new jump firewall-check
  }
  chain filter-input {
    type filter hook input priority filter;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority filter;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority filter;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
  chain reject-chain { reject; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain cluster-ips-check { ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"; }
  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }
";

fn rules(ports: &[ServicePort]) -> Result<String> {
    let mut text = BASE.to_owned();
    for port in ports {
        write_service(&mut text, port)?;
    }
    text.push_str("}\n");
    let tcp = ports.iter().filter(|port| port.protocol == "tcp");
    let addresses: Vec<_> = tcp.map(|port| port.address.to_string()).collect();
    writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", addresses.join(", "))?;
    let verdict =
        |port: &ServicePort| format!("{} . {} . {PORT} : goto service-{}", port.address, port.protocol, chain(port));
    let verdicts: Vec<_> = ports.iter().map(verdict).collect();
    writeln!(text, "add element ip kube-proxy service-ips {{ {} }}", verdicts.join(", "))?;
    Ok(text)
}

/// `ULMVA6XW-bench/svc-17/tcp/http`
fn chain(port: &ServicePort) -> String {
    let ServicePort { name, protocol, .. } = port;
    let (service, name_of_port) = name.split_once(':').unwrap_or((name, ""));
    format!("{}-{service}/{protocol}/{name_of_port}", &hash(name)[..8])
}

fn endpoint(port: &ServicePort, at: usize) -> String {
    let pod = port.endpoints[at];
    format!("endpoint-{}-{}__{pod}/{PORT}", &hash(&format!("{} {pod}", port.name))[..8], &chain(port)[9..])
}

fn write_service(text: &mut String, port: &ServicePort) -> Written {
    let ServicePort { address, protocol, endpoints, .. } = port;
    for (at, pod) in endpoints.iter().enumerate() {
        writeln!(text, "  chain {} {{", endpoint(port, at))?;
        writeln!(text, "    ip saddr {pod} jump mark-for-masquerade")?;
        writeln!(text, "    meta l4proto {protocol} dnat to {pod}:{PORT}\n  }}")?;
    }
    writeln!(text, "  chain service-{} {{", chain(port))?;
    writeln!(text, "    ip daddr {address} {protocol} dport {PORT} ip saddr != {CLUSTER} jump mark-for-masquerade")?;
    let verdicts: Vec<_> = (0..endpoints.len()).map(|at| format!("{at} : goto {}", endpoint(port, at))).collect();
    writeln!(text, "    numgen random mod {} vmap {{ {} }}\n  }}", endpoints.len(), verdicts.join(", "))
}
