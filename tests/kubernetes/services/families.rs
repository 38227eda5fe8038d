//! Services with addresses of both families.

use std::net::IpAddr;

use serde_json::json;

use crate::bed::{Cluster, Deployment, Setup};
use crate::harness::{Flows, LONG, PORT, connect, until};

fn ingress(cluster: &Cluster, service: &str) -> Option<Vec<IpAddr>> {
    let service = cluster.control.find(&["service", service])?;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array()?;
    ingress.iter().map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

/// By clients of both, whichever node their pods are on; and it keeps its connections while pods come and go.
#[test]
fn a_dual_stack_service_is_answered_at_both_addresses() {
    let cluster = Cluster::with(&Setup { services: true, dual: true, ..Setup::default() });
    let mut web = Deployment::new("web", 3);
    web.apply(&cluster.control);
    // The second one's pods have another number.
    let mut service = web.service("LoadBalancer", &[(PORT, PORT), (80, PORT)]);
    service["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    service["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    cluster.control.apply(&service);
    let addresses =
        until("both addresses are in the status", LONG, || ingress(&cluster, "web").filter(|all| all.len() == 2));
    assert!(addresses[0].is_ipv4() && addresses[1].to_string().starts_with("fd00:118::"), "{addresses:?}");
    for address in &addresses {
        cluster.answer(*address, &cluster.pods("web"));
        cluster.answer_at((*address, 80), &cluster.pods("web"));
    }
    let clients: Vec<_> = connect(&cluster.client, addresses[1], 30).clients.iter().map(ToString::to_string).collect();
    assert_eq!(clients, ["2001:db8::32"], "the client's own address");
    let mut flows =
        addresses.iter().map(|address| Flows::open("the client", &cluster.client, *address, 40)).collect::<Vec<_>>();
    let first = cluster.pods("web");
    for replicas in [6, 2] {
        web.replicas = replicas;
        web.apply(&cluster.control);
        for address in &addresses {
            cluster.answer(*address, &cluster.pods("web"));
        }
    }
    let gone: Vec<_> = first.difference(&cluster.pods("web")).cloned().collect();
    for flows in &mut flows {
        flows.ask();
        flows.hear();
        assert_eq!(flows.complaint(&gone), None);
    }
    // Of one family again.
    let single = json!({ "spec": { "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"] } }).to_string();
    cluster.control.run(&["patch", "service", "web", "--type=merge", "-p", &single]);
    until("one address is left", LONG, || ingress(&cluster, "web").filter(|all| *all == addresses[..1]));
    cluster.is_silent(addresses[1]);
    cluster.answer(addresses[0], &cluster.pods("web"));
}
