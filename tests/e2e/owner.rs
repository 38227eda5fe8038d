//! The flow owner as a part of the node: loaded once, on every host veth, its maps a part of what CHECK, GC and DEL know;
//! replaced by another build's under traffic; and what happens where BPF is not to be had.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::json;
use viproute::internals::ebpf::{Attached, Known, Maps, Member};

use crate::harness::{Join, Lan, Node, Pod, Run, Snapshot, VIPROUTE, connect, serve_all, tool};

struct Scene {
    pods: Vec<Pod>,
    node: Node,
    lan: Lan,
}

/// What is done to the maps by hand.
type Damage<'a> = &'a dyn Fn(&mut Maps);

fn web() -> Join {
    Join::annotated("web")
}

impl Scene {
    fn new(replicas: usize) -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let pods = (0..replicas).map(|_| node.joined(&web())).collect();
        Self { pods, node, lan }
    }

    fn maps(&self) -> Maps {
        Maps::open(&PathBuf::from(self.node.bpf_dir())).expect("open the maps").expect("the maps")
    }

    fn vip(&self) -> Ipv4Addr {
        self.pods[0].vip()
    }

    /// The pinned programs by name.
    fn pins(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.node.bpf_dir()).expect("the pins' directory");
        entries.map(|entry| entry.expect("a pin").file_name().into_string().expect("a name")).collect()
    }

    /// The ids of the programs on every host veth's two sides.
    fn programs(&self) -> BTreeSet<u64> {
        let links = self.node.ns.ip_json("link");
        let host_veths = links.iter().filter_map(|link| link["ifname"].as_str()).filter(|name| name.starts_with("vip"));
        let mut programs = BTreeSet::new();
        for host_veth in host_veths {
            let before = programs.len();
            for side in ["ingress", "egress"] {
                let mut tc = self.node.ns.cmd("tc");
                let shown = tc.args(["-j", "filter", "show", "dev", host_veth, side]).finish("").ok();
                let filters: serde_json::Value = serde_json::from_str(&shown).expect("tc's JSON");
                programs.extend(filters.as_array().unwrap().iter().filter_map(|f| f["options"]["prog"]["id"].as_u64()));
            }
            assert!(programs.len() >= before.max(2), "{host_veth} lacks a program");
        }
        programs
    }

    /// The first pod's CHECK fails and names what is `missing`.
    fn names(&self, missing: &str) {
        let error = self.node.check(&self.pods[0], &web()).error();
        assert_eq!(error.code, 106, "{error:?}");
        assert!(error.text().contains(missing), "{missing:?} isn't named: {error:?}");
    }

    /// The first pod's, as the programs know it.
    fn host_veth(&self) -> (u32, Attached) {
        let index = self.pods[0].ns.ip_json("link show dev vip0")[0]["link_index"].as_u64().expect("its peer");
        let link = u32::try_from(index).expect("an index");
        (link, self.maps().attached(link, self.vip()).unwrap().expect("an entry"))
    }
}

#[test]
fn is_loaded_once_and_stands_on_every_host_end() {
    let scene = Scene::new(3);
    let programs = scene.programs();
    assert_eq!(programs.len(), 2, "one owner and one guard: {programs:?}");
    let vip = scene.vip();
    let maps = scene.maps();
    let members = maps.known(vip).unwrap().expect("the VIP is known").members;
    assert_eq!(members.len(), 3);
    for member in members {
        let entry = maps.attached(member.ifindex, vip).unwrap().expect("the replica is known");
        assert_eq!(entry, Attached { own: entry.own, ..Attached::new(member.netns, member.mac, 0) });
        assert!(scene.pods.iter().any(|pod| pod.address().octets() == entry.own), "{:?}", entry.own);
        assert_eq!(member, Member::new(member.ifindex, &entry));
    }
}

#[test]
fn check_names_a_filter_that_is_gone() {
    for side in ["egress", "ingress"] {
        let scene = Scene::new(1);
        let links = scene.node.ns.ip_json("link");
        let host_veth = links.iter().find_map(|link| link["ifname"].as_str().filter(|n| n.starts_with("vip"))).unwrap();
        scene.node.ns.cmd("tc").args(["filter", "del", "dev", host_veth, side]).finish("").ok();
        scene.names(&format!("the flow owner's filter on {host_veth}"));
    }
}

/// A VIP with that replica alone.
fn one(member: Member) -> Known {
    Known { members: vec![member], ..Known::default() }
}

#[test]
fn check_names_map_entries_and_a_sync_restores_them() {
    let scene = Scene::new(2);
    let (link, entry) = scene.host_veth();
    let vip = scene.vip();
    let good = scene.node.snapshot(&[]);
    let wrong = Attached { netns: 9999, ..entry };
    // Other replicas are their own CHECK's business.
    let other = Member::new(4_000_000, &entry);
    let damages: [(&str, Damage<'_>); 4] = [
        ("entry of", &|maps| maps.detach(link, vip).unwrap()),
        ("entry of", &|maps| maps.attach(link, vip, &wrong).unwrap()),
        ("replicas of", &|maps| maps.set(vip, &one(other), 0).unwrap()),
        ("replicas of", &|maps| maps.forget(vip).unwrap()),
    ];
    for (missing, damage) in damages {
        damage(&mut scene.maps());
        scene.names(&format!("{missing} {vip}"));
        scene.node.gc(&[&scene.pods[0], &scene.pods[1]], &web()).ok();
        scene.node.check(&scene.pods[0], &web()).ok();
        good.assert_same(&scene.node.snapshot(&[]), "damage and GC");
    }
}

#[test]
fn gc_removes_entries_that_no_record_explains() {
    let scene = Scene::new(1);
    let (_, entry) = scene.host_veth();
    let good = scene.node.snapshot(&[]);
    let nobodys = Ipv4Addr::new(10, 118, 9, 9);
    scene.maps().attach(4_000_000, scene.vip(), &entry).unwrap();
    scene.maps().attach(4_000_000, nobodys, &entry).unwrap();
    scene.maps().set(nobodys, &one(Member::new(4_000_000, &entry)), 0).unwrap();
    scene.node.gc(&[&scene.pods[0]], &web()).ok();
    good.assert_same(&scene.node.snapshot(&[]), "GC");
}

#[test]
fn del_leaves_no_entry() {
    let scene = Scene::new(2);
    for pod in &scene.pods {
        scene.node.del(pod, &web()).ok();
    }
    assert_eq!(scene.maps().all_attached().unwrap(), []);
    assert_eq!(scene.maps().vips().unwrap(), Vec::<Ipv4Addr>::new());
}

/// Another build's programs, and maps of another form: the next ADD replaces them on every host veth.
#[test]
fn another_builds_programs_and_maps_are_replaced() {
    let scene = Scene::new(2);
    let (pins, programs, known) = (scene.pins(), scene.programs(), scene.node.snapshot(&[]));
    scene.node.make_programs_another_builds();
    let pod = scene.node.joined(&web());
    scene.node.remove(&pod, &web());
    assert_eq!(scene.pins(), pins, "the pins of this build, and no others");
    assert!(scene.programs().is_disjoint(&programs), "the old programs are on host veths still");
    known.assert_same(&scene.node.snapshot(&[]), "the replacement");
    scene.node.check(&scene.pods[0], &web()).ok();
}

/// The pins deleted by hand, with programs still on the host veths.
#[test]
fn deleted_pins_are_made_anew() {
    let scene = Scene::new(1);
    let known = scene.node.snapshot(&[]);
    std::fs::remove_dir_all(scene.node.bpf_dir()).expect("delete the pins");
    scene.names("the flow owner isn't loaded");
    let pod = scene.node.joined(&web());
    scene.node.remove(&pod, &web());
    known.assert_same(&scene.node.snapshot(&[]), "making them anew");
    scene.node.check(&scene.pods[0], &web()).ok();
}

/// One clear error and nothing changed; with `"flowOwner": "off"` it works.
fn without_bpf(entry: &Join, command: &[&str], named: &str) {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let run = |verb: &str, join: &Join| {
        let (program, arguments) = command.split_first().map_or((VIPROUTE, &[][..]), |(first, rest)| (*first, rest));
        let mut command = node.ns.cmd(program);
        command.args(arguments);
        if program != VIPROUTE {
            command.arg(VIPROUTE);
        }
        let join = if verb == "STATUS" { join.clone().version("1.1.0").strict() } else { join.clone() };
        node.run(&mut command, &node.environment(verb, &pod, &join), &node.stdin(verb, &pod, &join).to_string())
    };
    // What a first ADD sets on a node by design is set.
    let other = node.joined(&web());
    node.del(&other, &web()).ok();
    std::fs::remove_dir_all(node.bpf_dir()).expect("unload");
    let before = node.snapshot(&[&pod]);
    let error = run("ADD", entry).error();
    assert_eq!(error.code, 108, "{error:?}");
    assert!(error.text().contains(named), "{named:?} isn't in {error:?}");
    before.assert_same(&node.snapshot(&[&pod]), "the refused ADD");
    let error = run("STATUS", entry).error();
    assert_eq!(error.code, 50, "{error:?}");
    assert!(error.text().contains(named), "{named:?} isn't in {error:?}");

    let off = entry.clone().key("flowOwner", json!("off"));
    let reply = run("ADD", &off);
    *pod.result.lock().unwrap() = Some(reply.ok());
    let groups = node.ns.ip_json("-d nexthop show proto 118");
    let group = groups.iter().find(|object| object.get("group").is_some()).expect("the group");
    assert_eq!(
        (&group["resilient_args"]["idle_timer"], &group["resilient_args"]["unbalanced_timer"]),
        (&json!(30), &json!(0))
    );
    run("CHECK", &off).ok();
    let client = lan.client(50, &["10.118.0.0/16 via 192.0.2.1"]);
    let _servers = serve_all(std::slice::from_ref(&pod));
    assert_eq!(connect(&client, pod.vip(), 20).names.len(), 1);
    run("DEL", &off).ok();
    before.assert_same(&node.snapshot(&[&pod]), "ADD and DEL without the flow owner");
}

#[test]
fn without_a_bpf_filesystem() {
    let dir = crate::harness::TempDir::new();
    let entry = web().key("bpfDir", json!(dir.file("viproute")));
    without_bpf(&entry, &[], "needs a BPF filesystem");
}

#[test]
fn where_bpf_is_not_permitted() {
    let strace = tool("strace");
    let command = [strace.to_str().unwrap(), "-f", "-o", "/dev/null", "-e", "inject=bpf:error=EPERM"];
    without_bpf(&web(), &command, "not permitted");
}

#[test]
fn without_the_capability() {
    let setpriv = tool("setpriv");
    // CAP_SYS_ADMIN would do for BPF too, and enters the pod: without both it is the pod that can't be entered.
    let command = [setpriv.to_str().unwrap(), "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin"];
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let mut setpriv = node.ns.cmd(command[0]);
    let join = web().version("1.1.0").strict();
    let reply =
        node.run(setpriv.args(&command[1..]).arg(VIPROUTE), &node.verb("STATUS"), &node.conf(&join).to_string());
    let error = reply.error();
    assert_eq!(error.code, 50, "{error:?}");
    assert!(error.text().contains("CAP_BPF"), "{error:?}");
}

/// The VIP's first replica decided: a pod can't join one VIP with the flow owner and one without.
#[test]
fn the_vips_of_a_pod_must_agree() {
    let scene = Scene::new(1);
    let off = Join::annotated("api").key("flowOwner", json!("off"));
    let api = scene.node.joined(&off);
    let pod = scene.node.pod();
    let before: Snapshot = scene.node.snapshot(&[&pod]);
    let error = scene.node.add(&pod, &Join::annotated("web,api")).error();
    assert_eq!(error.code, 7, "{error:?}");
    assert!(error.msg.contains("default/web") && error.msg.contains("default/api"), "{error:?}");
    before.assert_same(&scene.node.snapshot(&[&pod]), "the refused ADD");
    // Joining one of them alone, its way is taken.
    let pod = scene.node.joined(&Join::annotated("api"));
    assert_eq!(scene.maps().all_attached().unwrap().len(), 1);
    scene.node.check(&pod, &Join::annotated("api")).ok();
    scene.node.check(&api, &off).ok();
    drop(scene.lan);
}

/// Where another program pins objects too, they are left alone, whatever build comes; the mount's own root will do.
#[test]
fn pins_of_others_stay() {
    let scene = Scene::new(1);
    let own = PathBuf::from(scene.node.bpf_dir());
    let mount = own.parent().unwrap();
    let shared = mount.join("shared");
    std::fs::create_dir(&shared).unwrap();
    // As a path ends that is itself the mount, and no link to it.
    for dir in [shared, mount.join(".")] {
        let foreign = ["someone_elses", "vips", "owner_map", "cilium_v1", "owner_0123456789abcdef"];
        for name in foreign {
            std::fs::hard_link(own.join("attached_v3"), dir.join(name)).expect("pin a map a second time");
        }
        std::fs::create_dir(dir.join("somebodys")).unwrap();
        // Another build's, by their names.
        for name in ["owner_000000000000", "guard_000000000000", "counts_v1", "spoofed_v1", "vips_v0"] {
            std::fs::hard_link(own.join("attached_v3"), dir.join(name)).expect("pin a map a second time");
        }
        let join = Join::annotated("api").key("bpfDir", json!(dir));
        let pod = scene.node.joined(&join);
        let left = |name: &str| dir.join(name).exists();
        assert!(
            foreign.into_iter().chain(["somebodys"]).all(left),
            "in {}: a pin of somebody else's is gone",
            dir.display()
        );
        assert!(!left("owner_000000000000") && !left("counts_v1") && !left("spoofed_v1") && !left("vips_v0"));
        scene.node.check(&pod, &join).ok();
        scene.node.remove(&pod, &join);
        for name in foreign {
            std::fs::remove_file(dir.join(name)).expect("it is there still");
        }
    }
}

/// Who could write there would have a program of his own on every host veth.
#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let scene = Scene::new(1);
    let own = PathBuf::from(scene.node.bpf_dir());
    let dir = own.with_file_name("unsafe");
    let set = |mode| std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    let chown = |path: &PathBuf, user| std::os::unix::fs::chown(path, Some(user), None).unwrap();
    let join = Join::annotated("api").key("bpfDir", json!(dir));
    let strict = Join::annotated("api").key("bpfDir", json!(dir)).key("strictStatus", json!(true));
    let pod = scene.node.pod();
    let refused = |what: &str| {
        let before = scene.node.snapshot(&[&pod]);
        let error = scene.node.add(&pod, &join).error();
        assert_eq!(error.code, 108, "{error:?}");
        assert!(error.text().contains(what) && error.text().contains("unsafe"), "{what:?} isn't said: {error:?}");
        before.assert_same(&scene.node.snapshot(&[&pod]), what);
        let error = scene.node.status(&strict).error();
        assert!(error.text().contains(what), "{what:?} isn't said: {error:?}");
    };
    std::os::unix::fs::symlink(&own, &dir).unwrap();
    refused("it is a symbolic link");
    std::fs::remove_file(&dir).unwrap();
    std::fs::create_dir(&dir).unwrap();
    for mode in [0o777, 0o720, 0o702, 0o1777] {
        set(mode);
        refused("others than root can write to it");
    }
    set(0o755);
    chown(&dir, 65534);
    refused("it doesn't belong to root");
    chown(&dir, 0);
    // Something that was put there before.
    let planted = dir.join("attached_v3");
    std::fs::hard_link(own.join("attached_v3"), &planted).unwrap();
    chown(&planted, 65534);
    refused("it doesn't belong to root");
    chown(&planted, 0);
    std::fs::remove_file(&planted).unwrap();
    std::os::unix::fs::symlink(own.join("attached_v3"), &planted).unwrap();
    refused("it is no file, as a pin is");
    std::fs::remove_file(&planted).unwrap();
    scene.node.add(&pod, &join).ok();
}
