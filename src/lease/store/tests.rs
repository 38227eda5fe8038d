//! On disk and back.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A state directory of its own for each test, removed with it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("viproute-store-{}-{number}", std::process::id())))
    }

    fn put(&self, name: &str, text: &str) {
        let mut file = File::create(self.0.join("leases").join(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join("leases").join(name)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn vip(text: &str) -> VipKey {
    text.parse().unwrap()
}

fn record() -> Record {
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let lease = Lease {
        address: [10, 118, 0, 7].into(),
        server: Some([192, 0, 2, 1].into()),
        link: Some("eth0".into()),
        granted: at(1_790_000_000),
        renew: Some(at(1_790_000_300)),
        rebind: Some(at(1_790_000_525)),
        expires: Some(at(1_790_000_600)),
    };
    Record { lease, left: None, service: true }
}

#[test]
fn a_record_comes_back_and_goes() {
    let place = Place::new();
    let store = Store::open(&place.0).unwrap();
    assert_eq!(store.load(Family::V4, &vip("shop/web")).unwrap(), None);
    store.save(&vip("shop/web"), &record()).unwrap();
    assert_eq!(store.load(Family::V4, &vip("shop/web")).unwrap(), Some(record()));
    let path = place.0.join("leases/shop_web.json");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let forever =
        Record { lease: Lease::permanent([10, 118, 0, 8].into(), UNIX_EPOCH), left: Some(UNIX_EPOCH), service: false };
    store.save(&vip("shop/web"), &forever).unwrap();
    assert_eq!(store.load_all(Family::V4).unwrap().records[&vip("shop/web")].as_ref().unwrap(), &forever);
    store.remove(Family::V4, &vip("shop/web")).unwrap();
    store.remove(Family::V4, &vip("shop/web")).unwrap();
    assert!(store.load_all(Family::V4).unwrap().records.is_empty());
}

#[test]
fn fields_of_a_later_version_survive() {
    let place = Place::new();
    let store = Store::open(&place.0).unwrap();
    store.save(&vip("a/b"), &record()).unwrap();
    let text = place.text("a_b.json").replacen('{', "{\"colour\": [\"blue\", 1],", 1);
    place.put("a_b.json", &text);
    store.save(&vip("a/b"), &record()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&place.text("a_b.json")).unwrap();
    assert_eq!(value["colour"], serde_json::json!(["blue", 1]));
}

#[test]
fn bad_files_are_named_and_left_alone() {
    let place = Place::new();
    let store = Store::open(&place.0).unwrap();
    store.save(&vip("a/good"), &record()).unwrap();
    let good = place.text("a_good.json");
    place.put("a_torn.json", &good[..good.len() / 2]);
    place.put("a_empty.json", "");
    place.put("a_newer.json", &good.replace("\"schema\":1", "\"schema\":2"));
    place.put("a_misplaced.json", &good);
    place.put("README", "hello");
    place.put(".a_good.json.tmp", "half");
    place.put("a_time.json", &good.replace("a/good", "a/time").replace("1790000600", "18446744073709551615"));
    let Contents { mut records, strangers } = store.load_all(Family::V4).unwrap();
    assert_eq!(strangers, [place.0.join("leases/README")]);
    assert_eq!(records.remove(&vip("a/good")).unwrap().unwrap(), record());
    let names: Vec<_> = records.keys().map(VipKey::name).collect();
    assert_eq!(names, ["empty", "misplaced", "newer", "time", "torn"]);
    for (vip, found) in &records {
        let error = found.as_ref().unwrap_err();
        let file = vip.dir_name() + ".json";
        assert!(error.to_string().contains(&file), "{error}");
        if vip.name() != "time" {
            assert!(store.save(vip, &record()).is_err());
            assert!(store.remove(Family::V4, vip).is_err());
        }
        assert!(place.0.join("leases").join(file).exists());
    }
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new();
    let first = Store::open(&place.0).unwrap();
    assert!(matches!(Store::open(&place.0), Err(Error::InUse { .. })));
    drop(first);
    Store::open(&place.0).unwrap();
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A record whose times are about now.
fn recent() -> Record {
    let now = UNIX_EPOCH + Duration::from_secs(seconds(clock::now()));
    let after = |seconds| Some(now + Duration::from_secs(seconds));
    let lease = Lease { granted: now, renew: after(300), rebind: after(525), expires: after(600), ..record().lease };
    Record { lease, left: None, service: false }
}

/// What is written while the wall clock is wrong by so many seconds.
fn write_by_a_clock_that_is_wrong(place: &Place, by: i64, boot_id: Option<&str>) {
    let mut value: serde_json::Value = serde_json::from_str(&place.text("a_b.json")).unwrap();
    for key in ["granted", "renew", "rebind", "expires"] {
        value[key] = (value[key].as_i64().unwrap() + by).into();
    }
    value["boot"]["at"] = (value["boot"]["at"].as_i64().unwrap() + by).into();
    if let Some(id) = boot_id {
        value["boot"]["id"] = id.into();
    }
    place.put("a_b.json", &value.to_string());
}

#[test]
fn a_wall_clock_set_since_changes_nothing_in_the_same_boot() {
    for by in [-7200, 7200] {
        let place = Place::new();
        let store = Store::open(&place.0).unwrap();
        store.save(&vip("a/b"), &recent()).unwrap();
        write_by_a_clock_that_is_wrong(&place, by, None);
        let found = store.load(Family::V4, &vip("a/b")).unwrap().unwrap();
        let expires = found.lease.expires.unwrap();
        assert!(seconds(expires).abs_diff(seconds(recent().lease.expires.unwrap())) <= 2, "{by}: {expires:?}");
    }
}

/// A machine without a clock of its own starts in 1970: what it remembers lasts no longer than it was granted for.
#[test]
fn after_a_boot_a_lease_is_not_from_the_future() {
    let place = Place::new();
    let store = Store::open(&place.0).unwrap();
    store.save(&vip("a/b"), &recent()).unwrap();
    write_by_a_clock_that_is_wrong(&place, 86_400, Some("another"));
    let lease = store.load(Family::V4, &vip("a/b")).unwrap().unwrap().lease;
    let left = lease.expires.unwrap().duration_since(clock::now()).unwrap().as_secs();
    assert!((590..=601).contains(&left), "{left}");
}
