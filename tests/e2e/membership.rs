//! `viproutectl join` and `leave`: running pods become replicas and cease to be, whatever their annotations say, and no one
//! else notices.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Crowd, Families, Finished, Flows, Join, Lan, Node, Pod, PodServer, Run, Service, Sidecar, Storm, Stub, VIPROUTE,
    VIPROUTECTL, connect, killed_after, nothing_left, tool, until,
};

const SOON: Duration = Duration::from_secs(30);

/// A pod that names no VIP, on a network that records its pods.
fn registered() -> Join {
    Join::nothing().key("register", json!(true))
}

fn viproutectl(node: &Node, arguments: &[&str]) -> Command {
    let mut command = node.ctl();
    command.args(arguments);
    command
}

fn run(node: &Node, arguments: &[&str]) -> Finished {
    viproutectl(node, arguments).finish("")
}

fn name(pod: &Pod) -> String {
    format!("default/{}", pod.name)
}

fn has_vip0(pod: &Pod) -> bool {
    pod.ns.ip("-brief link").lines().any(|line| line.starts_with("vip0"))
}

fn endpoint_path(node: &Node, vip: &str, attachment: &str) -> PathBuf {
    Path::new(&node.data()).join(format!("vips/default_{vip}/endpoints/{attachment}@eth0.json"))
}

fn attachment_path(node: &Node, attachment: &str) -> PathBuf {
    Path::new(&node.data()).join(format!("attachments/{attachment}@eth0.json"))
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).expect("a record is JSON")
}

/// All live connections answer, and each as the replica it began with, but for those of `gone`.
fn assert_unbroken(flows: &mut [Flows], gone: &[String]) {
    flows.iter_mut().for_each(Flows::ask);
    flows.iter_mut().for_each(Flows::hear);
    let complaints: Vec<_> = flows.iter().filter_map(|flows| flows.complaint(gone)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The pod gets connections.
fn takes_its_share(service: &Service, pod: &Pod) {
    let storm = Storm::start(&service.client, service.vip, 400);
    until("the pod has its share", SOON, || (storm.next(100).of(&pod.name) > 0).then_some(()));
}

/// A mount namespace in which `/run/netns` shows these pods, as a runtime's does.
struct Shown(Child);

impl Shown {
    fn new(pods: &[&Pod]) -> Self {
        const SCRIPT: &str = r#"
            set -e
            mount -t tmpfs tmpfs /run
            mkdir /run/netns
            for pod in "$@"; do touch "/run/netns/cni-${pod##*/}"; mount --bind "$pod" "/run/netns/cni-${pod##*/}"; done
            echo shown
            exec sleep infinity"#;
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        command.args(pods.iter().map(|pod| pod.ns.path())).stdout(Stdio::piped()).dies_with_us();
        let mut child = command.spawn().expect("start unshare");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is a pipe")).read_line(&mut line).expect("read from sh");
        assert_eq!(line, "shown\n");
        Self(child)
    }

    /// A program of the node's, in there.
    fn cmd(&self, node: &Node, program: &str) -> Command {
        let mut command = node.ns.cmd(tool("nsenter").to_str().unwrap());
        command.args([&format!("--mount=/proc/{}/ns/mnt", self.0.id()), "--", program]);
        command
    }

    fn viproutectl(&self, node: &Node, arguments: &[&str]) -> Finished {
        let mut command = self.cmd(node, VIPROUTECTL);
        command.args(["--data-dir", &node.data(), "--allocator", &node.socket()]).args(arguments).finish("")
    }

    /// `join`, of a pod of a network as the runtime of `node` has it.
    fn join(&self, node: &Node, pod: &str, vip: &str) -> Finished {
        let conf_dir = network(node);
        self.viproutectl(node, &["join", pod, vip, "--conf-dir", &conf_dir])
    }

    /// A call of the plugin.
    fn call(&self, node: &Node, verb: &str, pod: &Pod) -> crate::harness::Reply {
        let join = Join::nothing();
        let stdin = node.stdin(verb, pod, &join).to_string();
        node.run(&mut self.cmd(node, VIPROUTE), &node.environment(verb, pod, &join), &stdin)
    }

    fn gc(&self, node: &Node, pods: &[&Pod]) {
        let valid: Vec<_> = pods.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" })).collect();
        let mut conf = node.conf(&Join::nothing().version("1.1.0"));
        conf["cni.dev/valid-attachments"] = json!(valid);
        node.run(&mut self.cmd(node, VIPROUTE), &node.verb("GC"), &conf.to_string()).ok();
    }

    /// The runtime takes all namespaces away.
    fn hide(&self) {
        let mount = format!("--mount=/proc/{}/ns/mnt", self.0.id());
        Command::new(tool("nsenter"))
            .args([&mount, "--", "sh", "-c", "umount /run/netns/*; rm /run/netns/*"])
            .finish("")
            .ok();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with the network of `node`.
fn network(node: &Node) -> String {
    let dir = node.dir.file("net.d");
    fs::create_dir_all(&dir).expect("a directory for networks");
    let entry = node.conf(&Join::nothing());
    let list = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp" }, entry] });
    fs::write(format!("{dir}/10-pods.conflist"), list.to_string()).expect("write a conflist");
    dir
}

/// Under 300 live connections of the other replicas: none breaks, coming and going.
#[test]
fn a_registered_pod_joins_and_leaves_under_traffic() {
    let service = Service::new(3, 1);
    let (node, pod) = (&service.node, &service.pods[3]);
    let added = node.add(pod, &registered());
    assert_eq!(added.ok(), *pod.base.lock().unwrap(), "it is passed through");
    let before = node.snapshot(&[pod]);
    let mut flows = service.flows(100);
    assert_eq!(flows.iter().map(|flows| flows.live().values().sum::<usize>()).sum::<usize>(), 300);

    let said = run(node, &["join", &name(pod), "default/web"]).ok();
    assert_eq!(said, format!("{} is a replica of default/web at {}\n", name(pod), service.vip));
    assert_eq!(pod.vip(), service.vip);
    assert_eq!(read(&endpoint_path(node, "web", &pod.id))["source"], "person");
    assert_unbroken(&mut flows, &[]);
    takes_its_share(&service, pod);
    node.check(pod, &registered()).ok();
    // What a runtime still has is kept.
    service.sync();
    assert_eq!(pod.vip(), service.vip);
    assert_unbroken(&mut flows, &[]);

    let own = Flows::open("the client, of the new one", &service.client, service.vip, 100);
    let held = own.live()[pod.name.as_str()];
    flows.push(own);
    let said = run(node, &["leave", &name(pod), "default/web"]).ok();
    assert_eq!(
        said,
        format!(
            "{} has left default/web, and {held} of its connections end: `drain --wait` before spares them\n",
            name(pod)
        )
    );
    assert_unbroken(&mut flows, std::slice::from_ref(&pod.name));
    let storm = Storm::start(&service.client, service.vip, 400);
    let after = storm.next(400);
    assert_eq!((after.of(&pod.name), after.failed), (0, Vec::<String>::new()));
    drop(storm);
    before.assert_same(&node.snapshot(&[pod]), "a join and a leave");
    node.check(pod, &registered()).ok();
    node.del(pod, &registered()).ok();
    assert!(!attachment_path(node, &pod.id).exists());
}

/// A pod that was there before viproute: it isn't restarted, and the runtime's own DEL ends it.
#[test]
fn a_pod_unknown_to_the_plugin_is_found_by_its_address() {
    let service = Service::new(3, 1);
    let (node, pod) = (&service.node, &service.pods[3]);
    let shown = Shown::new(&[&service.bystander, pod]);
    let before = node.snapshot(&[pod]);
    let mut flows = service.flows(100);
    let address = pod.address().to_string();
    let said = shown.join(node, &address, "default/web").ok();
    assert_eq!(said, format!("{address} is a replica of default/web at {}\n", service.vip));
    assert_unbroken(&mut flows, &[]);
    takes_its_share(&service, pod);

    // The runtime calls with a container ID of its own.
    shown.call(node, "CHECK", pod).ok();
    pod.ns.ip(&format!("addr del {}/32 dev vip0", service.vip));
    let found = shown.call(node, "CHECK", pod).error();
    assert!(found.msg.contains(&service.vip.to_string()), "{found:?}");
    shown.join(node, &address, "default/web").ok();
    shown.call(node, "CHECK", pod).ok();
    // To GC it is a pod like any other, though no runtime names it so.
    let valid: Vec<_> = service.pods.iter().collect();
    shown.gc(node, &valid);
    assert_eq!(pod.vip(), service.vip);

    assert_unbroken(&mut flows, &[]);
    shown.call(node, "DEL", pod).ok();
    assert_unbroken(&mut flows, &[]);
    before.assert_same(&node.snapshot(&[pod]), "a join by hand and the runtime's DEL");
    shown.call(node, "DEL", pod).ok();
    shown.call(node, "CHECK", pod).ok();

    // It leaves by hand as well, and what no other source has added needs no record.
    shown.join(node, &address, "default/web").ok();
    let left = shown.viproutectl(node, &["leave", &address, "default/web"]).ok();
    assert_eq!(left, format!("{address} has left default/web\n"));
    let left = shown.viproutectl(node, &["leave", &address, "default/web"]).ok();
    assert_eq!(left, format!("{address} is no replica of default/web\n"));
    before.assert_same(&node.snapshot(&[pod]), "a join and a leave by address");
    assert_unbroken(&mut flows, &[]);
}

/// By its address of IPv6, or by its name where it is registered.
#[test]
fn pods_with_ipv6_alone_join_too() {
    let service = Service::dual(&Join::annotated("web"), 1, 2, Families::Ipv6);
    let (node, [unknown, named]) = (&service.node, [1, 2].map(|at| &service.pods[at]));
    let addresses = unknown.ns.ip("-6 -json addr show dev eth0 scope global");
    let addresses: Value = serde_json::from_str(&addresses).expect("JSON");
    let address = addresses[0]["addr_info"][0]["local"].as_str().expect("an address").to_owned();
    let shown = Shown::new(&[&service.bystander, unknown]);
    let said = shown.join(node, &address, "default/web").ok();
    assert!(said.starts_with(&format!("{address} is a replica of default/web at ")), "{said}");
    node.add(named, &registered()).ok();
    run(node, &["join", &name(named), "default/web"]).ok();
    for to in service.addresses() {
        until(&format!("all answer at {to}"), SOON, || {
            (connect(&service.client, to, 120).names.len() == 3).then_some(())
        });
    }
    let left = shown.viproutectl(node, &["leave", &address, "default/web"]).ok();
    // One of the connections may not have ended yet.
    assert!(left.starts_with(&format!("{address} has left default/web")), "{left}");
}

#[test]
fn who_can_not_be_found_is_said_so() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    let shown = Shown::new(&[&pod]);
    for verb in ["join", "leave"] {
        let unknown = shown.viproutectl(&node, &[verb, &name(&pod), "default/web"]);
        assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
        let wanted = format!("no running pod is recorded on this node as {}: expected", name(&pod));
        assert!(unknown.stderr.contains(&wanted) && unknown.stderr.contains("\"register\": true"), "{unknown:?}");
        let unknown = shown.viproutectl(&node, &[verb, "10.9.9.9", "default/web"]);
        assert!(unknown.stderr.contains("no running pod of this node has the address 10.9.9.9"), "{unknown:?}");
    }
    assert!(!Path::new(&node.data()).exists(), "asking makes no registry");
    for bad in [["--weight", "0"], ["--ports", "80"], ["--health", "always"], ["--udp-reply", "pod"]] {
        let refused = shown.viproutectl(&node, &[&["join", "10.1.1.2", "default/web"][..], &bad[..]].concat());
        assert_eq!(refused.status.code(), Some(2), "{bad:?}: {refused:?}");
    }
    assert_eq!(shown.viproutectl(&node, &["join", "10.1.1.2", "web"]).status.code(), Some(2), "a VIP has a namespace");
    // Two pods that share an address, on two networks say.
    let twin = node.pod();
    twin.ns.ip("addr flush dev eth0");
    twin.ns.ip(&format!("addr add {}/24 dev eth0", pod.address()));
    let both = Shown::new(&[&pod, &twin]);
    let ambiguous = both.join(&node, &pod.address().to_string(), "default/web");
    assert!(ambiguous.stderr.contains(&format!("{} stands for 2 on this node", pod.address())), "{ambiguous:?}");
    nothing_left(&node);
}

/// An annotation's VIP is left by hand as any other; CHECK asks for what is recorded, not for what the ADD made.
#[test]
fn a_person_goes_before_the_annotation() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let (pod, web) = (node.joined(&Join::annotated("web")), Join::annotated("web"));
    node.del(&pod, &web).ok();
    let before = node.snapshot(&[&pod]);
    node.add(&pod, &web).ok();
    let _server = PodServer::start(&pod);
    let of_web = pod.vip();
    run(&node, &["join", &name(&pod), "default/api"]).ok();
    let of_api = node.stub(|stub| stub.address("default/api"));
    assert_eq!(pod.vips(), {
        let mut both = [of_web, of_api];
        both.sort();
        both
    });
    connect(&node.ns, of_web, 3);
    connect(&node.ns, of_api, 3);
    node.check(&pod, &web).ok();

    run(&node, &["leave", &name(&pod), "default/web"]).ok();
    assert_eq!(pod.vip(), of_api);
    connect(&node.ns, of_api, 3);
    assert_eq!(node.ns.ip(&format!("route show {of_web}")), "");
    assert!(node.stub(Stub::requests).contains(&json!({ "release": { "vip": "default/web" } })));
    node.check(&pod, &web).ok();
    run(&node, &["leave", &name(&pod), "default/api"]).ok();
    assert!(!has_vip0(&pod));
    node.check(&pod, &web).ok();
    node.gc(&[&pod], &web).ok();
    node.check(&pod, &web).ok();

    // Its name is known even so.
    run(&node, &["join", &name(&pod), "default/web"]).ok();
    connect(&node.ns, of_web, 3);
    node.check(&pod, &web).ok();
    node.del(&pod, &web).ok();
    before.assert_same(&node.snapshot(&[&pod]), "what happened by hand, and a DEL");
}

#[test]
fn once_more_changes_what_it_is_and_nothing_else() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let pod = node.pod();
    node.add(&pod, &registered()).ok();
    let join = |options: &[&str]| run(&node, &[&["join", &name(&pod), "default/web"][..], options].concat());
    let record = || read(&endpoint_path(&node, "web", &pod.id));
    join(&["--ports", "80/tcp,53/udp", "--weight", "5"]).ok();
    let first = record();
    assert_eq!((&first["ports"], &first["weight"]), (&json!(["80/tcp", "53/udp"]), &json!(5)));
    let before = node.snapshot(&[&pod]);
    join(&[]).ok();
    before.assert_same(&node.snapshot(&[&pod]), "the same join");
    join(&["--weight", "1", "--udp-reply", "vip"]).ok();
    let second = record();
    assert_eq!((&second["ports"], &second["weight"]), (&first["ports"], &json!(1)));
    let rules = pod.ns.ip("rule");
    assert!(rules.contains("sport 53"), "{rules}");
    node.check(&pod, &registered()).ok();
    // What doesn't go together leaves it as it was.
    let before = node.snapshot(&[&pod]);
    let refused = join(&["--ports", "53/udp", "--health", "tcp"]);
    assert!(refused.stderr.contains("the check \"tcp\" needs a TCP port of VIP default/web"), "{refused:?}");
    let refused = run(&node, &["join", &name(&pod), "default/dns", "--ports", "53/udp", "--udp-reply", "vip"]);
    assert!(refused.stderr.contains("53/udp both"), "{refused:?}");
    before.assert_same(&node.snapshot(&[&pod]), "joins that are refused");
    let said = join(&["--health", "listen"]).ok();
    assert!(!said.contains("once its check"), "it is ready until its check finds otherwise: {said}");
    let said = run(&node, &["join", &name(&pod), "default/api", "--ports", "80/tcp", "--health", "listen"]).ok();
    assert!(said.contains("gets connections once its check finds that it can answer"), "{said}");
    assert_eq!(read(&endpoint_path(&node, "api", &pod.id))["state"], "pending");
    for vip in ["c", "d", "e", "f", "g", "h"] {
        run(&node, &["join", &name(&pod), &format!("default/{vip}")]).ok();
    }
    let refused = run(&node, &["join", &name(&pod), "default/ninth"]);
    assert!(refused.stderr.contains("a pod can join 8"), "{refused:?}");
}

/// The VIPs that stay keep the tables by which their UDP sockets answer.
#[test]
fn reply_tables_stay_where_they_are() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let dns = Join::annotated("web,dns")
        .annotation("viproute.io/ports", "web=80/tcp,dns=53/udp")
        .annotation("viproute.io/udp-reply", "vip");
    let pod = node.joined(&dns);
    let rule = |port: &str| {
        let rules = pod.ns.ip("rule");
        rules.lines().find(|line| line.contains(&format!("sport {port}"))).map(str::to_owned)
    };
    let before = rule("53").expect("a rule for the answers");
    // As an earlier version wrote it.
    let path = endpoint_path(&node, "dns", &pod.id);
    let mut endpoint = read(&path);
    endpoint.as_object_mut().unwrap().remove("place");
    fs::write(&path, endpoint.to_string()).expect("write an endpoint");
    run(&node, &["leave", &name(&pod), "default/web"]).ok();
    assert_eq!(rule("53").as_ref(), Some(&before));
    let options = ["--ports", "54/udp", "--udp-reply", "vip"];
    run(&node, &[&["join", &name(&pod), "default/log"][..], &options].concat()).ok();
    assert_eq!(rule("53").as_ref(), Some(&before));
    assert!(rule("54").is_some());
    node.check(&pod, &dns).ok();
}

/// What an earlier version has recorded says less.
#[test]
fn a_pod_that_an_earlier_version_attached_joins_too() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    let web = Join::annotated("web");
    let pod = node.joined(&web);
    let path = attachment_path(&node, &pod.id);
    let mut record = read(&path);
    for key in ["pod", "address", "spec"] {
        assert!(record.as_object_mut().unwrap().remove(key).is_some(), "{key} in {record}");
    }
    fs::write(&path, record.to_string()).expect("write an attachment");
    run(&node, &["join", &name(&pod), "default/api", "--conf-dir", &network(&node)]).ok();
    assert_eq!(pod.vips().len(), 2);
    node.check(&pod, &web).ok();
    node.del(&pod, &web).ok();
    nothing_left(&node);
}

#[test]
fn another_boot_knows_nothing_of_it() {
    let lan = Lan::new();
    let mut node = Node::new(&lan, 1);
    let (pod, other) = (node.pod(), node.pod());
    for pod in [&pod, &other] {
        node.add(pod, &registered()).ok();
    }
    run(&node, &["join", &name(&pod), "default/web"]).ok();
    // A living namespace would show that it is the same boot.
    let gone = name(&other);
    drop((pod, other));
    node.reboot(&lan);
    let unknown = run(&node, &["join", &gone, "default/web"]);
    assert!(unknown.stderr.contains("no running pod is recorded"), "{unknown:?}");
    nothing_left(&node);
    let fresh = node.pod();
    node.add(&fresh, &registered()).ok();
    run(&node, &["join", &name(&fresh), "default/web"]).ok();
    node.check(&fresh, &registered()).ok();
}

/// The record is a convenience: where it can't be written the pod starts all the same, and viprouted tells of it.
#[test]
fn a_pod_that_can_not_be_registered_is_passed_through() {
    let lan = Lan::new();
    let node = Node::without_allocator(&lan, 1);
    let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
    let pod = node.pod();
    let nowhere = registered().key("dataDir", json!("/proc/nowhere"));
    let reply = node.add(&pod, &nowhere);
    assert_eq!(reply.ok(), *pod.base.lock().unwrap());
    assert_eq!(reply.0.stderr, "");
    until("an event tells of it", SOON, || {
        let events = run(&node, &["events"]).ok();
        events.contains(&format!("ADD of {}: not registered: create /proc/nowhere", name(&pod))).then_some(())
    });
    // A network that doesn't ask for it leaves nothing.
    let quiet = node.pod();
    node.add(&quiet, &Join::nothing()).ok();
    assert!(!Path::new(&node.data()).join("attachments").join(format!("{}@eth0.json", quiet.id)).exists());
    // As with any key, a bad value refuses those alone that want a VIP.
    let bad = Join::annotated("web").key("register", json!("yes"));
    assert!(node.call("ADD", &pod, &bad).error().msg.contains("\"register\" is"));
}

/// A pod that no runtime asks the removal of, since none has ever named it: the next full resync removes it.
#[test]
fn a_pod_that_died_unknown_is_collected() {
    let lan = Lan::new();
    let node = Node::new(&lan, 1);
    for by_viprouted in [false, true] {
        let pod = node.pod();
        let shown = Shown::new(&[&pod]);
        shown.join(&node, &pod.address().to_string(), "default/web").ok();
        assert!(has_vip0(&pod));
        if by_viprouted {
            node.stop_allocator();
            let _sidecar = Sidecar::pool(&node, "10.118.0.0/24");
            shown.hide();
            drop(pod);
            until("viprouted removes it", SOON, || node.records().is_empty().then_some(()));
        } else {
            shown.hide();
            drop(pod);
            shown.gc(&node, &[]);
        }
        nothing_left(&node);
    }
}

/// A node with a survivor, a replica that is served all the time, and a registered pod whose joins and leaves are killed.
struct Killing {
    node: Node,
    survivor: Pod,
    pod: Pod,
    vip: Ipv4Addr,
    _servers: [Crowd; 2],
    _lan: Lan,
}

impl Killing {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let survivor = node.joined(&Join::annotated("web"));
        let pod = node.pod();
        let servers = [Crowd::start(&survivor), Crowd::start(&pod)];
        node.add(&pod, &registered()).ok();
        Self { vip: survivor.vip(), survivor, pod, node, _servers: servers, _lan: lan }
    }

    /// Kills one at a random moment; how long it takes otherwise is `usual`. True: it was at work.
    fn kill(&self, arguments: &[&str], usual: Duration) -> bool {
        killed_after(&mut viproutectl(&self.node, arguments), "", usual.mul_f64(rand::random()))
    }

    fn timed(&self, arguments: &[&str]) -> Duration {
        let start = Instant::now();
        run(&self.node, arguments).ok();
        start.elapsed()
    }

    fn gc(&self) {
        self.node.gc(&[&self.survivor, &self.pod], &registered()).ok();
    }
}

/// Whatever a kill leaves, the next of anything makes it whole: the pod is in none of the VIPs that were changing, and in
/// the others as before.
#[test]
fn killed_at_random_moments() {
    const KILLS: u32 = 25;
    thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                let scene = Killing::new();
                let (node, pod) = (&scene.node, name(&scene.pod));
                let join = ["join", &pod, "default/fresh"];
                let leave = ["leave", &pod, "default/fresh"];
                // One worker's pod is in another VIP all the time.
                if worker == 1 {
                    run(node, &["join", &pod, "default/web"]).ok();
                }
                let (to_join, to_leave) = (scene.timed(&join), scene.timed(&leave));
                let before = node.snapshot(&[&scene.survivor, &scene.pod]);
                let (mut killed, mut round) = (0, 0);
                while killed < KILLS {
                    if round % 2 == 0 {
                        killed += u32::from(scene.kill(&join, to_join));
                    } else {
                        run(node, &join).ok();
                        killed += u32::from(scene.kill(&leave, to_leave));
                    }
                    match round % 3 {
                        0 => scene.gc(),
                        1 => drop(run(node, &join).ok()),
                        _ => {}
                    }
                    run(node, &leave).ok();
                    before.assert_same(&node.snapshot(&[&scene.survivor, &scene.pod]), "a call that was killed");
                    node.check(&scene.pod, &registered()).ok();
                    connect(&node.ns, scene.vip, 1);
                    round += 1;
                    assert!(round < 20 * KILLS, "{killed} of {round} calls were at work");
                }
            });
        }
    });
}

/// The same left to a single one of those that clean up.
#[test]
fn what_a_kill_leaves_goes_by_itself() {
    let scene = Killing::new();
    let (node, pod) = (&scene.node, name(&scene.pod));
    let join = ["join", &pod, "default/fresh"];
    let usual = scene.timed(&join);
    run(node, &["leave", &pod, "default/fresh"]).ok();
    let record = attachment_path(node, &scene.pod.id);
    let is_changing = || !read(&record)["changing"].as_array().is_none_or(Vec::is_empty);
    let interrupt = || {
        for _ in 0..200 {
            scene.kill(&join, usual);
            if is_changing() {
                return;
            }
            run(node, &["leave", &pod, "default/fresh"]).ok();
        }
        panic!("no kill has hit a join on its way");
    };
    let is_clean = || {
        let fresh = Path::new(&node.data()).join("vips/default_fresh");
        !is_changing() && !fresh.exists() && !has_vip0(&scene.pod)
    };
    interrupt();
    scene.gc();
    assert!(is_clean(), "GC");
    interrupt();
    run(node, &["leave", &pod, "default/web"]).ok();
    assert!(is_clean(), "the next call, about something else");
    interrupt();
    node.stop_allocator();
    let sidecar = Sidecar::pool(node, "10.118.0.0/24");
    until("viprouted's start", SOON, || is_clean().then_some(()));
    drop(sidecar);
    node.del(&scene.pod, &registered()).ok();
    assert!(!record.exists());
    connect(&node.ns, scene.vip, 1);
}
