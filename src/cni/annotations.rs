//! Which VIPs a pod joins, and what else its annotations say, or the arguments of a runtime that has no annotations (Nomad).

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::cni::protocol::{Call, Config};
use crate::ebpf::PORTS as MAX_PORTS;
use crate::membership::want::{self, Want, WantError};
use crate::model::check as health_check;
use crate::model::{BadKey, EXPECTED_FAMILIES, PortMap, Source, VipKey};

use super::error::Error;

/// Annotations of ours begin with this.
const PREFIX: &str = "viproute.io/";
const VIP: &str = "viproute.io/vip";
const PORTS: &str = "viproute.io/ports";
const WEIGHT: &str = "viproute.io/weight";
const HEALTH: &str = "viproute.io/health";
const UDP_REPLY: &str = "viproute.io/udp-reply";
const UDP_STICKY: &str = "viproute.io/udp-sticky";
const FAMILIES: &str = "viproute.io/families";
const KNOWN: [&str; 7] = [VIP, PORTS, WEIGHT, HEALTH, UDP_REPLY, UDP_STICKY, FAMILIES];

/// The argument in `CNI_ARGS` that says what an annotation says: `VIPROUTE_UDP_REPLY` for `viproute.io/udp-reply`.
fn argument(annotation: &str) -> String {
    let name = annotation.strip_prefix(PREFIX).unwrap_or(annotation);
    format!("VIPROUTE_{}", name.replace('-', "_").to_ascii_uppercase())
}

/// What a pod's author says of it. An annotation goes before the argument of the same meaning.
struct Said<'a> {
    annotations: &'a BTreeMap<String, String>,
    arguments: &'a BTreeMap<String, String>,
}

impl<'a> Said<'a> {
    fn get(&self, annotation: &str) -> Option<Cow<'a, str>> {
        let annotated = self.annotations.get(annotation).map(|text| Cow::from(text.as_str()));
        annotated.or_else(|| {
            let text = self.arguments.get(&argument(annotation))?;
            Some(match annotation {
                PORTS => ports(text).into(),
                HEALTH => equated(text).into(),
                _ => text.as_str().into(),
            })
        })
    }

    /// What its author calls it.
    fn name(&self, annotation: &str) -> String {
        let argument = argument(annotation);
        let is_argument = !self.annotations.contains_key(annotation)
            && (self.arguments.contains_key(&argument) || self.annotations.is_empty() && !self.arguments.is_empty());
        if is_argument { argument } else { annotation.to_owned() }
    }

    /// Annotations and arguments of ours.
    fn keys(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        let annotations = self.annotations.keys().map(String::as_str).filter(|key| key.starts_with(PREFIX));
        let arguments = self.arguments.keys().map(|key| ("CNI_ARGS' argument", key.as_str()));
        annotations.map(|key| ("annotation", key)).chain(arguments)
    }

    /// Refuses a misspelt key of ours, which would be ignored otherwise.
    fn check(&self) -> Result<(), Error> {
        let is_known = |key: &str| KNOWN.contains(&key) || KNOWN.iter().any(|known| argument(known) == key);
        match self.keys().find(|(_, key)| !is_known(key)) {
            Some((kind, key)) => Err(unknown(kind, key)),
            None => Ok(()),
        }
    }

    /// Refuses what is said without a VIP: the key that names it may be the misspelt one.
    fn check_stray(&self) -> Result<(), Error> {
        self.check()?;
        match self.keys().next() {
            Some((kind, key)) => {
                let vip = self.name(VIP);
                let text =
                    format!("{kind} {key:?} without {vip}, and no \"vips\": the pod names no VIP that it is about");
                Err(Error::Annotations(text))
            }
            None => Ok(()),
        }
    }

    /// Names the keys in an error about what they ask for.
    fn phrased(&self, error: &WantError) -> Error {
        let [vip_key, ports, health, reply] = [VIP, PORTS, HEALTH, UDP_REPLY].map(|key| self.name(key));
        Error::Annotations(match error {
            WantError::TooMany(_) | WantError::Twice(_) => format!("{error} ({vip_key} and \"vips\" together)"),
            WantError::TooManyPorts(vip) => format!("{ports} names more than {MAX_PORTS} ports for VIP {vip}"),
            WantError::PortTwice(vip, port) => format!("{ports} names {port} twice for VIP {vip}"),
            WantError::NoPort { check, needed, vip } => {
                format!("{health} (or \"health\") is \"{check}\": expected {needed} for VIP {vip} in {ports}")
            }
            WantError::NoReplyPort => format!("{reply} is \"vip\": expected UDP ports in {ports}, as 53/udp"),
            WantError::SharedReplyPort(vip, port) => {
                format!("{reply} can't be \"vip\": VIP {vip} and another one of the pod have {port} both")
            }
        })
    }
}

/// `web:80:8080/tcp` as annotations have it, `web=80:8080/tcp`. What is a number before a colon is a port, and no VIP's name.
fn ports(list: &str) -> String {
    let equated = |item: &str| match item.split_once(':') {
        Some((name, port)) if name.parse::<u64>().is_err() => format!("{name}={port}"),
        _ => item.to_owned(),
    };
    list.split(',').map(str::trim).map(equated).collect::<Vec<_>>().join(",")
}

/// `http:80/ fall:2` as annotations have it: the CNI project's own plugins, which get the same `CNI_ARGS`, refuse a second `=`.
fn equated(health: &str) -> String {
    let words = health.split_ascii_whitespace().enumerate();
    let words = words.map(|(place, word)| if place == 0 { word.to_owned() } else { word.replacen(':', "=", 1) });
    words.collect::<Vec<_>>().join(" ")
}

/// What a pod is to be, in each of its VIPs. `None`: it names no VIP, which is most pods.
pub fn read(call: &Call, config: &Config) -> Result<Option<Vec<Want>>, Error> {
    let said = Said { annotations: &config.annotations, arguments: &call.arguments.ours };
    let named = said.get(VIP);
    if named.is_none() && config.vips.is_empty() {
        return said.check_stray().map(|()| None);
    }
    if let Some(flaw) = &config.flaw {
        return Err(flaw.clone().into());
    }
    let mut wants = vips(call, config, named.as_deref().map(|names| (said.name(VIP), names)))?;
    // As soon as it can be known: what follows takes time for each VIP.
    let check = |wants: &[Want]| want::check(wants).map_err(|error| said.phrased(&error));
    check(&wants)?;
    said.check()?;
    if let Some(text) = said.get(PORTS) {
        PortList { pod: Author::of(call), key: said.name(PORTS) }.read(&text, &mut wants)?;
    }
    let bad = |key: &str, text: &str, expected| invalid(&said.name(key), text, expected);
    let weight = said.get(WEIGHT).map_or(Ok(1), |text| weight(&text).ok_or_else(|| bad(WEIGHT, &text, A_WEIGHT)))?;
    let health = match said.get(HEALTH) {
        Some(text) => health_check::parse(&text).map_err(|_| bad(HEALTH, &text, health_check::EXPECTED))?,
        None => config.health.clone(),
    };
    let udp_reply = match said.get(UDP_REPLY).as_deref() {
        Some("vip") => true,
        Some(text) => return Err(bad(UDP_REPLY, text, "\"vip\"")),
        None => false,
    };
    let sticky = |text: Cow<'_, str>| text.parse().map_err(|_| bad(UDP_STICKY, &text, "\"true\" or \"false\""));
    let udp_sticky = said.get(UDP_STICKY).map_or(Ok(false), sticky)?;
    let choice = |text: Cow<'_, str>| text.parse().map_err(|_| bad(FAMILIES, &text, EXPECTED_FAMILIES));
    let families = said.get(FAMILIES).map(choice).transpose()?;
    for want in &mut wants {
        want.weight = weight;
        want.health.clone_from(&health);
        want.udp_reply = udp_reply && want.udp_ports().next().is_some();
        want.udp_sticky = udp_sticky;
        want.families = families;
    }
    if udp_reply && !wants.iter().any(|want| want.udp_reply) {
        return Err(said.phrased(&WantError::NoReplyPort));
    }
    check(&wants)?;
    Ok(Some(wants))
}

/// The VIPs that the pod itself names, by a key, and those of its network.
fn vips(call: &Call, config: &Config, named: Option<(String, &str)>) -> Result<Vec<Want>, Error> {
    let pod = Author::of(call);
    let mut wants = Vec::new();
    if let Some((key, names)) = named {
        for name in split(names) {
            wants.push(Want::new(pod.vip(&key, name, false)?, Source::Annotation));
        }
    }
    for name in &config.vips {
        wants.push(Want::new(pod.vip("\"vips\"", name.trim(), true)?, Source::Conflist));
    }
    Ok(wants)
}

/// A comma list; blanks around the commas don't matter.
fn split(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).collect()
}

/// Whose VIPs a pod may name: its namespace's, and the argument that says which that is.
#[derive(Clone, Copy)]
struct Author<'a> {
    namespace: &'a str,
    said_by: &'static str,
}

impl<'a> Author<'a> {
    fn of(call: &'a Call) -> Self {
        Self { namespace: &call.pod.namespace, said_by: call.arguments.namespace() }
    }

    /// Only the conflist may name another namespace's VIP: the pod's author writes annotations and arguments.
    fn vip(self, what: &str, name: &str, may_be_qualified: bool) -> Result<VipKey, Error> {
        if may_be_qualified && name.contains('/') {
            return name.parse().map_err(|bad: BadKey| invalid(what, &bad.value, bad.expected));
        }
        VipKey::new(self.namespace, name).map_err(|bad| {
            let what = if bad.value == name { what } else { self.said_by };
            invalid(what, &bad.value, bad.expected)
        })
    }
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

fn unknown(kind: &str, key: &str) -> Error {
    let shown: String = key.chars().take(MAX_SHOWN).collect();
    let known = KNOWN.map(|known| if key.starts_with(PREFIX) { known.to_owned() } else { argument(known) });
    Error::Annotations(format!("{kind} {shown:?} is none of viproute's: expected {}", known.join(", ")))
}

/// Reads the list of ports.
struct PortList<'a> {
    pod: Author<'a>,
    /// What its author calls it.
    key: String,
}

impl PortList<'_> {
    /// `80:8080/tcp,web=53/udp`: for all VIPs of the pod, or for one.
    fn read(&self, text: &str, wants: &mut [Want]) -> Result<(), Error> {
        for item in split(text) {
            let (of, port) = match item.split_once('=') {
                Some((name, port)) => (Some(self.named(name, wants)?), port),
                None => (None, item),
            };
            let port: PortMap = port.parse().map_err(|_| invalid(&self.key, item, PORT_LIST))?;
            for want in wants.iter_mut().filter(|want| of.as_ref().is_none_or(|of| want.vip == *of)) {
                want.ports.push(port);
            }
        }
        match wants.iter().find(|want| want.ports.is_empty()) {
            Some(Want { vip, .. }) => Err(Error::Annotations(format!("{} names no port for VIP {vip}", self.key))),
            None => Ok(()),
        }
    }

    /// The pod's VIP of that name: as in the annotation, or `<namespace>/<name>`.
    fn named(&self, name: &str, wants: &[Want]) -> Result<VipKey, Error> {
        let key = self.pod.vip(&self.key, name, true)?;
        if wants.iter().any(|want| want.vip == key) {
            return Ok(key);
        }
        Err(Error::Annotations(format!("{} names VIP {name:?}, which the pod doesn't join", self.key)))
    }
}

const PORT_LIST: &str = "a list like 80/tcp,53/udp, 80:8080/tcp or web=80/tcp,dns=53/udp, ports from 1 to 65535";
const A_WEIGHT: &str = "a number from 1 to 255";

fn weight(text: &str) -> Option<u8> {
    text.parse().ok().filter(|weight| *weight > 0)
}

#[cfg(test)]
mod tests;
