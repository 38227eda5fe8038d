//! Routing daemons: what keeps them from being witnesses, and from announcing this node's VIPs.

use std::fs;

use super::{Found, Patient};
use crate::bgp::{Speaker, announce};
use crate::harness::{Bird, LONG, TempDir, until};

const OPTIONS: [&str; 4] = ["--asn", "65001", "--router", "192.0.2.254:65000"];

impl Patient {
    /// viprouted's configuration, with a routing daemon to ask.
    fn asks(&self, kind: &str, socket: &str) {
        let (data, own) = (self.node.data(), self.node.socket());
        let text = format!(
            "backend = \"pool\"\nallow = [\"10.118.0.0/16\"]\ndata_dir = {data:?}\nsocket = {own:?}\n[pool]\n\
             cidr = \"10.118.0.0/24\"\n[[gateway]]\nkind = {kind:?}\nsocket = {socket:?}\n"
        );
        fs::write(self.config(), text).expect("write viprouted.toml");
    }

    /// A routing daemon with what announce writes, but for `change`, that viprouted asks.
    fn speaks(&self, kind: &str, change: (&str, &str)) -> Speaker {
        self.asks(kind, "/run/none");
        let conf = announce(&self.node, kind, &OPTIONS).ok();
        assert!(conf.contains(change.0), "{change:?} in {conf}");
        let speaker = Speaker::with(kind, &self.node, &conf.replace(change.0, change.1));
        self.asks(kind, &speaker.socket());
        speaker
    }

    /// As [`Patient::has`], once sessions are up and routes are learned.
    fn comes_to_have(&self, what: &str) -> Found {
        until(&format!("{what:?} is found"), LONG, || {
            let mut findings = self.findings();
            let found = (findings.len() == 1).then(|| findings.remove(0))?;
            (found.what.contains(what) && found.severity == "error").then_some(found)
        })
    }

    fn comes_to_be_well(&self) {
        until("nothing is found", LONG, || self.findings().is_empty().then_some(()));
    }
}

/// The LAN's gateway, which routes the VIP too, as another node's.
fn gateway(patient: &Patient) -> Bird {
    let vip = patient.pods[0].vip();
    let conf = format!(
        "router id 192.0.2.254;\nprotocol device {{}}\nprotocol static {{ ipv4; route {vip}/32 blackhole; }}\n\
         protocol bgp node {{ local 192.0.2.254 as 65000; neighbor 192.0.2.1 as 65001; connect delay time 1;\n\
         error wait time 1, 2; ipv4 {{ import all; export all; }}; }}\n"
    );
    Bird::start(&patient.lan.ns, &conf)
}

/// Each line that is missing is found, and with what announce writes nothing is.
fn faults_of(kind: &str, faults: &[(&str, &str, &str)]) {
    let patient = Patient::new(1);
    let _gateway = gateway(&patient);
    for (line, instead, what) in faults {
        let _speaker = patient.speaks(kind, (line, instead));
        assert!(patient.comes_to_have(what).cure.is_none(), "announce is the cure");
    }
    let speaker = patient.speaks(kind, ("", ""));
    patient.comes_to_be_well();
    drop(speaker);
    patient.comes_to_have("can't be asked");
}

#[test]
fn bird_that_forgets_ignores_or_takes_vips() {
    let refuses = "  if net ~ WITHIN then reject;\n  reject;\n";
    faults_of(
        "bird",
        &[
            ("    import table on;\n", "", "BIRD's router1 of [[gateway]] at "),
            ("  learn;\n", "", "BIRD doesn't have the route of default/web"),
            (refuses, "  accept;\n", "BIRD's router1 takes another node's route to default/web"),
        ],
    );
}

#[test]
fn frr_that_forgets_ignores_or_takes_vips() {
    let neighbor = "  neighbor 192.0.2.254 ";
    faults_of(
        "frr",
        &[
            (
                &format!("{neighbor}soft-reconfiguration inbound\n"),
                "",
                "FRR's session with 192.0.2.254 of [[gateway]] at ",
            ),
            (
                "  redistribute kernel route-map VIPROUTE-WEIGHT\n",
                "",
                "FRR's bgpd doesn't have the route of default/web",
            ),
            (
                "route-map VIPROUTE-IN deny 10\n",
                "route-map VIPROUTE-IN permit 10\n",
                "FRR's session with 192.0.2.254 takes another node's route to default/web",
            ),
        ],
    );
}

/// BIRD reads routes over nexthop objects by the hops that the kernel repeats in them.
#[test]
fn a_kernel_that_hides_hops_from_bird() {
    let patient = Patient::new(1);
    let _gateway = gateway(&patient);
    let _speaker = patient.speaks("bird", ("", ""));
    patient.comes_to_be_well();
    patient.node.ns.set_sysctl("net/ipv4/nexthop_compat_mode", "0");
    let found = patient.comes_to_have("net.ipv4.nexthop_compat_mode is 0, and BIRD");
    patient.take(&found);
    patient.comes_to_be_well();
}

#[test]
fn a_daemon_without_a_session() {
    let patient = Patient::new(1);
    let speaker = patient.speaks("bird", ("", ""));
    assert!(patient.comes_to_have("none of the BGP sessions").cure.is_none());
    let gateway = gateway(&patient);
    patient.comes_to_be_well();
    // A gateway's own daemon has no route of this node's to learn.
    patient.asks("bird", &gateway.socket());
    patient.comes_to_be_well();
    let dir = TempDir::new();
    patient.asks("bird", &dir.file("none.ctl"));
    patient.comes_to_have("none.ctl can't be asked");
    drop(speaker);
}
