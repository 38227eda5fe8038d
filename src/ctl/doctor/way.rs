//! Findings about what goes before VIPs' routes.

use std::net::IpAddr;

use crate::ctl::way::{Cause, Causes, RouteQuery, is_served, shown};
use crate::dataplane;

use super::scene::Scene;
use super::{Cure, Finding, advice, command};

const WHY: &str = "Connections to them never reach a replica, whatever their routes say.";

pub fn look(scene: &Scene<'_>) -> dataplane::Result<Vec<Finding>> {
    let (query, mut causes) = (RouteQuery::new(&scene.net)?, Causes::default());
    for vip in &scene.vips {
        causes.add(&query, &vip.record, is_served(vip.endpoints.iter().map(|(_, endpoint)| endpoint)))?;
    }
    Ok(causes.0.into_iter().map(|(cause, vips)| finding(&cause, &vips)).collect())
}

fn finding(cause: &Cause, vips: &[IpAddr]) -> Finding {
    let each = |text: &dyn Fn(IpAddr) -> String| vips.iter().map(|vip| text(*vip)).collect::<Vec<_>>().join(" && ");
    let cure: Cure = match cause {
        Cause::Device(device) => command(each(&|vip| format!("ip addr del {vip}/32 dev {device}"))),
        Cause::Rule { priority, .. } => {
            command(each(&|vip| format!("ip rule add to {vip}/32 lookup main priority {}", priority.saturating_sub(1))))
        }
        Cause::Refused(_) => advice("`ip rule` shows it: let a rule before it take the VIPs to table main."),
        Cause::Route(_) => advice("`ip route get` shows it: remove it, or give it a metric."),
    };
    Finding::error(format!("{}: {cause}", shown(vips)), WHY, cure)
}
