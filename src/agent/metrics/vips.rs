//! What is read of each VIP: replicas, traffic, buckets, the flow owner's counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::agent::Context;
use crate::net::departures::Departures;
use crate::net::link::{self, Link};
use crate::net::{NodeNet, nexthop};
use crate::registry::{Replica, State, VipKey, VipRecord};
use crate::{bpf, net, vip, with_causes};

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

/// Reads VIPs; keeps what must not be forgotten in between.
#[derive(Debug)]
pub struct Reader {
    context: Context,
    net: NodeNet,
    departures: Departures,
    meter: Meter,
    /// The VIPs there were when the registry was last read.
    known: BTreeSet<VipKey>,
    /// Since the page was begun: what could not be read.
    problems: Vec<String>,
}

impl Reader {
    /// Traffic is counted from now on.
    pub fn open(context: &Context) -> net::Result<Self> {
        let departures = Departures::open()?;
        let net = NodeNet::open()?;
        let meter = Meter::new(&volumes(&link::list(&net)?));
        Ok(Self { context: context.clone(), net, departures, meter, known: BTreeSet::new(), problems: Vec::new() })
    }

    /// Looks at the traffic, so that little is missed of a replica that leaves.
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
        self.write_buckets(page, &vips)?;
        self.write_owner(page, &vips)?;
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
        let departed = volumes(&self.departures.take());
        links.retain(|index, _| !departed.contains_key(index));
        let dirs: BTreeSet<_> = vips.iter().filter_map(|vip| vip.record.flow_owner.as_deref()).collect();
        for dir in dirs {
            match vip::owner::spoofed(dir) {
                Ok(counts) => counts.into_iter().for_each(|(index, count)| {
                    links.entry(index).and_modify(|volume| volume.spoofed = count);
                }),
                Err(e) => self.problems.push(with_causes(&e)),
            }
        }
        // One that could not be read goes on where it was.
        let mut indices: BTreeMap<VipKey, Vec<u32>> = self.known.iter().map(|key| (key.clone(), Vec::new())).collect();
        for Vip { key, replicas, .. } in vips {
            indices.insert(key.clone(), replicas.iter().map(|replica| replica.ifindex).collect());
        }
        self.meter.update(&links, &departed, &indices);
    }

    fn write_traffic(&self, page: &Page, vips: &[Vip]) -> prometheus::Result<()> {
        const SCOPE: &str = "since viprouted started, added up over its replicas on this node, also those that have left (in: \
            to them). A pod of several VIPs counts under each; one that came and went within seconds may be missing.";
        let labels = ["namespace", "vip", "direction"];
        let packets = page.counter("viproute_vip_packets_total", &format!("Packets of a VIP {SCOPE}"), &labels)?;
        let bytes = page.counter("viproute_vip_bytes_total", &format!("Bytes of a VIP {SCOPE}"), &labels)?;
        for Vip { key, .. } in vips {
            let total = self.meter.total(key);
            for (family, way, value) in [
                (&packets, "in", total.packets_in),
                (&packets, "out", total.packets_out),
                (&bytes, "in", total.bytes_in),
                (&bytes, "out", total.bytes_out),
            ] {
                family.with_label_values(&[key.namespace(), key.name(), way]).inc_by(value);
            }
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
                ready.filter_map(|replica| Some((vip::ids::nexthop(replica.ifindex)?, 0))).collect();
            if shares.is_empty() || record.withdrawn {
                continue;
            }
            let buckets = match nexthop::buckets(&self.net, vip::ids::group(record.slot)) {
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
            "Packets of a VIP by what the flow owner and the guard did with them: chosen (of a connection of the replica the \
             route had chosen), owned (brought to the replica that has the connection), missed (nobody's, refused), limited \
             (too many were nobody's, dropped), refused (a port that isn't served), spoofed (from a pod, with a source that \
             isn't its own).",
            &["namespace", "vip", "outcome"],
        )?;
        for Vip { key, record, .. } in vips {
            let counts = match vip::owner::counts(record, &[]) {
                Ok(Some((counts, _))) => counts,
                Ok(None) => continue,
                Err(e) => {
                    self.problems.push(with_causes(&e));
                    continue;
                }
            };
            let bpf::Counts { chosen, owned, missed, limited, refused } = counts;
            for (outcome, value) in [
                ("chosen", chosen),
                ("owned", owned),
                ("missed", missed),
                ("limited", limited),
                ("refused", refused),
                ("spoofed", self.meter.total(key).spoofed),
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

/// What links have counted. What the host end sends goes to the pod.
fn volumes(links: &[Link]) -> Links {
    let volume = |link: &Link| Volume {
        packets_in: link.packets.sent,
        packets_out: link.packets.received,
        bytes_in: link.bytes.sent,
        bytes_out: link.bytes.received,
        spoofed: 0,
    };
    links.iter().map(|link| (link.index, volume(link))).collect()
}

/// Nothing here is counted past 32 bits.
fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
