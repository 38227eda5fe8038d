//! Files as the version before wrote them (`testdata/registry/schema1`), read, rewritten, and written again for it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::model::{AttachmentId, Backend, Peer, VipKey};
use crate::registry::file::{self, Form};
use crate::registry::record::{AttachmentRecord, Endpoint, SCHEMA, VipRecord};
use crate::registry::{Error, LockedVip, Registry, State};

fn recorded(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/registry/schema1").join(name);
    fs::read_to_string(path).expect("a file of schema 1")
}

/// As another process would have: not by this one's functions.
fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) -> std::io::Result<()> {
    File::create(path)?.write_all(text.as_ref())
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}

fn read<T: Form>(text: &str) -> T {
    file::decode(Path::new("/x"), text.as_bytes()).expect("a record")
}

/// As it was, in both schemas.
fn rewritten<T: Form>(text: &str) -> [Value; 2] {
    let record: T = read(text);
    [1, SCHEMA].map(|schema| value(&file::encode(Path::new("/x"), &record, schema).expect("a record can be written")))
}

#[test]
fn what_the_version_before_wrote_is_understood() {
    let vip: VipRecord = read(&recorded("vip-renumbered.json"));
    assert_eq!(vip.schema, SCHEMA);
    assert_eq!(
        vip.all_addresses().map(|address| address.to_string()).collect::<Vec<_>>(),
        ["10.118.0.20", "10.118.0.9"]
    );
    assert_eq!(vip.previous_addresses[0].until, 1_795_950_362);
    let endpoint: Endpoint = read(&recorded("endpoint-udp.json"));
    assert_eq!(endpoint.address().to_string(), "10.1.1.4");
    assert_eq!(endpoint.node_source_address.map(|address| address.to_string()), Some("10.1.1.1".to_owned()));
    assert_eq!(endpoint.udp_ports().collect::<Vec<_>>(), [53]);
    assert_eq!((endpoint.backend, endpoint.unknown()), (Backend::Local, vec![]));
    let checked: Endpoint = read(&recorded("endpoint-checked.json"));
    assert!(checked.health.is_some_and(|check| check.known().is_some()));
    let attachment: AttachmentRecord = read(&recorded("attachment.json"));
    assert_eq!(attachment.keys().map(|key| key.to_string()).collect::<Vec<_>>(), ["default/web"]);
    assert!(
        vip.other.is_empty() && endpoint.other.is_empty() && attachment.other.is_empty(),
        "every key has its field"
    );
}

#[test]
fn a_record_goes_from_one_schema_to_the_other_and_back() {
    fn check<T: Form>(name: &str, renamed: &[(&str, &str)]) {
        let mut old = value(recorded(name).as_bytes());
        old["from_the_future"] = json!({"a": [1, 2.5]});
        let [as_before, now] = rewritten::<T>(&old.to_string());
        assert_eq!(as_before, old, "{name} for the version before");
        assert_eq!((&now["schema"], &now["from_the_future"]), (&json!(SCHEMA), &old["from_the_future"]), "{name}");
        for (before, after) in renamed {
            assert!(now.get(before).is_none() && now.get(after).is_some(), "{name}: {now}");
        }
        assert_eq!(rewritten::<T>(&now.to_string()), [old, now], "{name}: once more");
    }
    check::<VipRecord>("vip.json", &[("address", "addresses")]);
    check::<VipRecord>("vip-renumbered.json", &[("address", "addresses"), ("former", "previous_addresses")]);
    check::<Endpoint>("endpoint-udp.json", &[("address", "addresses"), ("asked_from", "node_source_address")]);
    check::<Endpoint>("endpoint-checked.json", &[("address", "addresses")]);
    check::<Endpoint>("endpoint-pending.json", &[("address", "addresses")]);
    check::<AttachmentRecord>("attachment.json", &[("former", "saved_sysctls")]);
}

#[test]
fn what_a_later_version_wrote_is_kept_to_the_letter() {
    let mut text = value(recorded("endpoint-checked.json").as_bytes());
    text["ports"] = json!(["80/tcp", "90-99/tcp", "53/udp"]);
    text["health"] = json!("grpc:8080/service");
    text["egress"] = json!("names");
    text["mac"] = json!("eui64:02:00:00:ff:fe:00:00:01");
    let endpoint: Endpoint = read(&text.to_string());
    assert_eq!(endpoint.udp_ports().collect::<Vec<_>>(), [53], "what is known is served");
    assert!(!endpoint.egress.is_any(), "what is not known opens no way out");
    let unknown: Vec<_> = endpoint.unknown().into_iter().map(|unknown| (unknown.what, unknown.text)).collect();
    let expected = [
        ("Ethernet address", "eui64:02:00:00:ff:fe:00:00:01"),
        ("port", "90-99/tcp"),
        ("vipEgress", "names"),
        ("check", "grpc:8080/service"),
    ];
    assert_eq!(unknown, expected.map(|(what, text)| (what, text.to_owned())));
    assert_eq!(rewritten::<Endpoint>(&text.to_string())[0], text);
}

/// A registry as the version before left it, removed with this.
struct Before(Registry);

const NAME: &str = "c1@eth0";

impl Before {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("viproute-schema-{name}-{}", std::process::id()));
        let registry = Registry::new(dir);
        registry.begin().expect("a registry");
        drop(registry.vip(&key()).expect("a VIP"));
        let before = Self(registry);
        write(before.path("vips/default_web/vip.json"), recorded("vip-renumbered.json")).unwrap();
        write(before.endpoint(NAME), recorded("endpoint-udp.json")).unwrap();
        write(before.attachment(), recorded("attachment.json")).unwrap();
        before
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.dir().join(file)
    }

    fn endpoint(&self, name: &str) -> PathBuf {
        self.path(&format!("vips/default_web/endpoints/{name}.json"))
    }

    fn attachment(&self) -> PathBuf {
        self.path(&format!("attachments/{NAME}.json"))
    }

    fn vip(&self) -> LockedVip {
        self.0.vip(&key()).expect("a VIP")
    }

    /// The schemas of all files: the VIP's record, its index, the endpoint, the attachment.
    fn schemas(&self) -> [Option<u64>; 4] {
        let of_vip = ["vips/default_web/vip.json", "vips/default_web/index.json"].map(|file| self.path(file));
        let [vip, index] = of_vip.map(|path| file::schema_of(&path));
        [vip, index, file::schema_of(&self.endpoint(NAME)), file::schema_of(&self.attachment())]
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.dir());
    }
}

fn key() -> VipKey {
    VipKey::new("default", "web").unwrap()
}

#[test]
fn while_the_daemon_is_one_of_before_its_schema_is_written() {
    let before = Before::new("plugin");
    let mut vip = before.vip();
    let mut endpoint = vip.endpoint(NAME).unwrap().unwrap();
    endpoint.state = State::Draining;
    vip.write_endpoint(NAME, &endpoint).unwrap();
    let record = vip.record.clone().unwrap();
    vip.write_record(VipRecord { withdrawn: true, ..record }).unwrap();
    drop(vip);
    assert_eq!(before.schemas(), [Some(1); 4]);
    let mut expected = value(recorded("endpoint-udp.json").as_bytes());
    expected["state"] = json!("draining");
    assert_eq!(value(&fs::read(before.endpoint(NAME)).unwrap()), expected);
    let index = value(&fs::read(before.path("vips/default_web/index.json")).unwrap());
    assert_eq!(index["replicas"][NAME]["address"], "10.1.1.4");
    assert_eq!(before.0.replicas(&key()).unwrap()[NAME].state, State::Draining);
}

#[test]
fn a_daemon_of_this_version_rewrites_what_there_is() {
    let before = Before::new("daemon");
    drop(before.vip().replicas().map(drop));
    before.0.raise_schema().unwrap();
    assert_eq!(before.schemas(), [Some(2); 4]);
    assert_eq!(before.0.vip_record(&key()).unwrap(), Some(read(&recorded("vip-renumbered.json"))));
    assert_eq!(before.0.endpoint(&key(), NAME).unwrap(), Some(read(&recorded("endpoint-udp.json"))));
    let attachment = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
    assert_eq!(before.0.attachment_record(&attachment).unwrap(), Some(read(&recorded("attachment.json"))));
    // From now on a call of the plugin writes this version's, also where the daemon has not been yet.
    write(before.endpoint("c2@eth0"), recorded("endpoint-checked.json")).unwrap();
    let mut vip = before.vip();
    let endpoint = vip.endpoint("c2@eth0").unwrap().unwrap();
    vip.write_endpoint("c2@eth0", &endpoint).unwrap();
    drop(vip);
    assert_eq!(file::schema_of(&before.endpoint("c2@eth0")), Some(2));
    before.0.raise_schema().unwrap();
    assert_eq!(before.schemas(), [Some(2); 4]);
}

#[test]
fn an_index_of_the_version_before_is_read_and_rewritten() {
    let before = Before::new("index");
    let path = before.path("vips/default_web/index.json");
    write(&path, recorded("index.json")).unwrap();
    let replicas = before.0.replicas(&key()).unwrap();
    let (_, replica) = replicas.first_key_value().unwrap();
    assert_eq!((replica.addresses.first().to_string().as_str(), replica.state), ("10.1.1.2", State::Draining));
    before.0.raise_schema().unwrap();
    assert_eq!(before.0.replicas(&key()).unwrap(), replicas);
    assert_eq!(file::schema_of(&path), Some(2));
}

#[test]
fn what_cant_be_read_is_not_rewritten() {
    let before = Before::new("damage");
    let torn = r#"{"schema":1,"network":"#;
    write(before.endpoint("torn@eth0"), torn).unwrap();
    write(before.endpoint("newer@eth0"), r#"{"schema":3}"#).unwrap();
    before.0.raise_schema().unwrap();
    assert_eq!(fs::read_to_string(before.endpoint("torn@eth0")).unwrap(), torn);
    let newer = before.0.endpoint(&key(), "newer@eth0");
    assert!(matches!(newer, Err(Error::Newer { schema: 3, known: 2, .. })), "{newer:?}");
    assert_eq!(file::schema_of(&before.endpoint(NAME)), Some(2));
}

#[test]
fn what_a_daemon_of_another_boot_said_counts_for_nothing() {
    let before = Before::new("boot");
    for said in ["2 00000000-0000-0000-0000-000000000000", "2", "", "x y", "\u{ff}"] {
        write(before.path("schema"), said).unwrap();
        drop(before.vip().write_record(read(&recorded("vip.json"))));
        assert_eq!(before.schemas()[0], Some(1), "{said:?}");
    }
    let boot = fs::read_to_string(before.path("boot-id")).unwrap();
    write(before.path("schema"), format!("9 {boot}")).unwrap();
    before.vip().write_record(read(&recorded("vip.json"))).unwrap();
    assert_eq!(before.schemas()[0], Some(2), "a later version's daemon reads this one's");
}

#[test]
fn what_the_daemon_of_before_would_not_understand_is_refused() {
    let before = Before::new("refused");
    let mut vip = before.vip();
    let mut remote = vip.endpoint(NAME).unwrap().unwrap();
    remote.backend = Backend::Remote(Peer { number: 3, address: [10, 0, 0, 12].into() });
    let refused = vip.write_endpoint("node3", &remote);
    assert!(matches!(refused, Err(Error::Older { schema: 1, .. })), "{refused:?}");
    assert!(!before.endpoint("node3").exists());
    let mut record = vip.record.clone().unwrap();
    record.addresses.replace("2001:db8::7".parse().unwrap());
    assert!(matches!(vip.write_record(record), Err(Error::Older { .. })));
    drop(vip);
    before.0.raise_schema().unwrap();
    let mut vip = before.vip();
    vip.write_endpoint("node3", &remote).unwrap();
    drop(vip);
    let read = before.0.replicas(&key()).unwrap();
    assert_eq!((read["node3"].backend, read["node3"].host_veth()), (remote.backend, None));
    assert_eq!(read[NAME].host_veth(), Some(9));
}
