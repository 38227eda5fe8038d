//! viproute stays in the network it has joined, whatever way the base CNI writes that anew.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Lan, Machine, Node, PATIENCE, Run, until};

const CHAIN: &str = "/etc/cni/net.d/10-theirs.conflist";

/// A network as a base CNI writes it, another one for each number.
fn theirs(number: usize) -> String {
    format!(
        "{{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"theirs\",\n  \"plugins\": [\n    {{ \"type\": \"bridge\", \"mtu\": {} }},\n    \
         {{ \"type\": \"portmap\" }}\n  ]\n}}\n",
        1000 + number
    )
}

/// The same with viproute.
fn joined(text: &str) -> String {
    let entry = r#"{ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true } }"#;
    text.replace("\n  ]", &format!(",\n    {entry}\n  ]"))
}

/// How a base CNI replaces its network.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Another file is renamed (Calico).
    Rename,
    /// The file is emptied and written (flannel's init container copies over it).
    InPlace,
}

/// A machine with a runtime's network that viproute has joined, and viprouted.
struct Scene {
    machine: Machine,
    _node: Node,
    _lan: Lan,
}

impl Scene {
    /// `prepare` is run before the network is there.
    fn new(prepare: &str) -> Self {
        let lan = Lan::new();
        let node = Node::without_allocator(&lan, 1);
        let mut machine = Machine::new(&node);
        machine.sh(prepare);
        machine.write(CHAIN, &theirs(0));
        fs::set_permissions(machine.path(CHAIN), fs::Permissions::from_mode(0o600)).unwrap();
        machine.install("10.118.0.0/24");
        let scene = Self { machine, _node: node, _lan: lan };
        scene.has(&joined(&theirs(0)));
        scene
    }

    fn chain(&self) -> PathBuf {
        self.machine.path(CHAIN)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.chain()).unwrap_or_default()
    }

    /// The base CNI does its work.
    fn write(&self, way: Way, text: &str) {
        match way {
            Way::Rename => {
                let new = self.chain().with_file_name(".theirs.tmp");
                fs::write(&new, text).unwrap();
                fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
                fs::rename(new, self.chain()).unwrap();
            }
            Way::InPlace => fs::write(self.chain(), text).unwrap(),
        }
    }

    fn has(&self, text: &str) {
        until("the network is as expected", PATIENCE, || (self.text() == text).then_some(()));
    }

    /// How often the viprouted that runs now has put viproute back.
    fn times(&self) -> usize {
        self.ctl(&["events"]).matches("and was put back").count()
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        self.machine.cmd("/usr/local/bin/viproutectl").args(arguments).finish("").stdout
    }

    /// Waits until `viproutectl status` says that.
    fn problem(&self, text: &str) {
        until(&format!("a problem: {text}"), PATIENCE, || self.ctl(&["status"]).contains(text).then_some(()));
    }
}

#[test]
fn each_write_of_the_base_cni_is_followed_by_one() {
    let scene = Scene::new("");
    let mut slowest = Duration::ZERO;
    for number in 1..=100 {
        let way = if number % 2 == 0 { Way::Rename } else { Way::InPlace };
        let begin = Instant::now();
        scene.write(way, &theirs(number));
        scene.has(&joined(&theirs(number)));
        slowest = slowest.max(begin.elapsed());
    }
    assert_eq!(scene.times(), 100);
    eprintln!("put back after at most {} ms", slowest.as_millis());
    let metadata = fs::metadata(scene.chain()).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
    // What it was before is what it was last.
    scene.ctl(&["node", "leave"]);
    assert_eq!(scene.text(), theirs(100));
    let files = |dir: &str| scene.machine.sh(&format!("ls -A {dir}"));
    assert_eq!(
        (files("/etc/cni/net.d"), files("/etc/viproute")),
        ("10-theirs.conflist\n".into(), "viprouted.toml\n".into())
    );
}

#[test]
fn a_linked_directory_is_watched_too() {
    let scene = Scene::new("mkdir -p /etc/cni /var/lib/theirs/net.d; ln -s ../../var/lib/theirs/net.d /etc/cni/net.d");
    for (number, way) in [(1, Way::Rename), (2, Way::InPlace)] {
        scene.write(way, &theirs(number));
        until("viproute is in it", PATIENCE, || {
            (scene.machine.read("/var/lib/theirs/net.d/10-theirs.conflist") == joined(&theirs(number))).then_some(())
        });
    }
}

/// A base CNI that is killed while it writes, and its next start.
#[test]
fn half_a_network_is_left_alone() {
    let scene = Scene::new("");
    let (text, half) = (theirs(1), theirs(1).len() / 2);
    let mut file = fs::File::create(scene.chain()).unwrap();
    file.write_all(&text.as_bytes()[..half]).unwrap();
    file.sync_all().unwrap();
    // It doesn't stay so for long: nobody has closed it yet.
    let mut again = fs::OpenOptions::new().append(true).open(scene.chain()).unwrap();
    drop(file);
    scene.problem("not valid JSON");
    assert_eq!(scene.text(), text[..half]);
    again.write_all(&text.as_bytes()[half..]).unwrap();
    drop(again);
    scene.has(&joined(&text));
    until("the problem is over", PATIENCE, || (!scene.ctl(&["status"]).contains("not valid JSON")).then_some(()));
    assert_eq!(scene.times(), 1);
}

#[test]
fn a_viprouted_that_was_killed_puts_it_back_when_it_starts() {
    let mut scene = Scene::new("");
    for number in 1..=10 {
        let way = if number % 2 == 0 { Way::Rename } else { Way::InPlace };
        if number % 3 == 0 {
            scene.machine.kill("viprouted");
            scene.write(way, &theirs(number));
        } else {
            // At whatever it is just then.
            scene.write(way, &theirs(number));
            scene.machine.kill("viprouted");
        }
        let text = scene.text();
        assert!(text == theirs(number) || text == joined(&theirs(number)), "{text}");
        scene.machine.start_viprouted();
        scene.has(&joined(&theirs(number)));
    }
    scene.ctl(&["node", "leave"]);
    assert_eq!((scene.text(), scene.machine.sh("ls -A /etc/cni/net.d")), (theirs(10), "10-theirs.conflist\n".into()));
}

/// Cilium does so while its `cni.exclusive` is on.
#[test]
fn two_that_write_against_each_other_are_a_problem_and_no_storm() {
    let scene = Scene::new("");
    let (fights, fought) = (AtomicBool::new(true), theirs(1));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while fights.load(Ordering::Relaxed) {
                if scene.text().contains("viproute") {
                    scene.write(Way::Rename, &fought);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let begin = Instant::now();
        scene.problem("another program takes viproute out of /etc/cni/net.d/10-theirs.conflist each time");
        until("a few seconds of a fight", PATIENCE, || (scene.times() >= 8).then_some(()));
        let (seconds, times) = (begin.elapsed().as_secs() + 1, u64::try_from(scene.times()).unwrap());
        fights.store(false, Ordering::Relaxed);
        // The first five at once, then five a second at most.
        assert!(times <= 5 + seconds * 5, "{times} times in {seconds} s");
    });
    let found = scene.ctl(&["doctor"]);
    assert!(found.contains("another program takes viproute out of"), "{found}");
    // Nobody takes it out any more.
    scene.has(&joined(&fought));
    scene.ctl(&["node", "leave"]);
    let times = scene.times();
    until("the problem is over", PATIENCE, || (!scene.ctl(&["status"]).contains("another program")).then_some(()));
    // Who has left is not brought back, and who joins again is.
    scene.write(Way::Rename, &theirs(2));
    let said = scene.ctl(&["node", "join"]);
    assert!(said.starts_with("Joined: "), "{said}");
    scene.write(Way::InPlace, &theirs(3));
    scene.has(&joined(&theirs(3)));
    assert_eq!(scene.times(), times + 1);
}

#[test]
fn a_network_that_cilium_sets_aside_is_found() {
    let scene = Scene::new("");
    let aside = scene.chain().with_file_name("10-theirs.conflist.cilium_bak");
    fs::rename(scene.chain(), &aside).unwrap();
    scene.machine.write("/etc/cni/net.d/05-cilium.conflist", &theirs(5).replace("theirs", "cilium"));
    scene.problem("cni.exclusive=false");
    let found = scene.ctl(&["doctor"]);
    assert_eq!(found.matches("10-theirs.conflist.cilium_bak").count(), 1, "{found}");
    // As the finding says.
    fs::remove_file(aside).unwrap();
    assert!(scene.ctl(&["node", "join"]).starts_with("Joined: /etc/cni/net.d/05-cilium.conflist"));
    until("the problem is over", PATIENCE, || (!scene.ctl(&["status"]).contains("cni.exclusive")).then_some(()));
}

#[test]
fn without_inotify_the_network_is_looked_at_each_second() {
    let mut scene = Scene::new("");
    scene.machine.kill("viprouted");
    let trace = "strace -f -o /var/log/strace.log --trace=inotify_init1 --inject=inotify_init1:error=EMFILE";
    scene
        .machine
        .start("viprouted", &format!("{trace} /usr/local/bin/viprouted --config /etc/viproute/viprouted.toml"));
    scene.problem("fs.inotify.max_user_instances");
    for (number, way) in [(1, Way::Rename), (2, Way::InPlace), (3, Way::Rename)] {
        scene.write(way, &theirs(number));
        scene.has(&joined(&theirs(number)));
    }
}

/// What `node join` was asked for holds for what viprouted writes, too.
#[test]
fn an_entry_that_records_all_pods_is_put_back_as_such() {
    let scene = Scene::new("");
    scene.ctl(&["node", "leave"]);
    scene.ctl(&["node", "join", "--register"]);
    scene.write(Way::Rename, &theirs(1));
    scene.has(&joined(&theirs(1)).replace("true } }\n", "true }, \"register\": true }\n"));
}
