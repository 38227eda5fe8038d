//! Several pools, as Services name them.

use serde_json::{Value, json};

use super::another;
use crate::bed::{Cluster, Deployment, Setup};
use crate::harness::{Flows, LONG, PORT, until};

const POOLS: &str = "[[pool]]\nname = \"lan\"\ncidr = \"10.118.0.0/24\"\n[[pool]]\nname = \"small\"\ncidr = \"10.118.1.1-10.118.1.2\"\nauto = false\n";

fn of_pool(mut service: Value, pool: &str) -> Value {
    service["metadata"]["annotations"] = json!({ "viproute.io/pool": pool });
    service
}

/// It waits in its own pool's queue, gets what is given back, and its name in an Event says why not before.
#[test]
fn a_pool_is_used_up_and_freed() {
    let cluster = Cluster::with(&Setup { services: true, pools: POOLS, ..Setup::default() });
    let (control, web) = (&cluster.control, Deployment::new("web", 2));
    web.apply(control);
    for name in ["first", "second", "third"] {
        control.apply(&of_pool(another(&web, name), "small"));
        if name != "third" {
            cluster.external(name);
        }
    }
    control.apply(&web.service("LoadBalancer", &[(PORT, PORT)]));
    let vip = cluster.external("web");
    assert!(vip.to_string().starts_with("10.118.0."), "{vip} is of the pool that is given out unasked");
    cluster.answer(vip, &cluster.pods("web"));
    cluster.is_told("third", "PoolExhausted", "no address of pool small (10.118.1.1-10.118.1.2) is free");
    let freed = cluster.external("first");
    control.run(&["delete", "service", "first"]);
    assert_eq!(cluster.external("third"), freed);
    cluster.answer(freed, &cluster.pods("web"));
    control.apply(&of_pool(another(&web, "lost"), "large"));
    cluster.is_told("lost", "UnknownPool", "there is no pool large");

    // Another pool: connections to the address of before go on for as long as it stands.
    let mut flows = Flows::open("the client", &cluster.client, freed, 40);
    control.run(&["annotate", "service", "third", "--overwrite", "viproute.io/pool=lan"]);
    let moved = until("it has an address of the other pool", LONG, || {
        cluster.ingress("third").filter(|address| *address != freed)
    });
    assert!(moved.to_string().starts_with("10.118.0."), "{moved}");
    cluster.answer(moved, &cluster.pods("web"));
    flows.ask();
    flows.hear();
    assert_eq!(flows.complaint(&[]), None);
}
