//! Who answers for an address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cluster::Cluster;
use crate::harness::{Load, PATIENCE, PORT, until};

impl Cluster {
    /// The address that kube-proxy serves.
    pub fn internal(&self, service: &str) -> Ipv4Addr {
        let service = self.control.get(&["service", service]);
        service["spec"]["clusterIP"].as_str().expect("an address").parse().expect("IPv4")
    }

    /// The names of the pods of a Deployment that aren't ending.
    pub fn pods(&self, deployment: &str) -> BTreeSet<String> {
        let pods = self.control.get(&["pods", &format!("--selector=app={deployment}")]);
        let pods = pods["items"].as_array().expect("pods").iter();
        let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        staying.map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Until these pods, and no others, answer for the VIP.
    pub fn answer(&self, vip: impl Into<IpAddr>, expected: &BTreeSet<String>) {
        self.answer_at((vip, PORT), expected);
    }

    /// The same for a port of it.
    pub fn answer_at(&self, to: (impl Into<IpAddr>, u16), expected: &BTreeSet<String>) {
        let to = SocketAddr::from((to.0.into(), to.1));
        let mut found = String::new();
        let fine = || {
            let load = Load { to, count: 40 * expected.len().max(1), rate: None, concurrency: 4 };
            let tally = self.client.run(|| load.run());
            found = format!("{tally:?}");
            (tally.failed == 0 && tally.names.keys().eq(expected)).then_some(())
        };
        let waited = catch_unwind(AssertUnwindSafe(|| until("the pods answer", PATIENCE, fine)));
        assert!(waited.is_ok(), "want answers of {expected:?} for {to:?}, found {found}");
    }
}
