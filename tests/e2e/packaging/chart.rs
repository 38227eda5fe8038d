//! packaging/chart: what it refuses, and the manifests that are made of it. In a cluster: `tests/kubernetes/chart.rs`.

mod presets;

use std::fs;
use std::path::Path;
use std::process::Command;

use viproute::node::config::Config;

use crate::harness::{Finished, Run, TempDir};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn helm() -> Command {
    let path = Path::new(ROOT).join("target/helm/helm");
    assert!(path.is_file(), "{} is missing: run tests/helm.sh", path.display());
    let mut command = Command::new(path);
    command.current_dir(ROOT).env("HOME", "/nonexistent");
    command
}

/// What the chart gives with these values.
fn template(values: &[&str]) -> Finished {
    let mut command = helm();
    command.args(["template", "viproute", "packaging/chart", "--namespace", "kube-system"]);
    for value in values {
        command.args(["--set", value]);
    }
    command.finish("")
}

#[test]
fn manifests_are_the_charts() {
    let dir = TempDir::new();
    helm();
    Command::new(format!("{ROOT}/packaging/manifests.sh")).arg(dir.path()).finish("").ok();
    for name in ["daemonset.yaml", "daemonset-uninstall.yaml", "kubernetes-rbac.yaml"] {
        let [made, kept] = [dir.path().join(name), Path::new(ROOT).join("conf").join(name)].map(fs::read_to_string);
        assert_eq!(made.unwrap(), kept.unwrap(), "conf/{name} is not what packaging/manifests.sh makes");
    }
}

#[test]
fn two_renderings_are_the_same_and_the_version_is_the_projects() {
    assert_eq!(template(&[]).ok(), template(&[]).ok());
    let chart = fs::read_to_string(Path::new(ROOT).join("packaging/chart/Chart.yaml")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for line in [format!("version: {version}"), format!("appVersion: {version}")] {
        assert!(chart.lines().any(|found| found == line), "{line} in Chart.yaml");
    }
    helm().args(["lint", "--strict", "packaging/chart"]).finish("").ok();
}

#[test]
fn wrong_values_are_refused_by_their_names() {
    let wrong = [
        ("backend=bgp", "/backend"),
        ("allow={10.0.0.0/33}", "/allow/0"),
        ("pool.cidr=10.118.0", "/pool/cidr"),
        ("pool.cidr6=10.118.0.0/24", "/pool/cidr6"),
        ("pins[0].address6=10.118.0.9", "/pins/0"),
        ("pools[0].name=lan", "/pools/0"),
        ("pools[0].cidr6=10.118.0.0/24", "/pools/0"),
        ("services.networkPolicy=enforce", "/services/networkPolicy"),
        ("dhcp.servers={router}", "/dhcp/servers/0"),
        ("dhcp6.enabled=maybe", "/dhcp6/enabled"),
        ("announce=yes", "/announce"),
        ("hold=soon", "/hold"),
        ("limits.vips=0", "/limits/vips"),
        ("services.enabled=maybe", "/services/enabled"),
        ("uninstal.enabled=true", "uninstal"),
        ("cni.preset=eks", "/cni/preset"),
        ("cni.binDir=opt/bin", "/cni/binDir"),
        ("maxUnavailable=0", "/maxUnavailable"),
        ("membership.secret=Bad_Name", "/membership/secret"),
        ("appArmorProfile=none", "/appArmorProfile"),
        ("pins[0].vip=web", "/pins/0"),
        ("image.tag=a+b", "/image/tag"),
    ];
    for (value, named) in wrong {
        let refused = template(&[value]);
        assert!(!refused.status.success() && refused.stderr.contains(named), "{value}: {refused:?}");
    }
    let refused = template(&["backend=pool", "services.enabled=false"]);
    assert!(refused.stderr.contains("membership.seeds"), "{refused:?}");
}

/// The text of viprouted.toml in the `ConfigMap`.
fn configuration(rendered: &str) -> String {
    let (_, rest) = rendered.split_once("  viprouted.toml: |\n").expect("the configuration");
    let lines = rest.lines().take_while(|line| line.starts_with("    "));
    lines.map(str::trim_start).collect::<Vec<_>>().join("\n")
}

#[test]
fn viprouted_takes_what_the_values_say() {
    let everything = [
        "backend=pool",
        "allow={10.118.0.0/24,192.0.2.0/24}",
        "announce=arp",
        "hold=1h 30m",
        "pool.exclude={10.118.0.1}",
        "pins[0].vip=shop/web",
        "pins[0].address=10.118.0.9",
        "metricsListen=0.0.0.0:9118",
        "log.form=json",
        "log.level=debug",
        "services.defaultClass=true",
        "membership.seeds={192.0.2.1}",
        "extraConfig=express = \"off\"",
    ];
    let relayed = ["dhcp.servers={192.0.2.1}", "dhcp.interface=eth1", "dhcp.onLost=keep", "membership.enabled=false"];
    let several = [
        "backend=pool",
        "pools[0].name=lan",
        "pools[0].cidr={10.118.0.0/24}",
        "pools[0].labels.tier=gold",
        "pools[1].name=public",
        "pools[1].cidr={192.0.2.8-192.0.2.9,192.0.2.16/28}",
        "pools[1].cidr6=2001:db8:118::/96",
        "pools[1].auto=false",
        "services.networkPolicy=ignore",
    ];
    let dual = [
        "backend=pool",
        "allow={10.118.0.0/24,fd00::/16}",
        "pool.cidr6=fd00:118::/96",
        "pins[0].vip=shop/web",
        "pins[0].address=10.118.0.9",
        "pins[0].address6=fd00:119::9",
    ];
    let leased = ["dhcp6.enabled=true"];
    for values in [&[][..], &everything, &relayed, &several, &dual, &leased, &["services.enabled=false"]] {
        let text = configuration(&template(values).ok());
        let config = Config::parse(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(config.kubernetes.is_some(), values != ["services.enabled=false"], "{text}");
        assert_eq!(config.membership.is_some(), values != relayed, "{text}");
        assert_eq!(config.lease6.is_some(), values == leased, "{text}");
    }
    let config = Config::parse(&configuration(&template(&several).ok())).unwrap();
    assert!(config.kubernetes.is_some_and(|kubernetes| kubernetes.ignore_policies));
    let pools = format!("{:?}", config.lease.backend);
    assert!(["\"lan\"", "\"public\"", "\"gold\""].iter().all(|word| pools.contains(word)), "{pools}");
    assert_eq!(config.lease.beside.to_string(), "2001:db8:118::/96");
    let config = Config::parse(&configuration(&template(&dual).ok())).unwrap();
    assert!(
        config.lease.beside.prefixes.len() == 1 && config.lease.beside.pins.len() == 1,
        "{:?}",
        config.lease.beside
    );
    let config = Config::parse(&configuration(&template(&everything).ok())).unwrap();
    assert!(!config.express && config.kubernetes.unwrap().default_class && config.metrics.listen.is_some());
    assert_eq!(
        config.membership.unwrap().seeds,
        ["viproute-nodes.kube-system.svc.cluster.local:8119", "192.0.2.1:8119"]
    );
}
