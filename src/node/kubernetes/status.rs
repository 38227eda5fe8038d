//! The status of Services: the VIP's address, by server-side apply, only where it differs. A second writer is answered at once, then once in
//! a few seconds.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::model::VipKey;

use super::api::{self, ANSWER};
use super::objects::Service;
use super::ports;
use super::sharing::Taken;

/// As whom statuses are written.
pub const MANAGER: &str = "viproute";
/// kube-proxy is to leave the address alone: packets come to it with the VIP as their destination.
const MODE: &str = "Proxy";
/// A Service's status is written so often at most, but for the first answer to a second writer.
const OFTEN: Duration = Duration::from_secs(5);
/// What was written comes back by the watch within this time.
const ECHO: Duration = Duration::from_millis(500);
/// So many writes are under way at a time.
const MOST: usize = 8;

/// What a Service's status is to say.
#[derive(Clone, Debug)]
pub struct Status<'a> {
    /// The Service.
    pub service: &'a Service,
    /// Those of its ports that an older one has.
    pub taken: &'a Taken,
    /// Its addresses, in its order; none: it has none any more, and what was written goes.
    pub addresses: Vec<IpAddr>,
}

/// A write that is done.
#[derive(Clone, Debug)]
pub struct Written {
    /// The Service.
    pub vip: VipKey,
    /// Its identity.
    pub uid: String,
    /// What was written; none: that it has none.
    pub addresses: Vec<IpAddr>,
    /// Who had written something else after this node had written; `None`: nobody.
    pub instead_of: Option<String>,
    /// Whether it had no address before.
    pub is_new: bool,
    /// The API has not taken up the mode.
    pub lacks_mode: bool,
    /// Why it could not be written; `None`: it was.
    pub error: Option<String>,
}

/// Writes statuses.
pub struct StatusWriter {
    client: kube::Client,
    under_way: JoinSet<Written>,
    /// When each Service's status was written, by its identity.
    past: BTreeMap<String, Past>,
    /// The API drops what it doesn't know.
    lacks_mode: bool,
}

/// Writes of one Service's status.
#[derive(Clone, Copy, Debug)]
struct Past {
    last: Instant,
    /// The one before.
    earlier: Option<Instant>,
    is_under_way: bool,
    seen: Instant,
}

impl StatusWriter {
    /// That has written nothing.
    pub fn new(client: kube::Client) -> Self {
        Self { client, under_way: JoinSet::new(), past: BTreeMap::new(), lacks_mode: false }
    }

    /// The API knows no `ipMode`.
    pub fn lacks_mode(&self) -> bool {
        self.lacks_mode
    }

    /// Begins to write what differs.
    pub fn write<'a>(&mut self, wanted: impl Iterator<Item = (&'a VipKey, Status<'a>)>, now: Instant) {
        for (vip, status) in wanted {
            if let Some(past) = self.past.get_mut(&status.service.uid) {
                past.seen = now;
            }
            let is_written = is_said(&status, self.lacks_mode);
            if is_written || self.under_way.len() >= MOST {
                continue;
            }
            let past = self.past.get(&status.service.uid).copied();
            if past.is_some_and(|past| !past.may_write(now)) {
                continue;
            }
            let earlier = past.map(|past| past.last);
            let next = Past { last: now, earlier, is_under_way: true, seen: now };
            self.past.insert(status.service.uid.clone(), next);
            let is_new = status.service.ingress.is_empty();
            let by_other = status.service.status_by.clone().filter(|by| by != MANAGER);
            let written = Written {
                vip: vip.clone(),
                uid: status.service.uid.clone(),
                addresses: status.addresses.clone(),
                instead_of: by_other.filter(|_| past.is_some() && !is_new),
                is_new,
                lacks_mode: self.lacks_mode,
                error: None,
            };
            self.under_way.spawn(write(
                self.client.clone(),
                written,
                content(&status, self.lacks_mode, Timestamp::now()),
            ));
        }
        self.past.retain(|_, past| now.saturating_duration_since(past.seen) < Duration::from_secs(600));
    }

    /// The next write that is done; waits for ever where none is under way.
    pub async fn next_done(&mut self) -> Written {
        loop {
            match self.under_way.join_next().await {
                None => std::future::pending().await,
                Some(Err(_)) => {} // it was aborted: viprouted ends
                Some(Ok(written)) => {
                    if let Some(past) = self.past.get_mut(&written.uid) {
                        past.is_under_way = false;
                    }
                    self.lacks_mode |= written.lacks_mode;
                    return written;
                }
            }
        }
    }
}

impl Past {
    fn may_write(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_first_answer = self.earlier.is_none_or(|earlier| since(earlier) >= OFTEN);
        !self.is_under_way && (since(self.last) >= OFTEN || is_first_answer && since(self.last) >= ECHO)
    }
}

/// The Service's status says so already. What another has written into one that has no address here is that one's.
fn is_said(status: &Status<'_>, lacks_mode: bool) -> bool {
    let mode = if lacks_mode { "" } else { MODE };
    let Service { ingress, status_by, .. } = status.service;
    if status.addresses.is_empty() {
        return ingress.is_empty() || status_by.as_deref() != Some(MANAGER);
    }
    let said = ingress.iter().map(|ingress| (ingress.ip.clone(), ingress.mode.as_str()));
    let wanted = status.addresses.iter().map(|address| (address.to_string(), mode));
    said.eq(wanted) && ports::is_said(status.service, status.taken)
}

/// The status. What it doesn't name of what was written before is taken back.
fn content(status: &Status<'_>, lacks_mode: bool, now: Timestamp) -> Value {
    let ports = ports::status(status.service, status.taken);
    let entry = |address: &IpAddr| {
        let mut ingress = json!({ "ip": address.to_string() });
        if !lacks_mode {
            ingress["ipMode"] = MODE.into();
        }
        if !ports.is_empty() {
            ingress["ports"] = ports.clone().into();
        }
        ingress
    };
    let ingress: Vec<Value> = status.addresses.iter().map(entry).collect();
    let mut content = json!({ "loadBalancer": { "ingress": ingress } });
    if status.addresses.is_empty() {
        return content;
    }
    if let Some(condition) = ports::condition(status.service, status.taken, now) {
        content["conditions"] = json!([condition]);
    }
    content
}

async fn write(client: kube::Client, written: Written, content: Value) -> Written {
    let api: Api<core::Service> = Api::namespaced(client, written.vip.namespace());
    // With its identity: one that was made again under this name meanwhile isn't meant.
    let patch = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": written.vip.name(), "uid": written.uid },
        "status": content,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&patch);
    let answer = tokio::time::timeout(ANSWER, api.patch_status(written.vip.name(), &parameters, &patch)).await;
    let mut lacks_mode = written.lacks_mode;
    let error = match answer {
        // One that doesn't know a field leaves it out, or refuses it.
        Ok(Ok(service)) => {
            lacks_mode |= !written.addresses.is_empty() && !has_mode(&service);
            None
        }
        Ok(Err(kube::Error::Api(status))) if !lacks_mode && status.message.contains("ipMode") => {
            lacks_mode = true;
            Some(api::reason(&kube::Error::Api(status)))
        }
        // Deleted, made again, or of another type by now: the watch says so too.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => None,
        Ok(Err(error)) => Some(api::reason(&error)),
        Err(_) => Some(crate::with_causes(&api::Error::TimedOut)),
    };
    Written { lacks_mode, error, ..written }
}

fn has_mode(service: &core::Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    ingress.any(|ingress| ingress.ip_mode.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::objects::Ingress;
    use super::*;

    #[test]
    fn only_a_difference_is_written() {
        let says = |said: &[(&str, &str)]| {
            let ingress =
                said.iter().map(|(ip, mode)| Ingress { ip: (*ip).into(), mode: (*mode).into(), ..Ingress::default() });
            let ingress = ingress.collect();
            let service = Service { ingress, ..Service::default() };
            let addresses = vec![[192, 0, 2, 7].into()];
            is_said(&Status { service: &service, taken: &Taken::new(), addresses }, false)
        };
        assert!(says(&[("192.0.2.7", "Proxy")]));
        for other in [
            &[][..],
            &[("192.0.2.7", "VIP")],
            &[("192.0.2.8", "Proxy")],
            &[("192.0.2.7", "Proxy"), ("192.0.2.8", "Proxy")],
        ] {
            assert!(!says(other), "{other:?}");
        }
    }

    #[test]
    fn a_status_has_the_addresses_of_both_families() {
        let (service, taken) = (Service::default(), Taken::new());
        let addresses: Vec<IpAddr> = ["fd00:118::7", "10.118.0.7"].map(|text| text.parse().unwrap()).into();
        let status = Status { service: &service, taken: &taken, addresses };
        let content = content(&status, false, Timestamp::now());
        let expected = json!([{ "ip": "fd00:118::7", "ipMode": "Proxy" }, { "ip": "10.118.0.7", "ipMode": "Proxy" }]);
        assert_eq!(content["loadBalancer"]["ingress"], expected);
        let says = |ips: &[&str]| {
            let of = |ip: &&str| Ingress { ip: (*ip).into(), mode: MODE.into(), ..Ingress::default() };
            let service = Service { ingress: ips.iter().map(of).collect(), ..Service::default() };
            is_said(&Status { service: &service, taken: &taken, addresses: status.addresses.clone() }, false)
        };
        assert!(
            says(&["fd00:118::7", "10.118.0.7"]) && !says(&["10.118.0.7"]) && !says(&["10.118.0.7", "fd00:118::7"])
        );
    }

    #[test]
    fn an_address_that_a_service_has_no_longer_is_taken_back_by_who_wrote_it() {
        let is_fine = |by: &str| {
            let ingress = vec![Ingress { ip: "192.0.2.7".into(), mode: MODE.into(), ports: Vec::new() }];
            let service = Service { ingress, status_by: Some(by.into()), ..Service::default() };
            is_said(&Status { service: &service, taken: &Taken::new(), addresses: Vec::new() }, false)
        };
        assert!(!is_fine(MANAGER) && is_fine("other"));
        let none = Service::default();
        assert!(is_said(&Status { service: &none, taken: &Taken::new(), addresses: Vec::new() }, false));
    }

    #[test]
    fn a_second_writer_is_answered_at_once_and_then_now_and_then() {
        let begun = Instant::now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let first = Past { last: begun, earlier: None, is_under_way: false, seen: begun };
        assert!(!first.may_write(at(0.1)), "its own word has not come back yet");
        assert!(first.may_write(at(1.0)));
        let answered = Past { last: at(1.0), earlier: Some(begun), ..first };
        assert!(!answered.may_write(at(2.0)) && !answered.may_write(at(4.0)));
        assert!(answered.may_write(at(6.0)));
        let rested = Past { last: at(60.0), earlier: Some(at(6.0)), ..first };
        assert!(rested.may_write(at(60.6)), "after a rest it is the first again");
        assert!(!Past { is_under_way: true, ..rested }.may_write(at(100.0)));
    }
}
