//! CHECK compares every object with what it should be: each taken away by hand, CHECK names it.

use std::fs;

use serde_json::json;

use crate::harness::{Join, Lan, Node, Pod, Run};

/// A pod that has joined a VIP, and CHECK content with it.
struct Attached {
    pod: Pod,
    node: Node,
    _lan: Lan,
}

impl Attached {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let pod = node.joined(&Join::annotated("web"));
        let attached = Self { pod, node, _lan: lan };
        attached.node.check(&attached.pod, &Join::annotated("web")).ok();
        attached
    }

    /// The host veth's name, by its prefix.
    fn host_veth(&self) -> String {
        let links = self.node.ns.ip_json("link");
        let mut names = links.iter().filter_map(|link| link["ifname"].as_str());
        names.find(|name| name.starts_with("vip")).expect("a host veth").into()
    }

    /// The id of our nexthop object with, or without, members.
    fn nexthop(&self, is_group: bool) -> String {
        let objects = self.node.ns.ip_json("nexthop show proto 118");
        objects.iter().find(|object| object.get("group").is_some() == is_group).expect("our nexthop")["id"].to_string()
    }

    /// A file of the registry, by a part of its path.
    fn file(&self, part: &str) -> String {
        let records = self.node.records();
        let record =
            records.iter().find(|record| record.contains(part)).unwrap_or_else(|| panic!("{part} in {records:?}"));
        record.split(".json: ").next().unwrap().to_string() + ".json"
    }

    /// CHECK fails and names what is `missing`.
    fn names(&self, missing: &str) {
        let error = self.node.check(&self.pod, &Join::annotated("web")).error();
        assert!(error.text().contains(missing), "{missing:?} isn't named: {error:?}");
    }
}

#[test]
fn names_the_host_end() {
    let attached = Attached::new();
    let host_veth = attached.host_veth();
    attached.node.ns.ip(&format!("link del {host_veth}"));
    attached.names(&host_veth);
}

#[test]
fn names_a_host_end_that_is_down() {
    let attached = Attached::new();
    let host_veth = attached.host_veth();
    attached.node.ns.ip(&format!("link set {host_veth} down"));
    attached.names(&host_veth);
}

#[test]
fn names_the_host_ends_address() {
    let attached = Attached::new();
    attached.node.ns.ip(&format!("addr del 169.254.118.1/32 dev {}", attached.host_veth()));
    attached.names("169.254.118.1");
}

#[test]
fn names_the_host_ends_neighbour() {
    let attached = Attached::new();
    attached.node.ns.ip(&format!("neigh del {} dev {}", attached.pod.address(), attached.host_veth()));
    attached.names(&attached.pod.address().to_string());
}

#[test]
fn names_the_host_ends_reverse_path_filter() {
    let attached = Attached::new();
    attached.node.ns.set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", attached.host_veth()), "1");
    attached.names("rp_filter");
}

#[test]
fn names_the_host_ends_forwarding() {
    let attached = Attached::new();
    attached.node.ns.set_sysctl(&format!("net/ipv4/conf/{}/forwarding", attached.host_veth()), "0");
    attached.names("forwarding");
}

#[test]
fn names_the_nexthop() {
    let attached = Attached::new();
    let id = attached.nexthop(false);
    attached.node.ns.ip(&format!("nexthop del id {id}"));
    attached.names(&id);
}

#[test]
fn names_the_group() {
    let attached = Attached::new();
    let id = attached.nexthop(true);
    attached.node.ns.ip(&format!("route del {} nhid {id}", attached.pod.vip()));
    attached.node.ns.ip(&format!("nexthop del id {id}"));
    attached.names(&id);
}

#[test]
fn names_the_group_it_left() {
    let attached = Attached::new();
    let second = attached.node.joined(&Join::annotated("web"));
    let (group, own) = (attached.nexthop(true), attached.nexthop(false));
    let objects = attached.node.ns.ip_json("nexthop show proto 118");
    let ids = objects.iter().filter(|object| object.get("group").is_none()).map(|object| object["id"].to_string());
    let other = ids.into_iter().find(|id| *id != own).expect("the other one's");
    let resilient = "type resilient buckets 1024 idle_timer 1 unbalanced_timer 10 proto 118";
    attached.node.ns.ip(&format!("nexthop replace id {group} group {other} {resilient}"));
    attached.names(&group);
    attached.node.check(&second, &Join::annotated("web")).ok();
}

#[test]
fn names_the_data_route() {
    let attached = Attached::new();
    let vip = attached.pod.vip();
    attached.node.ns.ip(&format!("route del {vip} nhid {}", attached.nexthop(true)));
    attached.names(&vip.to_string());
}

#[test]
fn names_the_announcement() {
    let attached = Attached::new();
    let vip = attached.pod.vip();
    attached.node.ns.ip(&format!("route del unreachable {vip}"));
    attached.names(&vip.to_string());
}

#[test]
fn names_the_nodes_settings() {
    for (key, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/fib_multipath_hash_policy", "1"),
        ("net/ipv4/fib_multipath_hash_fields", "7"),
    ] {
        let attached = Attached::new();
        attached.node.ns.set_sysctl(key, value);
        attached.names(key.rsplit('/').next().unwrap());
    }
}

#[test]
fn names_vip0() {
    let attached = Attached::new();
    let id = attached.nexthop(false);
    let rename = ["link", "set", "vip0", "name", "elsewhere"];
    if attached.pod.ns.cmd("ip").args(rename).finish("").status.success() {
        attached.names("vip0");
    } else {
        // Before Linux 6.2 a device that is up can't be renamed; of one that isn't, the nexthop is reported first.
        attached.pod.ns.ip("link set vip0 down");
        attached.pod.ns.cmd("ip").args(rename).finish("").ok();
        attached.names(&id);
    }
}

/// The host veth loses its carrier with it, and the kernel deletes a nexthop of such a device: that is reported first.
#[test]
fn names_the_nexthop_of_a_vip0_that_is_down() {
    let attached = Attached::new();
    let id = attached.nexthop(false);
    attached.pod.ns.ip("link set vip0 down");
    attached.names(&id);
}

#[test]
fn names_the_vip_on_vip0() {
    let attached = Attached::new();
    let vip = attached.pod.vip();
    attached.pod.ns.ip("addr add 10.7.7.7/32 dev vip0");
    attached.pod.ns.ip(&format!("addr del {vip}/32 dev vip0"));
    attached.names(&vip.to_string());
}

#[test]
fn names_the_rule() {
    let attached = Attached::new();
    attached.pod.ns.ip(&format!("rule del from {} lookup 118", attached.pod.vip()));
    attached.names("rule");
}

#[test]
fn names_the_pods_default_route() {
    let attached = Attached::new();
    attached.pod.ns.ip("route del default table 118");
    attached.names("118");
}

#[test]
fn names_the_pods_neighbour() {
    let attached = Attached::new();
    attached.pod.ns.ip("neigh del 169.254.118.1 dev vip0");
    attached.names("169.254.118.1");
}

#[test]
fn names_the_pods_arp_settings() {
    for key in ["arp_ignore", "arp_announce"] {
        let attached = Attached::new();
        attached.pod.ns.set_sysctl(&format!("net/ipv4/conf/eth0/{key}"), "0");
        attached.names(key);
    }
}

#[test]
fn names_the_attachments_record() {
    let attached = Attached::new();
    fs::remove_file(attached.file("/attachments/")).unwrap();
    attached.names(&attached.pod.id);
}

#[test]
fn names_the_endpoints_record() {
    let attached = Attached::new();
    fs::remove_file(attached.file("/endpoints/")).unwrap();
    attached.names("default/web");
}

#[test]
fn names_the_vips_record() {
    let attached = Attached::new();
    fs::remove_file(attached.file("/vip.json")).unwrap();
    attached.names("default/web");
}

/// A record that is torn is reported by its path, and still there afterwards.
#[test]
fn names_a_torn_record() {
    for part in ["/attachments/", "/endpoints/", "/vip.json"] {
        let attached = Attached::new();
        let file = attached.file(part);
        let whole = fs::read_to_string(&file).unwrap();
        let half = &whole[..whole.len() / 2];
        fs::write(&file, half).unwrap();
        attached.names(&file);
        assert_eq!(fs::read_to_string(&file).unwrap(), half, "{file}");
    }
}

/// A record of a newer version is not ours to read, and not to delete.
#[test]
fn names_a_record_of_a_newer_version() {
    let attached = Attached::new();
    let file = attached.file("/vip.json");
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    record["schema"] = json!(3);
    fs::write(&file, record.to_string()).unwrap();
    attached.names(&file);
    assert!(fs::read_to_string(&file).unwrap().contains("\"schema\":3"));
}

/// Without the pod's namespace there is nothing left to check in it.
#[test]
fn names_the_namespace() {
    let attached = Attached::new();
    let mut environment = attached.node.environment("CHECK", &attached.pod, &Join::annotated("web"));
    environment.netns = Some("/run/netns/gone-since".into());
    let stdin = attached.node.stdin("CHECK", &attached.pod, &Join::annotated("web")).to_string();
    let error = attached.node.raw(&environment, &stdin).error();
    assert!(error.text().contains("/run/netns/gone-since"), "{error:?}");
}
