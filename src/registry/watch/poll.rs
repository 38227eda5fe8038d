//! Changes by the modification times of directories: records are replaced by renaming, which changes their directory's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::model::VipKey;
use crate::registry::Registry;

use super::Changes;

/// Between two polls: two stat(2) a VIP.
const PERIOD: Duration = Duration::from_secs(1);
/// The kernel's clock for modification times ticks no faster than every 10 ms (`current_time`): a second change within
/// a tick leaves no trace, so a directory that changed so shortly before a poll is read again with the next one.
const TICK: Duration = Duration::from_millis(20);

/// When a directory was changed; none: it doesn't exist, or it may have been changed again within the same tick.
type Time = Option<SystemTime>;

/// The times of the last poll.
#[derive(Debug, Default)]
pub struct Times {
    root: Time,
    vips: BTreeMap<VipKey, [Time; 2]>,
}

impl Times {
    /// Polls once, after at most so long.
    pub fn wait(&mut self, registry: &Registry, at_most: Duration) -> Changes {
        thread::sleep(PERIOD.min(at_most));
        self.look(registry)
    }

    fn look(&mut self, registry: &Registry) -> Changes {
        let mut vips: BTreeSet<VipKey> = BTreeSet::new();
        let root = settled(&registry.vips_dir());
        if root.is_none() || root != self.root {
            self.root = root;
            let listed: BTreeSet<VipKey> = registry.vips().unwrap_or_default().into_iter().collect();
            vips.extend(listed.iter().filter(|vip| !self.vips.contains_key(vip)).cloned());
            vips.extend(self.vips.keys().filter(|vip| !listed.contains(vip)).cloned());
            self.vips.retain(|vip, _| listed.contains(vip));
        }
        let differs = |(vip, times): (&VipKey, &[Time; 2])| {
            let now = of_vip(registry, vip);
            (now.contains(&None) || now != *times).then(|| vip.clone())
        };
        vips.extend(self.vips.iter().filter_map(differs));
        // What is followed is looked at itself each time: a directory's time doesn't tell of a file that is written in place.
        Changes { all: false, vips, followed: true }
    }

    /// Notes a VIP's times; it is read afterwards.
    pub fn cover(&mut self, registry: &Registry, vip: &VipKey) {
        self.vips.insert(vip.clone(), of_vip(registry, vip));
    }
}

fn of_vip(registry: &Registry, vip: &VipKey) -> [Time; 2] {
    let dir = registry.vip_dir(vip);
    [settled(&dir.join("endpoints")), settled(&dir)]
}

fn settled(dir: &Path) -> Time {
    let time = std::fs::metadata(dir).and_then(|metadata| metadata.modified()).ok()?;
    SystemTime::now().duration_since(time).is_ok_and(|age| age > TICK).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_found_once() {
        let dir = std::env::temp_dir().join(format!("viproute-times-{}", std::process::id()));
        let registry = Registry::new(&dir);
        let key: VipKey = "shop/web".parse().unwrap();
        let mut times = Times::default();
        assert_eq!(times.look(&registry).vips, BTreeSet::new(), "no registry");
        let endpoints = registry.vip_dir(&key).join("endpoints");
        std::fs::create_dir_all(&endpoints).unwrap();
        let look = |times: &mut Times| {
            thread::sleep(TICK * 2);
            let changes = times.look(&registry);
            changes.vips.iter().for_each(|vip| times.cover(&registry, vip));
            changes.vips.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(look(&mut times), std::slice::from_ref(&key));
        assert_eq!(look(&mut times), []);
        std::fs::File::create(endpoints.join("c@eth0.json")).unwrap();
        assert_eq!(look(&mut times), std::slice::from_ref(&key));
        assert_eq!(look(&mut times), []);
        std::fs::remove_dir_all(registry.vip_dir(&key)).unwrap();
        assert_eq!(look(&mut times), [key]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
