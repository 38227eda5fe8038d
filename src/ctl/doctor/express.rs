//! Findings about the express path: where it could be on and isn't.

use crate::api::protocol::{Express, ExpressOff, UplinkOff};

use super::scene::Scene;
use super::{Finding, advice, set};

/// What it is good for, and that all goes on without it.
const WHY: &str = "Traffic goes the kernel's ordinary way, which costs more processor time; nothing is lost.";

pub fn look(scene: &Scene<'_>) -> Vec<Finding> {
    // That viprouted doesn't answer is a finding of its own.
    let Some(express) = scene.agent.as_ref().ok().and_then(|status| status.express.as_ref()) else { return Vec::new() };
    // Where it is off on the whole node, what is in its way on an uplink is in nobody's way.
    match &express.off {
        Some(off) => of_node(scene, off).into_iter().collect(),
        None => of_uplinks(scene, express),
    }
}

fn of_node(scene: &Scene<'_>, off: &ExpressOff) -> Option<Finding> {
    match off {
        ExpressOff::Configured | ExpressOff::NoVips | ExpressOff::NoFlowOwner => None,
        ExpressOff::Tracked => {
            let what = "the express path is off: this node tracks its VIPs' connections";
            // Where it is on and the table is missing, that is a finding of its own.
            let is_on = scene.good_config().is_none_or(|config| config.notrack);
            let cure = if is_on {
                advice("Look why VIP traffic is tracked: viproutectl events says it.")
            } else {
                set(scene, "notrack", "true")
            };
            Some(Finding::hint(what, WHY, cure))
        }
        ExpressOff::Failed(why) => {
            let what = format!("the express path can't be switched on: {why}");
            Some(Finding::warning(what, WHY, set(scene, "express", "\"off\"")))
        }
    }
}

fn of_uplinks(scene: &Scene<'_>, express: &Express) -> Vec<Finding> {
    let find = |device: &str, off: &UplinkOff| match off {
        UplinkOff::Others(others) => {
            let what = format!("the express path is off on {device}: others are there: {}", others.join(", "));
            let why = "What takes it would pass them by.";
            Some(Finding::hint(what, why, set(scene, "express", "\"off\"")))
        }
        UplinkOff::Failed(why) => {
            let what = format!("the express path can't be switched on on {device}: {why}");
            Some(Finding::warning(what, WHY, set(scene, "express", "\"off\"")))
        }
        UplinkOff::Node | UplinkOff::NoEthernet => None,
    };
    express.uplinks.iter().filter_map(|uplink| find(&uplink.device, uplink.off.as_ref()?)).collect()
}
