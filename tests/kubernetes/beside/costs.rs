//! What a request costs by a Service's address, beside one to the pod's own: processor time of the whole machine, nodes, pods and client together.

use std::net::{IpAddr, SocketAddr};

use super::report::{self, Column};
use super::{Contender, Stage};
use crate::harness::{Connection, PORT};

const ROUNDS: usize = 11;
const REQUESTS: usize = 10_000;
/// Among so many connections each pod that can have one has one.
const CONNECTIONS: usize = 60;

#[test]
#[ignore = "./install.sh bench --kubernetes runs it"]
fn e_costs() {
    let contenders = [Contender::Viproute, Contender::MetalLb("Cluster"), Contender::MetalLb("Local")];
    report::write_costs(&contenders.map(|contender| Stage::new(contender).costs()));
}

/// A pod of the Service's.
struct Replica {
    node: String,
    name: String,
    address: IpAddr,
}

impl Stage {
    fn costs(&self) -> Column {
        let mut column = Column::new(self.contender.title());
        let announcer = self.cluster.workers[self.announcer()].name.clone();
        let (near, far): (Vec<_>, Vec<_>) = self.replicas().into_iter().partition(|replica| replica.node == announcer);
        for (line, pods) in [("a pod of the node that answers ARP", near), ("a pod of the other node", far)] {
            let ratio = self.ratio(&pods);
            column.say(line, ratio.map_or_else(|| "none has a connection".to_owned(), |ratio| format!("{ratio:.2} ×")));
        }
        column
    }

    fn replicas(&self) -> Vec<Replica> {
        let pods = self.cluster.control.get(&["pods", "--selector=app=web"]);
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let pods = pods["items"].as_array().expect("pods").iter().map(|pod| {
            let address = text(&pod["status"]["podIP"]).parse().expect("an address");
            Replica { node: text(&pod["spec"]["nodeName"]), name: text(&pod["metadata"]["name"]), address }
        });
        pods.collect()
    }

    /// How many requests by the VIP cost as much as one to the pod's own address: the median of the rounds. None: none of these pods has a
    /// connection by the VIP.
    fn ratio(&self, pods: &[Replica]) -> Option<f64> {
        let open =
            |to: IpAddr| self.cluster.client.run(|| Connection::open(SocketAddr::new(to, PORT)).expect("a connection"));
        let (mut by_vip, pod) = (0..CONNECTIONS).find_map(|_| {
            let mut connection = open(self.vip.into());
            let name = connection.ask().expect("an answer").name;
            Some((connection, pods.iter().find(|pod| pod.name == name)?))
        })?;
        let mut direct = open(pod.address);
        let mut ratios: Vec<f64> = (0..ROUNDS).map(|_| cost(&mut direct) / cost(&mut by_vip)).collect();
        ratios.sort_by(f64::total_cmp);
        Some(ratios[ROUNDS / 2])
    }
}

/// What requests one after the other cost, in the kernel's ticks.
fn cost(connection: &mut Connection) -> f64 {
    let before = busy();
    for _ in 0..REQUESTS {
        connection.ask().expect("an answer");
    }
    #[allow(clippy::cast_precision_loss)] // some hundred
    let ticks = (busy() - before) as f64;
    ticks.max(1.0)
}

/// Ticks in which a processor had something to do: user, nice, system, irq and softirq (proc(5), /proc/stat).
fn busy() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    [0, 1, 2, 5, 6].iter().map(|column| ticks[*column]).sum()
}
