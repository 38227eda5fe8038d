//! A Service of type `LoadBalancer` as those see it who use it.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use super::cluster::Cluster;
use crate::harness::{LONG, PATIENCE, attempt, until};

impl Cluster {
    /// Its address in `kubectl get service`, if it has one.
    pub fn ingress(&self, service: &str) -> Option<Ipv4Addr> {
        let service = self.control.find(&["service", service])?;
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array()?;
        assert!(ingress.len() < 2, "one address: {service}");
        ingress.first()?["ip"].as_str()?.parse().ok()
    }

    /// Its address, once it has one.
    pub fn external(&self, service: &str) -> Ipv4Addr {
        until(&format!("{service} has an EXTERNAL-IP"), LONG, || self.ingress(service))
    }

    /// Until nobody answers for the VIP any more.
    pub fn is_silent(&self, vip: impl Into<IpAddr>) {
        let vip = vip.into();
        until(&format!("{vip} is silent"), PATIENCE, || (attempt(&self.client, vip, 2).failed == 2).then_some(()));
    }

    /// Until one of a Service's Events has that reason and these words.
    pub fn is_told(&self, service: &str, reason: &str, words: &str) {
        until(&format!("{service} has an Event {reason} with {words:?}"), PATIENCE, || {
            self.events(service).iter().any(|(of, note)| of == reason && note.contains(words)).then_some(())
        });
    }

    /// The Events of an object, as reason and note.
    pub fn events(&self, object: &str) -> Vec<(String, String)> {
        let events = self.control.get(&["events", &format!("--field-selector=involvedObject.name={object}")]);
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = events["items"].as_array().expect("events").iter();
        events.map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }
}
