//! The register of the pool at the API: `IPAddress` objects of `networking.k8s.io`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use crate::lease::decider::Order;
use crate::lease::grant::Report;
use crate::model::{Family, VipKey};

use super::api::{self, ANSWER};
use super::objects::{Key, key};
use super::register::{Answer, Cluster, Entry, Refused, Register, Step};
use super::status::MANAGER;
use super::store::Change;

/// Who looks after an address: the API server's own repair leaves it alone then.
pub const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "viproute.io");
const VIP: &str = "viproute.io/vip";
const SERVICE: &str = "viproute.io/service-uid";

/// What the daemon wants of the pool, and where it hears what has become of that.
#[derive(Debug)]
pub struct Desk {
    /// What it wants.
    pub orders: UnboundedReceiver<Order>,
    /// What has become of it.
    pub reports: UnboundedSender<Report>,
}

/// Keeps the register at the API.
#[derive(Debug)]
pub struct PoolKeeper {
    register: Register,
    desk: Desk,
    calls: JoinSet<Done>,
}

/// A call of the API that is done.
#[derive(Debug)]
enum Done {
    /// It gives an address out, or doesn't.
    Made(Ipv4Addr, Entry, Answer),
    /// It has taken one back; false: it may be there still.
    TakenBack(Ipv4Addr, Entry, bool),
}

impl PoolKeeper {
    /// With nothing known.
    pub fn new(register: Register, desk: Desk) -> Self {
        Self { register, desk, calls: JoinSet::new() }
    }

    /// The next order or answer is taken up.
    pub async fn next(&mut self) {
        tokio::select! {
            Some(order) = self.desk.orders.recv() => self.register.on_order(order, Instant::now()),
            Some(done) = self.calls.join_next() => {
                match done {
                    Ok(Done::Made(address, entry, answer)) => {
                        let step = self.register.on_made(address, entry, answer, Instant::now());
                        self.report(step);
                    }
                    Ok(Done::TakenBack(address, entry, is_gone)) => {
                        self.register.on_taken_back(address, &entry, is_gone, Instant::now());
                    }
                    Err(_) => {} // it was aborted: viprouted ends
                }
            }
            else => std::future::pending().await,
        }
    }

    /// What the watch has heard.
    pub fn hear(&mut self, change: Change<Entry>) {
        match change {
            Change::All(all) => {
                let read = |(key, entry): (Key, Entry)| Some((key.parse().ok()?, entry));
                self.register.on_list(all.into_iter().filter_map(read).collect());
            }
            Change::One(key, entry) => {
                if let Ok(address) = key.parse() {
                    self.register.on_entry(address, entry, Instant::now());
                }
            }
        }
    }

    /// The register can't be read.
    pub fn on_failed(&mut self, why: &str) {
        self.register.on_failed(why);
    }

    /// Why a VIP can't have what it asks for.
    pub fn refused(&self, vip: &VipKey) -> Option<&Refused> {
        self.register.refused(vip)
    }

    /// What is given out.
    pub fn given(&self) -> BTreeSet<Ipv4Addr> {
        self.register.given().collect()
    }

    /// Does what is to be done. Returns the Services that can't keep the address of their status, and why.
    pub fn turn(&mut self, client: &kube::Client, cluster: &dyn Cluster) -> Vec<(VipKey, String)> {
        let mut conflicts = Vec::new();
        for step in self.register.steps(cluster, Instant::now()) {
            match step {
                Step::Create(address, entry) => {
                    self.calls.spawn(create(client.clone(), address, entry));
                }
                Step::Delete(address, entry) => {
                    self.calls.spawn(delete(client.clone(), address, entry));
                }
                Step::Conflict(vip, why) => conflicts.push((vip, why)),
                report @ Step::Report(..) => self.report(Some(report)),
            }
        }
        conflicts
    }

    fn report(&self, step: Option<Step>) {
        if let Some(Step::Report(vip, news)) = step {
            // Its reader is gone only while viprouted ends.
            let _ = self.desk.reports.send(Report::new(Family::V4, vip, news));
        }
    }
}

/// What an object says; `None`: it isn't of a VIP.
pub fn entry(object: IPAddress) -> (Key, Option<Entry>) {
    let key = key(&object.metadata);
    let said = object.metadata.annotations.unwrap_or_default();
    let vip = said.get(VIP).and_then(|vip| vip.parse().ok());
    (key, vip.map(|vip| Entry { vip, service: said.get(SERVICE).cloned() }))
}

/// Gives an address out.
async fn create(client: kube::Client, address: Ipv4Addr, entry: Entry) -> Done {
    let api: Api<IPAddress> = Api::all(client);
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let object = object(address, &entry);
    let answer = match tokio::time::timeout(ANSWER, api.create(&parameters, &object)).await {
        Ok(Ok(_)) => Answer::Made,
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Answer::Taken,
        Ok(Err(error)) => Answer::Failed(api::reason(&error)),
        Err(_) => Answer::Failed(crate::with_causes(&api::Error::TimedOut)),
    };
    Done::Made(address, entry, answer)
}

/// Takes one back; what is gone is, and what is another's by now is let alone.
async fn delete(client: kube::Client, address: Ipv4Addr, entry: Entry) -> Done {
    let is_gone = match tokio::time::timeout(ANSWER, delete_its(Api::all(client), address, &entry)).await {
        Ok(Ok(is_deleted)) => {
            if is_deleted {
                tracing::info!(%address, "given back to the pool");
            }
            true
        }
        // Made anew meanwhile, or gone.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => true,
        Ok(Err(error)) => {
            tracing::warn!(%address, error = api::reason(&error), "not given back to the pool");
            false
        }
        Err(_) => {
            tracing::warn!(%address, "not given back to the pool in time");
            false
        }
    };
    Done::TakenBack(address, entry, is_gone)
}

/// False: there is no object of that entry.
async fn delete_its(api: Api<IPAddress>, address: Ipv4Addr, of: &Entry) -> kube::Result<bool> {
    let name = address.to_string();
    let listed = api.list(&ListParams::default().fields(&format!("metadata.name={name}"))).await?;
    let its = |object: &IPAddress| {
        let (key, found) = entry(object.clone());
        key == name && found.as_ref() == Some(of)
    };
    let Some(object) = listed.items.into_iter().find(its) else { return Ok(false) };
    let preconditions = Preconditions { uid: object.metadata.uid, ..Preconditions::default() };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(&name, &parameters).await.map(|_| true)
}

fn object(address: Ipv4Addr, entry: &Entry) -> IPAddress {
    let (label, manager) = MANAGED_BY;
    let mut annotations = BTreeMap::from([(VIP.to_owned(), entry.vip.to_string())]);
    annotations.extend(entry.service.clone().map(|uid| (SERVICE.to_owned(), uid)));
    let (group, resource) = match entry.service {
        Some(_) => (None, "services"),
        None => (Some("viproute.io".to_owned()), "vips"),
    };
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            labels: Some(BTreeMap::from([(label.to_owned(), manager.to_owned())])),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group,
                resource: resource.to_owned(),
                namespace: Some(entry.vip.namespace().to_owned()),
                name: entry.vip.name().to_owned(),
            },
        },
    }
}
