//! How soon new Services answer.

use super::report::Column;
use super::{Contender, Stage};
use crate::bed::many::{list, names, shown};
use crate::bed::{Arrivals, Many};

const ONE_BY_ONE: usize = 20;
const AT_ONCE: usize = 100;

pub fn measure(stage: &Stage, column: &mut Column) {
    let control = &stage.cluster.control;
    let mut many = Many::of(&stage.cluster, ONE_BY_ONE + AT_ONCE, 1);
    if let Contender::MetalLb(policy) = stage.contender {
        for service in &mut many.services {
            service["spec"]["externalTrafficPolicy"] = policy.into();
        }
    }
    let arrivals = Arrivals::watch(&stage.cluster);
    let (single, at_once) = many.services.split_at(ONE_BY_ONE);
    for service in single {
        control.apply(service);
        arrivals.of(&names(std::slice::from_ref(service)));
    }
    column.say("a new Service, to its first answer (20, one by one)", shown(&arrivals.of(&names(single))));
    control.apply(&list(at_once.iter().cloned()));
    column.say("100 at once, each from its own creation", shown(&arrivals.of(&names(at_once))));
}
