//! What sources of addresses and searches for conflicts report.

use std::net::IpAddr;

use crate::lease::grant::{News, Report};
use crate::lease::state::{Findings, Input};
use crate::model::{Family, VipKey};
use crate::node::journal::Kind;
use crate::node::peers::LeaseKey;

use super::Daemon;

impl Daemon {
    /// A source of addresses reports.
    pub(super) fn report(&mut self, report: Report) {
        let Report { family, vip, news, infrastructure, told } = report;
        self.infrastructure.extend(infrastructure);
        match &news {
            News::Refused { server, why } => {
                let granted_by = self.leasing(family).and_then(|leasing| leasing.state.server_of(&vip));
                return self.refused(Some(&vip), granted_by, *server, why);
            }
            News::Bound(_) => self.permit_link(),
            _ => {}
        }
        if matches!(news, News::Bound(_) | News::Renewed(_)) {
            self.sharing.granted(LeaseKey { vip: vip.clone(), family }, !told);
        }
        tracing::info!(%vip, %news, told, "lease event");
        self.step_of(family, &vip, Input::News(self.on_link(family, news)));
        self.compare_links();
    }

    /// A server refuses what another one has given; no VIP: the delegated prefix. One line for all VIPs: it refuses each of them at each renewal.
    pub(super) fn refused(&mut self, vip: Option<&VipKey>, granted_by: Option<IpAddr>, server: IpAddr, why: &str) {
        if let Some(text) = self.foreign.heard(server, granted_by, why) {
            tracing::warn!(vip = vip.map(tracing::field::display), "{text}");
            self.agent.journal.record(Kind::Trouble, vip, text);
        }
    }

    pub(super) fn found(&mut self, vip: &VipKey, address: IpAddr, found: Result<Findings, String>) {
        let family = Family::of(address);
        if let (Some(served), Family::V6, None) = (self.unlike.get(vip).map(|unlike| unlike.served), family, &self.v6) {
            return self.found_beside(vip, (served, address), found);
        }
        let mut findings = match found {
            Ok(findings) => findings,
            // It is tried again; the waiting callers get this reason.
            Err(why) => {
                let why = format!("{address} could not be checked: {why}");
                return self.step_of(family, vip, Input::DataplaneFailed(why));
            }
        };
        if let Some(other) = self.leasing(family).and_then(|leasing| leasing.other_at(address, vip)) {
            findings.conflicts.push(format!("{other} has it"));
            findings.at_other_vip = true;
        }
        if self.infrastructure.contains(&address) {
            findings.conflicts.push("it is a router or a name server (DHCP options 3 and 6)".into());
        }
        tracing::info!(%vip, %address, conflicts = ?findings.conflicts, "searched for conflicts");
        self.step_of(family, vip, Input::Checked(address, findings));
    }
}
