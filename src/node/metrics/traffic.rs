//! Traffic of a VIP, added up over replicas that come and go: a device's own counters go with it.

use std::collections::{BTreeMap, HashMap};

use crate::ebpf::ExpressCounts;
use crate::model::VipKey;

/// What went over a host veth, or to and from a VIP. In: to the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Packets to the pods by way of the host veth.
    pub packets_in: u64,
    /// Packets from the pods.
    pub packets_out: u64,
    /// Bytes to the pods.
    pub bytes_in: u64,
    /// Bytes from the pods.
    pub bytes_out: u64,
    /// Packets from the pods that were dropped for their source.
    pub spoofed: u64,
    /// Packets to the pods that were dropped because they were for none of their VIPs.
    pub misrouted: u64,
    /// What took the express path: into the pods beside what is above, out of them part of it.
    pub express: ExpressCounts,
}

impl Volume {
    /// What has been added since `earlier`. A counter that is lower than it was began anew.
    fn since(self, earlier: Self) -> Self {
        let added = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        Self {
            packets_in: added(self.packets_in, earlier.packets_in),
            packets_out: added(self.packets_out, earlier.packets_out),
            bytes_in: added(self.bytes_in, earlier.bytes_in),
            bytes_out: added(self.bytes_out, earlier.bytes_out),
            spoofed: added(self.spoofed, earlier.spoofed),
            misrouted: added(self.misrouted, earlier.misrouted),
            express: ExpressCounts {
                in_packets: added(self.express.in_packets, earlier.express.in_packets),
                in_bytes: added(self.express.in_bytes, earlier.express.in_bytes),
                out_packets: added(self.express.out_packets, earlier.express.out_packets),
                out_bytes: added(self.express.out_bytes, earlier.express.out_bytes),
            },
        }
    }

    fn add(&mut self, more: Self) {
        self.packets_in += more.packets_in;
        self.packets_out += more.packets_out;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.spoofed += more.spoofed;
        self.misrouted += more.misrouted;
        self.express.in_packets += more.express.in_packets;
        self.express.in_bytes += more.express.in_bytes;
        self.express.out_packets += more.express.out_packets;
        self.express.out_bytes += more.express.out_bytes;
    }
}

/// A host veth at the last sample.
#[derive(Debug)]
struct Seen {
    counted: Volume,
    /// The VIPs it led to a replica of. The registry may lose it a moment before the kernel removes it.
    vips: Vec<VipKey>,
}

/// What the links of a node have counted.
pub type Links = HashMap<u32, Volume>;

/// Adds up.
#[derive(Debug)]
pub struct Meter {
    seen: HashMap<u32, Seen>,
    totals: BTreeMap<VipKey, Volume>,
}

impl Meter {
    /// Counts from now on: what these links have counted so far was before.
    pub fn new(links: &Links) -> Self {
        let seen = links.iter().map(|(index, counted)| (*index, Seen { counted: *counted, vips: Vec::new() }));
        Self { seen: seen.collect(), totals: BTreeMap::new() }
    }

    /// All links now, the last counters of those removed meanwhile, and each VIP's host veths.
    pub fn update(&mut self, links: &Links, removed: &Links, vips: &BTreeMap<VipKey, Vec<u32>>) {
        self.totals.retain(|vip, _| vips.contains_key(vip));
        let mut leads_to: HashMap<u32, Vec<VipKey>> = HashMap::new();
        for (vip, indices) in vips {
            self.totals.entry(vip.clone()).or_default();
            for index in indices {
                leads_to.entry(*index).or_default().push(vip.clone());
            }
        }
        for (index, seen) in self.seen.iter().filter(|(_, seen)| !seen.vips.is_empty()) {
            leads_to.entry(*index).or_insert_with(|| seen.vips.clone());
        }
        for (index, vips) in leads_to {
            let Some(counted) = links.get(&index).or_else(|| removed.get(&index)).copied() else { continue };
            let earlier = self.seen.get(&index).map(|seen| seen.counted).unwrap_or_default();
            for vip in &vips {
                if let Some(total) = self.totals.get_mut(vip) {
                    total.add(counted.since(earlier));
                }
            }
            self.seen.insert(index, Seen { counted, vips });
        }
        self.seen.retain(|index, _| links.contains_key(index));
    }

    /// The host veths that led to a replica when it was updated last.
    pub fn counted(&self) -> impl Iterator<Item = u32> {
        self.seen.iter().filter(|(_, seen)| !seen.vips.is_empty()).map(|(index, _)| *index)
    }

    /// What went to and from a VIP since the meter began.
    pub fn total(&self, vip: &VipKey) -> Volume {
        self.totals.get(vip).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(packets: &[(u32, u64)]) -> Links {
        packets.iter().map(|(index, n)| (*index, Volume { packets_in: *n, ..Volume::default() })).collect()
    }

    fn vips(vips: &[(&str, &[u32])]) -> BTreeMap<VipKey, Vec<u32>> {
        vips.iter().map(|(vip, indices)| (vip.parse().unwrap(), indices.to_vec())).collect()
    }

    fn packets(meter: &Meter, vip: &str) -> u64 {
        meter.total(&vip.parse().unwrap()).packets_in
    }

    #[test]
    fn a_total_stays_when_a_replica_leaves() {
        let none = Links::new();
        let mut meter = Meter::new(&links(&[(3, 1000)]));
        meter.update(&links(&[(3, 1010), (4, 7)]), &none, &vips(&[("a/b", &[3, 4])]));
        assert_eq!(packets(&meter, "a/b"), 17, "what was before the start isn't counted, what a new one has is");
        meter.update(&links(&[(4, 8)]), &none, &vips(&[("a/b", &[4])]));
        assert_eq!(packets(&meter, "a/b"), 18);
        meter.update(&links(&[(4, 9)]), &none, &vips(&[("a/b", &[])]));
        meter.update(&links(&[(4, 10), (5, 0)]), &none, &vips(&[("a/b", &[4, 5])]));
        assert_eq!(packets(&meter, "a/b"), 20, "a VIP that could not be read for once loses nothing");
    }

    #[test]
    fn what_a_replica_counted_in_the_end_is_added() {
        let mut meter = Meter::new(&Links::new());
        meter.update(&links(&[(3, 5), (4, 5)]), &Links::new(), &vips(&[("a/b", &[3, 4])]));
        meter.update(&links(&[(3, 6), (4, 5)]), &Links::new(), &vips(&[("a/b", &[4])]));
        assert_eq!(packets(&meter, "a/b"), 11, "out of the registry, and still there");
        meter.update(&links(&[(4, 5)]), &links(&[(3, 9), (99, 1)]), &vips(&[("a/b", &[4])]));
        assert_eq!(packets(&meter, "a/b"), 14);
        meter.update(&links(&[(4, 5)]), &links(&[(3, 9)]), &vips(&[("a/b", &[4])]));
        assert_eq!(packets(&meter, "a/b"), 14);
    }

    #[test]
    fn a_pod_of_two_vips_counts_under_both_and_a_vip_that_is_gone_begins_anew() {
        let none = Links::new();
        let mut meter = Meter::new(&none);
        meter.update(&links(&[(3, 5)]), &none, &vips(&[("a/b", &[3]), ("a/c", &[3])]));
        assert_eq!((packets(&meter, "a/b"), packets(&meter, "a/c")), (5, 5));
        meter.update(&links(&[(3, 6)]), &none, &vips(&[("a/b", &[3])]));
        assert_eq!((packets(&meter, "a/b"), packets(&meter, "a/c")), (6, 0));
    }

    #[test]
    fn a_counter_that_went_back_began_anew() {
        let none = Links::new();
        let mut meter = Meter::new(&none);
        meter.update(&links(&[(3, 50)]), &none, &vips(&[("a/b", &[3])]));
        meter.update(&links(&[(3, 2)]), &none, &vips(&[("a/b", &[3])]));
        assert_eq!(packets(&meter, "a/b"), 52);
    }
}
