//! Many Services of viproute's: how soon they answer, what they cost, and what kube-proxy makes of their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use super::report::{self, Column};
use crate::bed::many::{list, names, shown};
use crate::bed::{Arrivals, Cluster, Many, Setup, Worker};
use crate::harness::{LONG, Run, until};

/// Of the run on the page. `VIPROUTE_SERVICES` is another number, which no page is made of.
const SERVICES: usize = 500;

/// Room for them, whatever namespace they are of.
const POOL: &str = "[pool]\ncidr = \"10.118.0.0/20\"\n[limits]\nvips_per_namespace = 4000\nvips = 4000\n";

/// For so long nothing changes.
const IDLE: Duration = Duration::from_secs(60);

impl Worker {
    /// The addresses in the rules of the node's network, but for viproute's own table, by what they are rules of.
    fn ruled(&self) -> [(&'static str, BTreeSet<String>); 2] {
        let ns = &self.node.ns;
        let tables = ns.cmd("nft").args(["list", "tables"]).finish("").ok();
        let others = tables.lines().filter(|table| *table != "table ip viproute");
        let listed = others.map(|table| {
            let words: Vec<&str> = table.split_whitespace().skip(1).collect();
            ns.cmd("nft").args(["list", "table"]).args(words).finish("").ok()
        });
        let words = |text: &str| text.split(|c: char| !c.is_ascii_digit() && c != '.').map(str::to_owned).collect();
        let legacy = ns.cmd("iptables-legacy-save").finish("").ok();
        [("nftables", words(&listed.collect::<String>())), ("iptables", words(&legacy))]
    }
}

/// None of the rules on any node names one of these Services' addresses, though kube-proxy has rules for each of the Services.
fn rules_hold_no_vip(cluster: &Cluster, services: &[String]) {
    let all = cluster.control.get(&["services"]);
    let all = all["items"].as_array().expect("Services").iter();
    let ours = all.filter(|service| services.iter().any(|name| service["metadata"]["name"] == *name));
    let text = |value: &Value| value.as_str().expect("an address").to_owned();
    let both = ours.map(|service| {
        (text(&service["status"]["loadBalancer"]["ingress"][0]["ip"]), text(&service["spec"]["clusterIP"]))
    });
    let (vips, internal): (BTreeSet<String>, BTreeSet<String>) = both.unzip();
    assert_eq!(vips.len(), services.len(), "each has an address");
    for worker in &cluster.workers {
        let ruled = until("kube-proxy has its rules", LONG, || {
            let ruled = worker.ruled();
            let is_there = |address: &String| ruled.iter().any(|(_, addresses)| addresses.contains(address));
            internal.iter().all(is_there).then_some(ruled)
        });
        for (kind, addresses) in ruled {
            let found: Vec<_> = vips.intersection(&addresses).collect();
            assert!(found.is_empty(), "{kind} on {} has {found:?}", worker.name);
        }
    }
}

#[test]
fn kube_proxys_rules_hold_no_vip() {
    for iptables in [false, true] {
        let cluster = Cluster::with(&Setup { services: true, iptables, ..Setup::default() });
        let many = Many::of(&cluster, 3, 2);
        cluster.control.apply(&list(many.services.iter().cloned()));
        for name in names(&many.services) {
            cluster.answer(cluster.external(&name), &cluster.pods("server-0"));
        }
        rules_hold_no_vip(&cluster, &names(&many.services));
    }
}

/// What viprouted has asked of the API, by verb, without what it goes on hearing.
fn asked(entries: &[Value]) -> String {
    let mut verbs: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["verb"] != "watch") {
        *verbs.entry(entry["verb"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let shown: Vec<String> = verbs.iter().map(|(verb, count)| format!("{count} {verb}")).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

fn memory(cluster: &Cluster) -> String {
    let used: Vec<String> =
        cluster.workers.iter().map(|worker| format!("{} MiB", worker.viprouted().memory / 1024)).collect();
    used.join(", ")
}

#[test]
#[ignore = "./install.sh bench --kubernetes runs it"]
fn d_many_services() {
    let count = std::env::var("VIPROUTE_SERVICES").map_or(SERVICES, |text| text.parse().expect("a number of Services"));
    let mut column = Column::new(format!("{count} Services"));
    let cluster = Cluster::with(&Setup { services: true, pools: POOL, busy: true, ..Setup::default() });
    let many = Many::of(&cluster, count, 2);
    column.say("viprouted's memory without them, by node", memory(&cluster));
    let (arrivals, before) = (Arrivals::watch(&cluster), cluster.control.asked().len());
    let all = names(&many.services);
    cluster.control.apply(&list(many.services.iter().cloned()));
    column.say("each from its creation to its first answer", shown(&arrivals.of(&all)));
    drop(arrivals);
    sleep(Duration::from_secs(10));
    let entries = cluster.control.asked();
    column.say("requests to the API for them, by both nodes", asked(&entries[before..]));
    column.say("viprouted's memory with them, by node", memory(&cluster));
    let used = || cluster.workers.iter().map(|worker| worker.viprouted().processor).collect::<Vec<_>>();
    let begun = used();
    sleep(IDLE);
    let shares = used()
        .into_iter()
        .zip(begun)
        .map(|(now, before)| now.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64());
    let shares: Vec<String> = shares.map(|share| format!("{:.1} %", share * 100.0)).collect();
    column.say("of a processor while nothing changes, by node", shares.join(", "));
    column.say("requests meanwhile", asked(&cluster.control.asked()[entries.len()..]));
    rules_hold_no_vip(&cluster, &all);
    column.say("rules of kube-proxy's (nftables) with one of their addresses", "none".into());
    let begun = std::time::Instant::now();
    Many::delete(&cluster);
    until("no Service is a VIP any more", LONG * 4, || {
        sleep(Duration::from_millis(200));
        cluster.workers[0].ctl(&["status"])["vips"].as_array().expect("VIPs").is_empty().then_some(())
    });
    column.say("deleted at once, until none is a VIP", format!("{:.1} s", begun.elapsed().as_secs_f64()));
    if count == SERVICES {
        report::write_many(&column);
    }
}
