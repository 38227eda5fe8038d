//! Calls of the plugin, as it reports them: counted, and recorded as events where they changed something or failed.

use std::time::Duration;

use crate::api::protocol::Called;
use crate::model::VipKey;

use super::metrics::Syncer;
use super::{Context, Kind};

/// The plugin was called.
pub fn record(context: &Context, called: &Called) {
    let Called { verb, code, micros, pod, vips, error, syncs } = called;
    context.counters.called(verb, *code, Duration::from_micros(*micros));
    for taken in syncs {
        context.counters.synced(Syncer::Plugin, Duration::from_micros(*taken));
    }
    let whose = if pod.is_empty() { verb.clone() } else { format!("{verb} of {pod}") };
    let millis = Duration::from_micros(*micros).as_millis();
    if *code == 0 && !error.is_empty() {
        context.journal.record(Kind::Trouble, None, format!("{whose}: {error}"));
        return;
    }
    let text = match (*code, verb.as_str()) {
        (0, "ADD" | "DEL") => format!("{whose} took {millis} ms"),
        (0, _) => return, // runtimes ask often whether all is well
        _ => format!("{whose} failed with code {code} after {millis} ms: {error}"),
    };
    let vips: Vec<VipKey> = vips.iter().filter_map(|vip| vip.parse().ok()).collect();
    if vips.is_empty() {
        context.journal.record(Kind::Call, None, text.as_str());
    }
    for vip in &vips {
        context.journal.record(Kind::Call, Some(vip), text.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn texts(called: &Called) -> Vec<(Option<String>, String)> {
        let context =
            Context::new(Registry::new("/nowhere"), crate::node::Wanted { notrack: false, express: false }).unwrap();
        record(&context, called);
        let events = context.journal.events_after(0);
        events.into_iter().map(|event| (event.vip.map(|vip| vip.to_string()), event.text)).collect()
    }

    #[test]
    fn what_came_of_a_call_is_told_for_each_vip() {
        let add = Called {
            verb: "ADD".into(),
            micros: 12_345,
            pod: "shop/p1".into(),
            vips: vec!["shop/web".into(), "shop/api".into()],
            ..Called::default()
        };
        let text = "ADD of shop/p1 took 12 ms".to_owned();
        assert_eq!(texts(&add), [(Some("shop/web".into()), text.clone()), (Some("shop/api".into()), text)]);
        let check = Called { verb: "CHECK".into(), ..add.clone() };
        assert_eq!(texts(&check), []);
        let error = "not registered: write /d/x.json: no space left".to_owned();
        let passed = Called { verb: "ADD".into(), pod: "shop/p2".into(), error, ..Called::default() };
        assert_eq!(texts(&passed), [(None, "ADD of shop/p2: not registered: write /d/x.json: no space left".into())]);
        let gc = Called { verb: "GC".into(), code: 107, error: "no".into(), micros: 1, ..Called::default() };
        assert_eq!(texts(&gc), [(None, "GC failed with code 107 after 0 ms: no".into())]);
    }
}
