//! The programs in a pod by which its UDP servers answer from its VIPs though they bind no address (`ebpf/answers.h`): on `vip0`, and on the
//! pod's own interface. A pod whose UDP ports aren't named has none.

use std::collections::BTreeMap;

use crate::dataplane::Result;
use crate::dataplane::joined::Joined;
use crate::ebpf::{self, Hook, Programs};
use crate::model::AttachmentId;
use crate::net::filter::{self, Packets};
use crate::net::link::{ETHERNET, Link};
use crate::net::{self, Netns, PodNet, Request};
use crate::registry::Registry;

use super::pod::ContainerVeth;
use super::want::PodWant;
use super::{Families, Fix, apply, fix, side};

/// What filters a pod has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filters {
    /// The ids of our programs.
    ours: BTreeMap<Hook, u32>,
    /// Others' are on the pod's own interface.
    others: bool,
}

impl Filters {
    /// Reads those of the container veth, where there is one, and of the pod's own interface.
    pub(super) fn read(pod: &PodNet, vip0: Option<&Link>, interface: &Link) -> net::Result<Self> {
        let mut found = Self::default();
        for (hook, of_ipv6) in Hook::POD.into_iter().zip(Hook::POD_IPV6) {
            let Some(link) = device(hook, vip0, Some(interface)) else { continue };
            for filter in filter::list(pod, link.index, side(hook))? {
                let hook = if filter.is_ours_for(Packets::Ipv6) { of_ipv6 } else { hook };
                match filter.program.filter(|_| filter.is_ours()) {
                    Some(id) => drop(found.ours.insert(hook, id)),
                    None => found.others |= !filter.is_ours() && !is_on_vip0(hook),
                }
            }
        }
        Ok(found)
    }

    /// What takes ours off the pod's own interface, and with them what they hang on, unless others' do, too.
    pub(super) fn removal(&self, interface: &Link) -> Vec<Request> {
        let ours = hooks().filter(|hook| !is_on_vip0(*hook) && self.ours.contains_key(hook));
        let mut requests: Vec<Request> = ours.map(|hook| filter::delete(interface.index, side(hook))).collect();
        if !requests.is_empty() && !self.others {
            requests.push(filter::del_clsact(interface.index));
        }
        requests
    }
}

/// Puts these programs in the place of another build's in an attachment's pod. One that is gone, or whose record can't be read, is left out.
pub fn renew(registry: &Registry, attachment: &AttachmentId, programs: &Programs) -> Result<()> {
    let Ok(Some(record)) = registry.attachment_record(attachment) else { return Ok(()) };
    let joined = Joined::read(registry, attachment, &record)?;
    let Some(netns) = Netns::open_if_alive(&record.netns.path)? else { return Ok(()) };
    if netns.identity()? != record.netns.identity() {
        return Ok(());
    }
    let pod = PodNet::open(netns)?;
    let end = ContainerVeth::read(&pod, joined.ifname(), Families::Ipv4)?;
    let Some(end) = end.filter(|end| end.mac() == Some(joined.names.pod_mac)) else { return Ok(()) };
    Ok(apply(&pod, end.filter_fixes(&joined.pod_want(), programs)?)?)
}

fn hooks() -> impl Iterator<Item = Hook> {
    Hook::POD.into_iter().chain(Hook::POD_IPV6)
}

fn is_on_vip0(hook: Hook) -> bool {
    matches!(hook, Hook::ContainerIngress | Hook::ContainerIngressIpv6)
}

fn device<'a>(hook: Hook, vip0: Option<&'a Link>, interface: Option<&'a Link>) -> Option<&'a Link> {
    if is_on_vip0(hook) { vip0 } else { interface }
}

impl ContainerVeth {
    /// What must still be done for these programs to run in the pod, or for none of ours to. Another build's, which may have none for
    /// pods, are left to it.
    pub fn filter_fixes(&self, want: &PodWant<'_>, programs: &Programs) -> ebpf::Result<Vec<Fix>> {
        // The programs read an Ethernet header.
        let answers = want.answers && self.interface.header == ETHERNET;
        let is_wanted = |hook: Hook| answers && (want.has_ipv6() || !hook.is_of_ipv6());
        let (mut hangers, mut fixes) = (BTreeMap::new(), self.surplus(is_wanted));
        let is_ours = |hook: Hook| hooks().any(|of_pod| of_pod == hook) && is_wanted(hook);
        for program in programs.iter().filter(|program| is_ours(program.spec.hook)) {
            let (hook, found) = (program.spec.hook, self.filters.ours.get(&program.spec.hook));
            let Some(Link { index, name, .. }) = device(hook, Some(&self.link), Some(&self.interface)) else {
                continue;
            };
            if found == Some(&program.id()) {
                continue;
            }
            let found = found.map_or_else(|| "none".to_owned(), |id| format!("program {id}"));
            let (side, wanted, id) = (side(hook), program.spec.name, program.id());
            let finding = format!("the filter on {name}, {side}: want {wanted} (program {id}), found {found}");
            hangers.insert(*index, fix(format!("clsact on {name} is missing"), filter::add_clsact(*index)));
            fixes.push(fix(finding, filter::replace(*index, side, program.fd()?)));
        }
        Ok(hangers.into_values().chain(fixes).collect())
    }

    /// What takes off those that aren't wanted.
    fn surplus(&self, is_wanted: impl Fn(Hook) -> bool) -> Vec<Fix> {
        let name = &self.interface.name;
        let all_go = !hooks().any(&is_wanted);
        let mut requests = if all_go { self.filters.removal(&self.interface) } else { Vec::new() };
        let rest = self.filters.ours.keys().filter(|hook| !is_wanted(**hook));
        for hook in rest.filter(|hook| !all_go || is_on_vip0(**hook)) {
            let Some(link) = device(*hook, Some(&self.link), Some(&self.interface)) else { continue };
            requests.push(filter::delete(link.index, side(*hook)));
        }
        let finding = format!("a filter for UDP answers on {name} or vip0 should not be there");
        requests.into_iter().map(|request| fix(finding.clone(), request)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(ours: &[Hook], others: bool) -> usize {
        let ours = ours.iter().map(|hook| (*hook, 7)).collect();
        Filters { ours, others }.removal(&Link { index: 2, ..Link::default() }).len()
    }

    #[test]
    fn what_others_hang_their_filters_on_stays() {
        assert_eq!(removed(&Hook::POD, false), 3, "two filters and their clsact");
        assert_eq!(removed(&Hook::POD, true), 2);
        assert_eq!(removed(&[Hook::POD, Hook::POD_IPV6].concat(), true), 4, "those of either family");
        assert_eq!(removed(&[], false), 0, "an empty clsact is another's");
        assert_eq!(removed(&[Hook::ContainerIngress], false), 0, "that goes with vip0");
    }
}
