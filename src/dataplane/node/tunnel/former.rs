//! What builds before this one had in the place of the VIPs' routes for what comes by the tunnel: a rule for the device, and a table. For
//! the time of an upgrade both lead to the same groups, so that nothing is lost whichever build's programs are attached.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::ids::{FORMER_TUNNEL_TABLE, INWARD_TOS, RULE_PRIORITY, TUNNEL_DEVICE};
use crate::model::Family;
use crate::net::route::{self, Action, Filter, Route, TableRoute};
use crate::net::rule::{self, Name, Rule, Selector};
use crate::net::{self, NodeNet, PROTOCOL};

use super::Op;

/// By which they told what comes in by the device.
pub(super) const FORMER_RULE: Rule = Rule {
    selector: Selector::Device(Family::V4, Name::new(TUNNEL_DEVICE)),
    table: FORMER_TUNNEL_TABLE,
    priority: RULE_PRIORITY,
};

/// What is left of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// The rule is there.
    pub has_rule: bool,
    /// The routes of its table.
    pub routes: Vec<TableRoute>,
    /// The VIPs of which the replicas here would get nothing without it: they have no route of the kind that is made now.
    pub needed_by: BTreeSet<IpAddr>,
}

impl Former {
    /// Reads it.
    pub(super) fn read(node: &NodeNet) -> net::Result<Self> {
        let has_rule = rule::list(node, Family::V4)?.contains(&FORMER_RULE);
        let routes = routes_in(node, FORMER_TUNNEL_TABLE)?;
        let leads = |route: &&TableRoute| matches!(route.action, Action::Nexthop { .. });
        let mut needed_by: BTreeSet<IpAddr> = routes.iter().filter(leads).map(|route| route.prefix.ip()).collect();
        if !needed_by.is_empty() {
            for route in routes_in(node, route::LOCAL)?.iter().filter(|route| route.tos == INWARD_TOS) {
                needed_by.remove(&route.prefix.ip());
            }
        }
        Ok(Self { has_rule, routes, needed_by })
    }

    /// There is none.
    pub(super) fn is_nothing(&self) -> bool {
        !self.has_rule && self.routes.is_empty()
    }

    /// The rule first: without it nobody asks the table.
    pub(super) fn removal(&self) -> impl Iterator<Item = Op> {
        self.has_rule.then_some(Op::DelRule).into_iter().chain(self.routes.iter().copied().map(Op::DelRoute))
    }
}

fn routes_in(node: &NodeNet, table: u32) -> net::Result<Vec<TableRoute>> {
    let filter = Filter { table: Some(table), protocol: Some(PROTOCOL), ..Filter::default() };
    Ok(route::list(node, filter)?.iter().filter_map(Route::of_ours).collect())
}
