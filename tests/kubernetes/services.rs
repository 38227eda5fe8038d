//! Services of type `LoadBalancer`, by viproute alone.

mod away;
mod dhcp;
mod dns;
mod families;
mod fields;
mod many;
mod nodes;
mod own;
mod policies;
mod pools;
mod ports;
mod rollouts;
mod status;

use serde_json::Value;

use crate::bed::{Cluster, Deployment, Setup};
use crate::harness::{Flows, LONG, PATIENCE, PORT, connect, until};

/// A cluster whose Services are served.
fn serving() -> Cluster {
    Cluster::with(&Setup { services: true, ..Setup::default() })
}

/// The same with a Service of so many pods, all of which answer.
fn with_web(pods: u32) -> (Cluster, Deployment) {
    with(Deployment::new("web", pods))
}

fn with(web: Deployment) -> (Cluster, Deployment) {
    let cluster = serving();
    web.apply(&cluster.control);
    cluster.control.apply(&web.service("LoadBalancer", &[(PORT, PORT)]));
    cluster.answer(cluster.external("web"), &cluster.pods("web"));
    (cluster, web)
}

/// One more Service of the same pods.
fn another(web: &Deployment, name: &str) -> Value {
    let mut service = web.service("LoadBalancer", &[(PORT, PORT)]);
    service["metadata"]["name"] = name.into();
    service
}

#[test]
fn a_service_is_answered_from_outside() {
    let (cluster, mut web) = with_web(3);
    let (control, vip) = (&cluster.control, cluster.external("web"));
    assert!(vip.to_string().starts_with("10.118.0."), "{vip} is of the pool");
    let service = control.get(&["service", "web"]);
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"][0]["ipMode"], "Proxy",
        "kube-proxy is to keep off: {service}"
    );
    let clients: Vec<_> = connect(&cluster.client, vip, 30).clients.iter().map(ToString::to_string).collect();
    assert_eq!(clients, ["192.0.2.50"], "the client's own address");
    assert_eq!(cluster.vip("default/web").expect("status names the Service")["address"], vip.to_string());

    // Those who stay keep their connections.
    let mut flows = Flows::open("the client", &cluster.client, vip, 60);
    let first = cluster.pods("web");
    for replicas in [6, 2] {
        web.replicas = replicas;
        web.apply(control);
        cluster.answer(vip, &cluster.pods("web"));
    }
    flows.ask();
    flows.hear();
    let gone: Vec<_> = first.difference(&cluster.pods("web")).cloned().collect();
    assert_eq!(flows.complaint(&gone), None);

    // Its address goes with it, and one of the same name begins anew.
    control.run(&["delete", "service", "web"]);
    cluster.is_silent(vip);
    until("the address is given back", PATIENCE, || {
        let held = control.get(&["ipaddresses", "--selector=ipaddress.kubernetes.io/managed-by=viproute.io"]);
        held["items"].as_array().expect("addresses").is_empty().then_some(())
    });
    control.apply(&web.service("LoadBalancer", &[(PORT, PORT)]));
    cluster.answer(cluster.external("web"), &cluster.pods("web"));
}

/// Nothing of a Service that is of another type, or of another class, is touched.
#[test]
fn others_services_are_left_alone() {
    let (cluster, web) = with_web(2);
    let mut theirs = Deployment { name: "theirs", ..web.clone() }.service("LoadBalancer", &[(PORT, PORT)]);
    theirs["spec"]["loadBalancerClass"] = "example.com/other".into();
    cluster.control.apply(&theirs);
    cluster.control.apply(&Deployment { name: "inside", ..web.clone() }.service("ClusterIP", &[(PORT, PORT)]));
    // One that comes later has its address, so the others could have had theirs.
    cluster.control.apply(&Deployment { name: "later", ..web }.service("LoadBalancer", &[(PORT, PORT)]));
    cluster.external("later");
    for name in ["theirs", "inside"] {
        assert_eq!((cluster.ingress(name), cluster.vip(&format!("default/{name}"))), (None, None), "{name}");
        assert_eq!(cluster.events(name), [], "{name}");
    }
}

/// What is in a namespace goes with it, and the Service is none that the namespace's end waits for.
#[test]
fn a_namespace_is_deleted() {
    let (cluster, web) = with_web(1);
    let control = &cluster.control;
    control.run(&["create", "namespace", "shop"]);
    let mut service = web.service("LoadBalancer", &[(PORT, PORT)]);
    service["metadata"]["namespace"] = "shop".into();
    control.apply(&service);
    let found = || {
        let service = control.find(&["--namespace=shop", "service", "web"])?;
        service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned)
    };
    until("shop/web has an EXTERNAL-IP", LONG, found);
    control.run(&["delete", "namespace", "shop", "--timeout=60s"]);
    until("shop/web is no VIP any more", PATIENCE, || cluster.vip("shop/web").is_none().then_some(()));
    // The other of that name is another Service.
    cluster.answer(cluster.external("web"), &cluster.pods("web"));
}
