//! kube-proxy's iptables mode: the rules it writes (chains, order, comments, marks, probabilities), loaded in one go as it
//! does on a full sync.

use std::fmt::{Result as Written, Write};
use std::net::SocketAddrV4;

use anyhow::{Context, Result};

use super::kube::{CLUSTER, MASQUERADE, ServicePort, hash, ports};
use super::{Contender, KUBE_IPTABLES, targets};
use crate::load::PORT;
use crate::stage::{Run, World};

#[derive(Default)]
pub struct KubeIptables {
    rules: String,
}

impl KubeIptables {
    fn load(&self, world: &World) -> Result<()> {
        world.node.cmd("iptables-restore").output_of(&self.rules).context("kube-proxy's rules").map(drop)
    }
}

impl Contender for KubeIptables {
    fn name(&self) -> &'static str {
        KUBE_IPTABLES
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

const FILTER: &str = "*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const NAT_HEAD: &str = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
";

fn rules(ports: &[ServicePort]) -> Result<String> {
    let mut text = FILTER.to_owned() + "*nat\n";
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        writeln!(text, ":{chain} - [0:0]")?;
    }
    for port in ports {
        writeln!(text, ":KUBE-SVC-{} - [0:0]", hash(&port.name))?;
        for at in 0..port.endpoints.len() {
            writeln!(text, ":KUBE-SEP-{} - [0:0]", endpoint(port, at))?;
        }
    }
    text.push_str(NAT_HEAD);
    writeln!(text, "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}")?;
    for port in ports {
        write_service(&mut text, port)?;
    }
    text.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
         chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    Ok(text)
}

fn endpoint(port: &ServicePort, at: usize) -> String {
    hash(&format!("{} {}", port.name, port.endpoints[at]))
}

fn write_service(text: &mut String, port: &ServicePort) -> Written {
    let ServicePort { name, address, protocol, endpoints } = port;
    let chain = hash(name);
    let matched = format!("-m {protocol} -p {protocol} -d {address}/32 --dport {PORT}");
    let comment = format!("-m comment --comment \"{name} cluster IP\"");
    writeln!(text, "-A KUBE-SERVICES {comment} {matched} -j KUBE-SVC-{chain}")?;
    writeln!(text, "-A KUBE-SVC-{chain} {comment} {matched} ! -s {CLUSTER} -j KUBE-MARK-MASQ")?;
    for (at, pod) in endpoints.iter().enumerate() {
        let endpoint = endpoint(port, at);
        write!(text, "-A KUBE-SVC-{chain} -m comment --comment \"{name} -> {pod}:{PORT}\"")?;
        let left = endpoints.len() - at;
        if left > 1 {
            write!(text, " -m statistic --mode random --probability {:.10}", 1.0 / left as f64)?;
        }
        writeln!(text, " -j KUBE-SEP-{endpoint}")?;
        writeln!(text, "-A KUBE-SEP-{endpoint} -m comment --comment {name} -s {pod}/32 -j KUBE-MARK-MASQ")?;
        writeln!(
            text,
            "-A KUBE-SEP-{endpoint} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT \
             --to-destination {pod}:{PORT}"
        )?;
    }
    Ok(())
}
