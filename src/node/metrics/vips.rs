//! What is read of each VIP: replicas, traffic, buckets, the flow owner's counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::VipKey;
use crate::net::link::{self, Link};
use crate::net::removed_links::RemovedLinks;
use crate::net::{self, NodeNet, nexthop};
use crate::node::Context;
use crate::registry::{Replica, State, VipRecord, nodes};
use crate::{dataplane, ebpf, with_causes};

use super::page::Page;
use super::traffic::{Links, Meter, Volume};

const VIP: [&str; 2] = ["namespace", "vip"];

/// A VIP as the registry has it.
#[derive(Debug)]
struct Vip {
    key: VipKey,
    record: VipRecord,
    replicas: Vec<Replica>,
}

/// Reads VIPs; keeps traffic totals between two scrapes.
#[derive(Debug)]
pub struct Reader {
    context: Context,
    net: NodeNet,
    removed_links: RemovedLinks,
    meter: Meter,
    /// The VIPs there were when the registry was last read.
    known: BTreeSet<VipKey>,
    /// Since the page was begun: what could not be read.
    problems: Vec<String>,
}

impl Reader {
    /// Traffic is counted from now on.
    pub fn open(context: &Context) -> net::Result<Self> {
        let removed_links = RemovedLinks::open()?;
        let net = NodeNet::open()?;
        let meter = Meter::new(&volumes(&link::list(&net)?));
        Ok(Self { context: context.clone(), net, removed_links, meter, known: BTreeSet::new(), problems: Vec::new() })
    }

    /// Samples the traffic, so that little of a replica that leaves goes uncounted.
    pub fn sample(&mut self) {
        self.read();
        for problem in self.problems.drain(..) {
            tracing::debug!(problem, "traffic not measured");
        }
    }

    /// Writes all VIPs on the page; returns what could not be read.
    pub fn write(&mut self, page: &Page) -> prometheus::Result<Vec<String>> {
        let vips = self.read();
        write_replicas(page, &vips)?;
        self.write_traffic(page, &vips)?;
        self.write_express(page, &vips)?;
        self.write_uplinks(page)?;
        self.write_buckets(page, &vips)?;
        self.write_owner(page, &vips)?;
        self.write_tunnel(page, &vips)?;
        Ok(std::mem::take(&mut self.problems))
    }

    /// The VIPs as they are, their traffic added up.
    fn read(&mut self) -> Vec<Vip> {
        let Context { registry, counters, .. } = &self.context;
        let keys: BTreeSet<VipKey> = match registry.vips() {
            Ok(keys) => keys.into_iter().collect(),
            Err(e) => {
                self.problems.push(with_causes(&e));
                return Vec::new();
            }
        };
        let mut vips = Vec::new();
        for key in &keys {
            match (registry.vip_record(key), registry.replicas(key)) {
                (Ok(Some(record)), Ok(replicas)) => {
                    vips.push(Vip { key: key.clone(), record, replicas: replicas.into_values().collect() });
                }
                (Ok(None), _) => {} // being made or removed
                (Err(e), _) | (_, Err(e)) => self.problems.push(with_causes(&e)),
            }
        }
        for key in &keys {
            counters.know(key);
        }
        for key in self.known.difference(&keys) {
            counters.forget(key);
        }
        self.known = keys;
        self.measure(&vips);
        vips
    }

    fn measure(&mut self, vips: &[Vip]) {
        let mut links = match link::list(&self.net) {
            Ok(links) => volumes(&links),
            Err(e) => return self.problems.push(with_causes(&e)),
        };
        // After the list, of which some may have gone by now.
        let mut removed = volumes(&self.removed_links.take());
        links.retain(|index, _| !removed.contains_key(index));
        let dirs: BTreeSet<_> = vips.iter().filter_map(|vip| vip.record.flow_owner.as_deref()).collect();
        let mut counted: BTreeSet<u32> = self.meter.counted().chain(removed.keys().copied()).collect();
        counted.extend(vips.iter().flat_map(|vip| &vip.replicas).map(|replica| replica.ifindex));
        for dir in dirs {
            match ebpf::express_counts(dir, &counted) {
                Ok(counts) => counts.into_iter().for_each(|(index, counts)| {
                    links.entry(index).and_modify(|volume| volume.express = counts);
                    removed.entry(index).and_modify(|volume| volume.express = counts);
                }),
                Err(e) => self.problems.push(with_causes(&e)),
            }
            match dataplane::owner::link_drops(dir) {
                Ok(drops) => drops.into_iter().for_each(|(index, drops)| {
                    links.entry(index).and_modify(|volume| {
                        (volume.spoofed, volume.misrouted) = (drops.spoofed, drops.misrouted);
                    });
                }),
                Err(e) => self.problems.push(with_causes(&e)),
            }
        }
        // One that could not be read goes on where it was.
        let mut indices: BTreeMap<VipKey, Vec<u32>> = self.known.iter().map(|key| (key.clone(), Vec::new())).collect();
        for Vip { key, replicas, .. } in vips {
            indices.insert(key.clone(), replicas.iter().filter_map(Replica::host_veth).collect());
        }
        self.meter.update(&links, &removed, &indices);
    }

    /// What became of packets in the tunnel; nothing where no node knows another.
    fn write_tunnel(&mut self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        if nodes::or_alone(nodes::load(&self.context.registry)).is_none() {
            return Ok(());
        }
        let Some(dir) = vips.iter().find_map(|vip| vip.record.flow_owner.as_deref()) else { return Ok(()) };
        let counts = match ebpf::tunnel_counts(dir) {
            Ok(Some(counts)) => counts,
            Ok(None) => return Ok(()),
            Err(e) => {
                self.problems.push(with_causes(&e));
                return Ok(());
            }
        };
        let help = "Packets of the tunnel between nodes, by what this node's programs did with them.";
        let packets = page.counter("viproute_tunnel_packets_total", help, &["outcome"])?;
        for (outcome, count) in counts.by_name() {
            packets.with_label_values(&[outcome]).inc_by(count);
        }
        Ok(())
    }

    fn write_traffic(&self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        const SCOPE: &str = "since viprouted started, added up over its replicas on this node, also those that have left (in: \
            to them). A pod of several VIPs counts under each; one that came and went within seconds may be missing.";
        let labels = ["namespace", "vip", "direction"];
        let packets = page.counter("viproute_vip_packets_total", &format!("Packets of a VIP {SCOPE}"), &labels)?;
        let bytes = page.counter("viproute_vip_bytes_total", &format!("Bytes of a VIP {SCOPE}"), &labels)?;
        for Vip { key, .. } in vips {
            let total = self.meter.total(key);
            // A host veth counts what its pod sends, also where that takes the express path; what is delivered straight into
            // the pod passes it by.
            for (family, way, value) in [
                (&packets, "in", total.packets_in + total.express.in_packets),
                (&packets, "out", total.packets_out),
                (&bytes, "in", total.bytes_in + total.express.in_bytes),
                (&bytes, "out", total.bytes_out),
            ] {
                family.with_label_values(&[key.namespace(), key.name(), way]).inc_by(value);
            }
        }
        Ok(())
    }

    fn write_express(&self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        const SCOPE: &str = "took the express path (in: to replicas); viproute_vip_packets_total has them too.";
        let labels = ["namespace", "vip", "direction"];
        let packets =
            page.counter("viproute_express_packets_total", &format!("Packets of a VIP that {SCOPE}"), &labels)?;
        let bytes = page.counter("viproute_express_bytes_total", &format!("Bytes of a VIP that {SCOPE}"), &labels)?;
        for Vip { key, .. } in vips {
            let total = self.meter.total(key).express;
            for (family, way, value) in [
                (&packets, "in", total.in_packets),
                (&packets, "out", total.out_packets),
                (&bytes, "in", total.in_bytes),
                (&bytes, "out", total.out_bytes),
            ] {
                family.with_label_values(&[key.namespace(), key.name(), way]).inc_by(value);
            }
        }
        Ok(())
    }

    fn write_uplinks(&self, page: &Page) -> prometheus::Result<()> {
        let Some(express) = self.context.express.status() else { return Ok(()) };
        let help = "The number that every lease of the express path carries: another one ends them all. 0: it is off.";
        page.gauge("viproute_express_generation", help, &[])?
            .with_label_values::<&str>(&[])
            .set(generation(express.generation));
        let help = "Whether the express path's programs are on an uplink (1), or not (0).";
        let uplinks = page.gauge("viproute_express_uplink", help, &["device"])?;
        for uplink in &express.uplinks {
            uplinks.with_label_values(&[&uplink.device]).set(f64::from(u8::from(uplink.off.is_none())));
        }
        Ok(())
    }

    fn write_buckets(&mut self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        let all = page.gauge("viproute_vip_buckets", "Buckets that a VIP's new flows are spread over.", &VIP)?;
        let least = page.gauge(
            "viproute_vip_replica_buckets_min",
            "Buckets of the ready replica of a VIP that has the fewest.",
            &VIP,
        )?;
        let most = page.gauge(
            "viproute_vip_replica_buckets_max",
            "Buckets of the ready replica of a VIP that has the most.",
            &VIP,
        )?;
        for Vip { key, record, replicas } in vips {
            let ready = replicas.iter().filter(|replica| replica.state == State::Ready);
            let mut shares: HashMap<u32, usize> =
                ready.filter_map(|replica| Some((dataplane::member_id(replica)?, 0))).collect();
            if shares.is_empty() || record.withdrawn {
                continue;
            }
            let buckets = match nexthop::buckets(&self.net, dataplane::ids::group(record.slot)) {
                Ok(buckets) => buckets,
                Err(e) => {
                    self.problems.push(with_causes(&e));
                    continue;
                }
            };
            for id in &buckets {
                shares.entry(*id).and_modify(|share| *share += 1);
            }
            let labels = [key.namespace(), key.name()];
            all.with_label_values(&labels).set(number(buckets.len()));
            least.with_label_values(&labels).set(number(shares.values().copied().min().unwrap_or_default()));
            most.with_label_values(&labels).set(number(shares.values().copied().max().unwrap_or_default()));
        }
        Ok(())
    }

    fn write_owner(&mut self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        let packets = page.counter(
            "viproute_flow_owner_packets_total",
            "Packets of a VIP by what the flow owner and the guard did with them: local_hit (of a connection of the replica the \
             route had chosen), steered (to the replica that has the connection), no_owner (of no connection of any replica: \
             refused), search_throttled (too many of no connection: dropped), port_denied (to a port that isn't served), \
             egress_denied (from a pod, would have begun a flow), reset_withheld (of a replica that had just closed its port, \
             while another one listens), own_source (to a pod, from one of its own addresses), source_denied (to a port that isn't for that client), spoofed (from a pod, with a source that isn't its own), \
             misrouted (to a pod, for no VIP of its).",
            &["namespace", "vip", "outcome"],
        )?;
        for Vip { key, record, .. } in vips {
            let counts = match dataplane::owner::counts(record, &[]) {
                Ok(Some((counts, _))) => counts,
                Ok(None) => continue,
                Err(e) => {
                    self.problems.push(with_causes(&e));
                    continue;
                }
            };
            for (outcome, value) in [
                ("local_hit", counts.local_hit),
                ("steered", counts.steered),
                ("no_owner", counts.no_owner),
                ("search_throttled", counts.search_throttled),
                ("port_denied", counts.port_denied),
                ("egress_denied", counts.egress_denied),
                ("reset_withheld", counts.reset_withheld),
                ("own_source", counts.own_source),
                ("source_denied", counts.source_denied),
                ("spoofed", self.meter.total(key).spoofed),
                ("misrouted", self.meter.total(key).misrouted),
            ] {
                packets.with_label_values(&[key.namespace(), key.name(), outcome]).inc_by(value);
            }
        }
        Ok(())
    }
}

fn write_replicas(page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
    let help =
        "Replicas of a VIP on this node: pending (not ready yet), ready (get connections), draining (no new ones).";
    let family = page.gauge("viproute_vip_replicas", help, &["namespace", "vip", "state"])?;
    for Vip { key, replicas, .. } in vips {
        for state in State::ALL {
            let count = replicas.iter().filter(|replica| replica.state == state).count();
            family.with_label_values(&[key.namespace(), key.name(), state.name()]).set(number(count));
        }
    }
    Ok(())
}

/// What links have counted. What the host veth sends goes to the pod.
fn volumes(links: &[Link]) -> Links {
    let volume = |link: &Link| Volume {
        packets_in: link.packets.sent,
        packets_out: link.packets.received,
        bytes_in: link.bytes.sent,
        bytes_out: link.bytes.received,
        spoofed: 0,
        misrouted: 0,
        express: ebpf::ExpressCounts::default(),
    };
    links.iter().map(|link| (link.index, volume(link))).collect()
}

/// It begins below 32 bits and is raised a few hundred times a second at most: exact for longer than machines run.
#[allow(clippy::cast_precision_loss)]
fn generation(number: u64) -> f64 {
    number as f64
}

/// Nothing here is counted past 32 bits.
fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
