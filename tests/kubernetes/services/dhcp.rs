//! Services whose addresses a DHCP server of the LAN gives.

use super::another;
use crate::bed::{Cluster, DHCP_ADDRESSES, Deployment, Setup};
use crate::harness::{PATIENCE, PORT, until};

#[test]
fn a_service_has_its_address_of_the_lans_server() {
    let mut cluster = Cluster::with(&Setup { services: true, dhcp: true, ..Setup::default() });
    let web = Deployment::new("web", 2);
    web.apply(&cluster.control);
    cluster.control.apply(&web.service("LoadBalancer", &[(PORT, PORT)]));
    let (vip, pods) = (cluster.external("web"), cluster.pods("web"));
    assert!(vip.to_string().starts_with("192.0.2.10"), "{vip} is of the server's range");
    cluster.answer(vip, &pods);
    // Who keeps it may change; the lease is the same.
    for number in 0..cluster.workers.len() {
        cluster.workers[number].restart_viprouted();
        cluster.answer(vip, &pods);
        assert_eq!(cluster.ingress("web"), Some(vip));
    }
    // A Service's address goes with it: the server has it to give again, though it has only a few.
    cluster.control.run(&["delete", "service", "web"]);
    for number in 0..2 * DHCP_ADDRESSES {
        let name = format!("web-{number}");
        cluster.control.apply(&another(&web, &name));
        cluster.answer(cluster.external(&name), &pods);
        cluster.control.run(&["delete", "service", &name]);
        until("it is no VIP any more", PATIENCE, || cluster.vip(&format!("default/{name}")).is_none().then_some(()));
    }
}
