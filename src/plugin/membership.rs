//! Which VIPs a pod joins, and what else its annotations say.

use std::collections::BTreeSet;

use crate::bpf::PORTS as MAX_PORTS;
use crate::cni::{Call, Config};
use crate::registry::{BadKey, Port, Transport, VipKey};
use crate::vip::ids::MAX_VIPS;

use super::error::Error;

/// Annotations of ours begin with this.
const PREFIX: &str = "viproute.io/";
const VIP: &str = "viproute.io/vip";
const PORTS: &str = "viproute.io/ports";
const WEIGHT: &str = "viproute.io/weight";
const UDP_REPLY: &str = "viproute.io/udp-reply";
const UDP_STICKY: &str = "viproute.io/udp-sticky";
/// The namespace of a container that has none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a pod asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership {
    /// The VIPs it joins, at least one.
    pub vips: Vec<VipKey>,
    /// What it serves under each of them, in their order; none: everything.
    pub ports: Vec<Vec<Port>>,
    /// Its share beside the other replicas'.
    pub weight: u8,
    /// Its unbound UDP sockets answer from the VIP whose UDP port they have.
    pub udp_reply: bool,
    /// Its UDP flows keep their replica.
    pub udp_sticky: bool,
}

impl Membership {
    /// The VIPs and what is served under each.
    pub fn services(&self) -> impl Iterator<Item = (&VipKey, &[Port])> {
        self.vips.iter().zip(self.ports.iter().map(Vec::as_slice))
    }
}

/// Reads a pod's membership. `None`: it names no VIP, which is most pods.
pub fn read(call: &Call, config: &Config) -> Result<Option<Membership>, Error> {
    let annotated = config.annotations.get(VIP).map(|text| split(text));
    if annotated.is_none() && config.vips.is_empty() {
        return Ok(None);
    }
    let namespace = match call.pod.namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        namespace => namespace,
    };
    let mut vips = Vec::new();
    for name in annotated.unwrap_or_default() {
        vips.push(key(VIP, namespace, name, false)?);
    }
    for name in &config.vips {
        vips.push(key("\"vips\"", namespace, name.trim(), true)?);
    }
    check_list(&vips)?;
    check_annotations(config)?;
    let annotation = |key| config.annotations.get(key).map(String::as_str);
    let ports = match annotation(PORTS) {
        Some(text) => PortList { namespace, vips: &vips }.read(text)?,
        None => vec![Vec::new(); vips.len()],
    };
    let weight = annotation(WEIGHT).map_or(Ok(1), weight)?;
    let udp_reply = annotation(UDP_REPLY).map_or(Ok(false), udp_reply)?;
    let udp_sticky = annotation(UDP_STICKY).map_or(Ok(false), udp_sticky)?;
    let membership = Membership { vips, ports, weight, udp_reply, udp_sticky };
    if udp_reply {
        check_replies(&membership)?;
    }
    Ok(Some(membership))
}

/// A comma list; blanks around the commas don't matter.
fn split(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).collect()
}

/// Only the conflist may name another namespace's VIP: an annotation is the pod's own word.
fn key(what: &str, namespace: &str, name: &str, may_be_qualified: bool) -> Result<VipKey, Error> {
    if may_be_qualified && name.contains('/') {
        return name.parse().map_err(|bad: BadKey| invalid(what, &bad.value, bad.expected));
    }
    VipKey::new(namespace, name).map_err(|bad| {
        let what = if bad.value == name { what } else { "K8S_POD_NAMESPACE" };
        invalid(what, &bad.value, bad.expected)
    })
}

/// So much of a bad value is shown; an annotation may have a quarter of a megabyte, and errors go into logs.
const MAX_SHOWN: usize = 200;

fn invalid(what: &str, value: &str, expected: &'static str) -> Error {
    let mut shown: String = value.chars().take(MAX_SHOWN).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    Error::Invalid { what: what.to_owned(), value: shown, expected }
}

fn check_list(vips: &[VipKey]) -> Result<(), Error> {
    if vips.len() > MAX_VIPS {
        let text = format!("{} VIPs are named: a pod can join {MAX_VIPS} ({VIP} and \"vips\" together)", vips.len());
        return Err(Error::Membership(text));
    }
    let mut seen = BTreeSet::new();
    match vips.iter().find(|vip| !seen.insert(*vip)) {
        Some(twice) => Err(Error::Membership(format!("VIP {twice} is named twice ({VIP} and \"vips\" together)"))),
        None => Ok(()),
    }
}

/// A misspelt annotation of ours must not be taken for none.
fn check_annotations(config: &Config) -> Result<(), Error> {
    let known = [VIP, PORTS, WEIGHT, UDP_REPLY, UDP_STICKY];
    match config.annotations.keys().find(|key| key.starts_with(PREFIX) && !known.contains(&key.as_str())) {
        Some(key) => {
            Err(Error::Membership(format!("annotation {key:?} is none of viproute's: expected {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// What the list of ports is read with.
struct PortList<'a> {
    namespace: &'a str,
    vips: &'a [VipKey],
}

impl PortList<'_> {
    /// `80/tcp,web=53/udp`: for all VIPs of the pod, or for one. The ports of each VIP, in their order.
    fn read(&self, text: &str) -> Result<Vec<Vec<Port>>, Error> {
        let mut ports = vec![Vec::new(); self.vips.len()];
        for item in split(text) {
            let (of, port) = match item.split_once('=') {
                Some((name, port)) => (Some(self.place(name)?), port),
                None => (None, item),
            };
            let port: Port = port.parse().map_err(|_| bad_port(item))?;
            for (place, ports) in ports.iter_mut().enumerate().filter(|(place, _)| of.is_none_or(|of| of == *place)) {
                self.add(place, ports, port)?;
            }
        }
        match self.vips.iter().zip(&ports).find(|(_, ports)| ports.is_empty()) {
            Some((vip, _)) => Err(Error::Membership(format!("{PORTS} names no port for VIP {vip}"))),
            None => Ok(ports),
        }
    }

    /// The place of the VIP of that name in the pod's list: as in the annotation, or `<namespace>/<name>`.
    fn place(&self, name: &str) -> Result<usize, Error> {
        let key = key(PORTS, self.namespace, name, true)?;
        let unknown = || Error::Membership(format!("{PORTS} names VIP {name:?}, which the pod doesn't join"));
        self.vips.iter().position(|vip| *vip == key).ok_or_else(unknown)
    }

    fn add(&self, place: usize, ports: &mut Vec<Port>, port: Port) -> Result<(), Error> {
        let vip = &self.vips[place];
        if ports.contains(&port) {
            return Err(Error::Membership(format!("{PORTS} names {port} twice for VIP {vip}")));
        }
        if ports.len() == MAX_PORTS {
            return Err(Error::Membership(format!("{PORTS} names more than {MAX_PORTS} ports for VIP {vip}")));
        }
        ports.push(port);
        Ok(())
    }
}

fn bad_port(item: &str) -> Error {
    let expected = "a list like 80/tcp,53/udp or web=80/tcp,dns=53/udp, ports from 1 to 65535";
    invalid(PORTS, item, expected)
}

/// `vip`.
fn udp_reply(text: &str) -> Result<bool, Error> {
    if text == "vip" { Ok(true) } else { Err(invalid(UDP_REPLY, text, "\"vip\"")) }
}

/// A socket that is bound to no address is known by its port alone: that must say which VIP it answers from.
fn check_replies(membership: &Membership) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for (vip, ports) in membership.services() {
        for port in ports.iter().filter(|port| port.transport == Transport::Udp) {
            if !seen.insert(port) {
                let text =
                    format!("{UDP_REPLY} can't be \"vip\": VIP {vip} and another one of the pod have {port} both");
                return Err(Error::Membership(text));
            }
        }
    }
    if seen.is_empty() {
        let text = format!("{UDP_REPLY} is \"vip\": expected UDP ports in {PORTS}, as 53/udp");
        return Err(Error::Membership(text));
    }
    Ok(())
}

fn udp_sticky(text: &str) -> Result<bool, Error> {
    text.parse().map_err(|_| invalid(UDP_STICKY, text, "\"true\" or \"false\""))
}

fn weight(text: &str) -> Result<u8, Error> {
    text.parse().ok().filter(|weight| *weight > 0).ok_or_else(|| invalid(WEIGHT, text, "a number from 1 to 255"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(namespace: &str, annotations: &[(&str, &str)], vips: &[&str]) -> Result<Option<Membership>, Error> {
        let annotations: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
        let config = serde_json::json!({"cniVersion": "1.0.0", "name": "net", "vips": vips,
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}});
        let env = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => "ADD".into(),
                "CNI_ARGS" => format!("K8S_POD_NAMESPACE={namespace}").into(),
                _ => "x".into(),
            })
        };
        read(&Call::from_env(env).unwrap(), &Config::parse(config.to_string().as_bytes()).unwrap())
    }

    fn names(membership: Option<Membership>) -> Vec<String> {
        membership.unwrap().vips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_that_names_no_vip_is_none_of_ours() {
        assert_eq!(member("shop", &[("other.io/x", "y")], &[]).unwrap(), None);
    }

    #[test]
    fn annotation_and_conflist_add_up() {
        let found = member("shop", &[("viproute.io/vip", " web , api")], &["dns/dns", "log"]).unwrap();
        assert_eq!(names(found), ["shop/web", "shop/api", "dns/dns", "shop/log"]);
        assert_eq!(names(member("", &[], &["web"]).unwrap()), ["default/web"]);
    }

    #[test]
    fn an_annotation_cannot_reach_another_namespace() {
        let error = member("shop", &[("viproute.io/vip", "bank/web")], &[]).unwrap_err();
        assert!(error.to_string().starts_with("viproute.io/vip is \"bank/web\": expected"), "{error}");
    }

    #[test]
    fn bad_lists_are_refused() {
        for bad in ["", "a,,b", "a,a", "Web", "a,b,c,d,e,f,g,h,i", "../x", "a b"] {
            assert!(member("shop", &[("viproute.io/vip", bad)], &[]).is_err(), "{bad:?}");
        }
        assert!(member("shop", &[("viproute.io/vip", "web")], &["shop/web"]).is_err());
        assert!(member("shop", &[("viproute.io/vip", "web"), ("viproute.io/port", "80/tcp")], &[]).is_err());
    }

    /// Of a pod that joins its own `web` and `api` and the conflist's `dns/dns`.
    fn with(annotations: &[(&str, &str)]) -> Result<Membership, Error> {
        let mut all = vec![(VIP, "web,api")];
        all.extend(annotations);
        member("shop", &all, &["dns/dns"]).map(Option::unwrap)
    }

    fn ports_of(annotations: &[(&str, &str)]) -> Vec<String> {
        let membership = with(annotations).unwrap();
        let shown = |ports: &[Port]| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        membership.services().map(|(vip, ports)| format!("{vip}: {}", shown(ports))).collect()
    }

    #[track_caller]
    fn assert_refused(annotations: &[(&str, &str)], named: &str) {
        let error = with(annotations).unwrap_err();
        assert!(error.to_string().contains(named), "{annotations:?}: {error}");
        assert_eq!(error.code(), crate::cni::Code::InvalidConfig);
    }

    #[test]
    fn a_port_is_for_all_vips_or_for_one() {
        let none = ["shop/web: ", "shop/api: ", "dns/dns: "];
        assert_eq!(ports_of(&[]), none);
        let both = ["shop/web: 80/tcp 53/udp", "shop/api: 80/tcp 53/udp", "dns/dns: 80/tcp 53/udp"];
        assert_eq!(ports_of(&[(PORTS, "80/tcp, 53/udp")]), both);
        let each = ["shop/web: 443/tcp 9/udp", "shop/api: 80/tcp 9/udp", "dns/dns: 53/udp 53/tcp 9/udp"];
        let list = "web=443/tcp, shop/api=80/tcp ,dns/dns=53/udp,dns/dns=53/tcp,9/udp";
        assert_eq!(ports_of(&[(PORTS, list)]), each);
    }

    #[test]
    fn bad_ports_are_refused() {
        for bad in ["80", "0/tcp", "65536/tcp", "80/sctp", "+80/tcp", "80/tcp,", "", "web=", "80/tcp,web=80", "=80/tcp"]
        {
            assert!(with(&[(PORTS, bad)]).is_err(), "{bad}");
        }
        assert_refused(&[(PORTS, "80/tcp,443")], "viproute.io/ports is \"443\": expected a list like 80/tcp");
        assert_refused(&[(PORTS, "web=80/tcp,dns/dns=53/udp")], "names no port for VIP shop/api");
        assert_refused(&[(PORTS, "80/tcp,mail=25/tcp")], "\"mail\", which the pod doesn't join");
        assert_refused(&[(PORTS, "80/tcp,dns=53/udp")], "\"dns\", which the pod doesn't join");
        assert_refused(&[(PORTS, "80/tcp,Web=25/tcp")], "Web");
        assert_refused(&[(PORTS, "80/tcp,53/udp,80/tcp")], "names 80/tcp twice");
        assert_refused(&[(PORTS, "80/tcp,53/udp,web=080/tcp")], "names 80/tcp twice for VIP shop/web");
    }

    #[test]
    fn a_vip_has_64_ports_at_most() {
        let list = |count: u16| (1..=count).map(|n| format!("{n}/tcp")).collect::<Vec<_>>().join(",");
        assert_eq!(with(&[(PORTS, &list(64))]).unwrap().ports[1].len(), 64);
        assert_refused(&[(PORTS, &list(65))], "more than 64 ports for VIP shop/web");
        let one_more = format!("{},api=70/tcp", list(64));
        assert_refused(&[(PORTS, &one_more)], "more than 64 ports for VIP shop/api");
    }

    #[test]
    fn unbound_udp_sockets_must_know_their_vip() {
        let reply = |ports, value| [(PORTS, ports), (UDP_REPLY, value)];
        assert!(!with(&[(PORTS, "53/udp")]).unwrap().udp_reply);
        assert!(with(&reply("80/tcp,dns/dns=53/udp,api=54/udp", "vip")).unwrap().udp_reply);
        for bad in ["", "VIP", "pod", "true", "vip "] {
            assert_refused(&reply("80/tcp,web=53/udp", bad), &format!("{UDP_REPLY} is {bad:?}: expected \"vip\""));
        }
        assert_refused(&reply("80/tcp", "vip"), "viproute.io/udp-reply is \"vip\": expected UDP ports");
        assert_refused(&[(UDP_REPLY, "vip")], "viproute.io/udp-reply is \"vip\": expected UDP ports");
        assert_refused(&reply("53/udp", "vip"), "VIP shop/api and another one of the pod have 53/udp both");
        assert_refused(&reply("80/tcp,web=53/udp,api=53/udp", "vip"), "53/udp both");
    }

    #[test]
    fn weight_and_stickiness_are_checked() {
        assert_eq!(with(&[(WEIGHT, "255")]).unwrap().weight, 255);
        for bad in ["0", "256", "-1", "x", ""] {
            assert_refused(&[(WEIGHT, bad)], WEIGHT);
        }
        assert!(!with(&[]).unwrap().udp_sticky);
        assert!(with(&[(UDP_STICKY, "true")]).unwrap().udp_sticky);
        assert!(!with(&[(UDP_STICKY, "false")]).unwrap().udp_sticky);
        for bad in ["yes", "1", "True", ""] {
            assert_refused(&[(UDP_STICKY, bad)], "viproute.io/udp-sticky");
        }
    }

    proptest! {
        #[test]
        fn annotation_values_never_panic(
            vip in "\\PC{0,80}", ports in "\\PC{0,40}", weight in "\\PC{0,10}", reply in "\\PC{0,5}", sticky in "\\PC{0,5}",
        ) {
            let annotations =
                [(VIP, &*vip), (PORTS, &*ports), (WEIGHT, &*weight), (UDP_REPLY, &*reply), (UDP_STICKY, &*sticky)];
            let _ = member("shop", &annotations, &[]);
            let _ = member("shop", &[(VIP, "web"), (PORTS, &ports)], &[]);
        }

        /// Whatever list is accepted: each VIP has ports, none twice, none without an item that speaks of it.
        #[test]
        fn every_vip_has_the_ports_of_its_items(
            items in proptest::collection::vec(("(web=|api=|dns/dns=|)", 1u16..20, "tcp|udp"), 1..12),
            reply: bool,
        ) {
            let list: Vec<String> = items.iter().map(|(of, number, transport)| format!("{of}{number}/{transport}")).collect();
            let list = list.join(",");
            let mut annotations = vec![(PORTS, list.as_str())];
            if reply { annotations.push((UDP_REPLY, "vip")); }
            if let Ok(membership) = with(&annotations) {
                let mut udp = Vec::new();
                for (vip, ports) in membership.services() {
                    let mut have: Vec<String> = ports.iter().map(ToString::to_string).collect();
                    let of = [String::new(), format!("{}=", vip.name()), format!("{vip}=")];
                    let mut spoken: Vec<String> = items.iter().filter(|(name, ..)| of.contains(name))
                        .map(|(_, number, transport)| format!("{number}/{transport}")).collect();
                    udp.extend(have.iter().filter(|port| port.ends_with("udp")).cloned());
                    have.sort();
                    spoken.sort();
                    prop_assert!(!have.is_empty());
                    prop_assert_eq!(&have, &spoken);
                    have.dedup();
                    prop_assert_eq!(have.len(), spoken.len());
                }
                if reply {
                    prop_assert!(!udp.is_empty());
                    let all = udp.len();
                    udp.sort();
                    udp.dedup();
                    prop_assert_eq!(udp.len(), all);
                }
            }
        }
    }
}
