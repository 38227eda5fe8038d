//! Each step of ADD fails in turn: the error names that step, and nothing of the ADD is left. The failures are made by
//! strace, which runs the plugin and answers one of its system calls itself.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write;

use crate::harness::{Join, Lan, Netns, Node, Pod, Reply, Snapshot, VIPROUTE, tool};

/// A node with a replica of `web`, and a pod about to join that VIP and another one, whose first replica it is.
struct Scene {
    node: Node,
    first: Pod,
    pod: Pod,
    join: Join,
    before: RefCell<Snapshot>,
    /// What should not be, told at the end: one failure's traces must not hide the next failure's.
    troubles: RefCell<Vec<String>>,
    _lan: Lan,
}

fn web() -> Join {
    Join::annotated("web")
}

impl Scene {
    fn new() -> Self {
        let lan = Lan::new();
        let node = Node::new(&lan, 1);
        let first = node.joined(&web());
        let (pod, join) = (node.pod(), Join::annotated("web,fresh"));
        // Once there and back, so that what a first ADD leaves on a node by design is there.
        node.add(&pod, &join).ok();
        node.del(&pod, &join).ok();
        *pod.result.lock().unwrap() = None;
        let before = RefCell::new(node.snapshot(&[&first, &pod]));
        Self { node, first, pod, join, before, troubles: RefCell::default(), _lan: lan }
    }

    /// An ADD under strace.
    fn traced(&self, arguments: &[&str]) -> Reply {
        let mut command = self.node.ns.cmd(tool("strace").to_str().unwrap());
        command.args(["-f", "-s", "256", "-o", &self.node.dir.file("trace")]).args(arguments).arg(VIPROUTE);
        let environment = self.node.environment("ADD", &self.pod, &self.join);
        self.node.run(&mut command, &environment, &self.node.stdin("ADD", &self.pod, &self.join).to_string())
    }

    fn trace(&self) -> Trace {
        let text = std::fs::read_to_string(self.node.dir.file("trace")).unwrap();
        let lines = text.lines().filter_map(|line| {
            let (process, call) = line.split_once(' ')?;
            Some((process.to_string(), call.trim_start().to_string()))
        });
        Trace(lines.collect())
    }

    /// What an undisturbed ADD does, and undone again.
    fn rehearsal(&self) -> Trace {
        self.traced(&[]).ok();
        self.node.del(&self.pod, &self.join).ok();
        self.untouched("ADD and DEL");
        self.trace()
    }

    fn untouched(&self, what: &str) {
        let now = self.node.snapshot(&[&self.first, &self.pod]);
        let before = self.before.replace(now.clone());
        let changes = before.changes(&now);
        if !changes.is_empty() {
            self.trouble(format!("{what} left something changed:\n  {}", changes.join("\n  ")));
        }
        self.node.check(&self.first, &web()).ok();
    }

    fn trouble(&self, trouble: String) {
        self.troubles.borrow_mut().push(trouble);
    }

    fn assert_no_trouble(&self) {
        let troubles = self.troubles.borrow();
        assert!(troubles.is_empty(), "{}", troubles.join("\n"));
    }

    /// One ADD with `injection`. Whether it fails and has left nothing, or it could do without and is whole. Returns the
    /// step that failed.
    fn disturbed(&self, injection: &str) -> Option<String> {
        let reply = self.traced(&["-e", &format!("inject={injection}")]);
        if reply.succeeded() {
            *self.pod.result.lock().unwrap() = Some(reply.ok());
            self.node.check(&self.pod, &self.join).ok();
            self.node.del(&self.pod, &self.join).ok();
            *self.pod.result.lock().unwrap() = None;
            self.untouched(&format!("ADD in spite of {injection}, and DEL,"));
            return None;
        }
        if reply.0.status.code() != Some(1) || reply.0.stderr.contains("panicked") {
            self.trouble(format!("{injection}: {}\n  {}{}", reply.0.status, reply.0.stdout, reply.0.stderr.trim()));
            self.untouched(&format!("an ADD that ended by {injection}"));
            return None;
        }
        let error = reply.error();
        self.untouched(&format!("an ADD that failed by {injection} ({error:?})"));
        Some(error.msg)
    }
}

/// System calls by the thread that made them.
struct Trace(Vec<(String, String)>);

impl Trace {
    /// Which of each thread's own calls of `name` belong to the plugin's work, from the moment it opens the pod's
    /// namespace: what happens before is the dynamic loader's and the runtime library's.
    fn numbers(&self, name: &str, namespace: &str) -> BTreeSet<usize> {
        self.calls(name, namespace).into_iter().map(|(number, _)| number).collect()
    }

    fn calls(&self, name: &str, namespace: &str) -> Vec<(usize, &str)> {
        let start =
            self.0.iter().position(|(_, call)| call.contains(namespace)).expect("the pod's namespace is opened");
        let mut seen = std::collections::BTreeMap::<&str, usize>::new();
        let mut calls = Vec::new();
        // strace counts each thread's calls: who makes another thread's first one fail makes the dynamic loader's fail, too.
        let mut early = BTreeSet::new();
        for (at, (process, call)) in self.0.iter().enumerate() {
            // A call that another thread's interrupts is counted where it begins.
            if call.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')) {
                let number = seen.entry(process).or_default();
                *number += 1;
                if at < start {
                    early.insert(*number);
                } else if !call.starts_with("write(1,") && !early.contains(number) {
                    calls.push((*number, call.as_str()));
                }
            }
        }
        calls
    }
}

/// Every one of the plugin's own calls of each kind fails once, with the error given; returns what was reported.
fn fail_each(calls: &[(&str, &str)]) -> BTreeSet<String> {
    let scene = Scene::new();
    let trace = scene.rehearsal();
    let mut messages = BTreeSet::new();
    for (name, errno) in calls {
        let numbers = trace.numbers(name, &scene.pod.ns.path());
        assert!(!numbers.is_empty(), "the plugin makes no {name}");
        for number in numbers {
            messages.extend(scene.disturbed(&format!("{name}:error={errno}:when={number}")));
        }
    }
    scene.assert_no_trouble();
    messages
}

/// `steps` are what some of the errors must begin with.
fn assert_named(messages: &BTreeSet<String>, steps: &[&str]) {
    let mut text = String::new();
    for message in messages {
        let _ = writeln!(text, "  {message}");
    }
    for step in steps {
        assert!(messages.iter().any(|message| message.starts_with(step)), "no error names {step:?}:\n{text}");
    }
}

/// The first of each batch of messages: with it fails the batch.
const KERNEL_STEPS: &[&str] = &["get link", "list routes", "add link vip", "configure link"];

#[test]
fn messages_to_the_kernel_that_cannot_be_sent() {
    let messages = fail_each(&[("sendto", "ENOBUFS")]);
    assert_named(&messages, KERNEL_STEPS);
}

#[test]
fn answers_of_the_kernel_that_are_lost() {
    let messages = fail_each(&[("recvfrom", "ENOBUFS")]);
    assert_named(&messages, KERNEL_STEPS);
}

#[test]
fn sockets_and_namespaces_that_cannot_be_had() {
    let calls = [
        ("setns", "EPERM"),
        ("socket", "EMFILE"),
        ("bind", "ENOMEM"),
        ("connect", "ECONNREFUSED"),
        ("setsockopt", "ENOPROTOOPT"),
        ("ioctl", "ENOTTY"),
        ("clone3", "EAGAIN"),
    ];
    let messages = fail_each(&calls);
    assert_named(&messages, &["enter network namespace", "open netlink socket", "no address for VIP default/fresh"]);
}

#[test]
fn files_that_cannot_be_opened() {
    let messages = fail_each(&[("openat", "EMFILE"), ("openat", "ENOSPC")]);
    assert_named(&messages, &["open network namespace", "read sysctl", "open /", "create /", "write /", "list /"]);
}

#[test]
fn files_that_cannot_be_written() {
    let calls = [
        ("mkdir", "ENOSPC"),
        ("write", "ENOSPC"),
        ("rename", "ENOSPC"),
        ("flock", "ENOLCK"),
        ("ftruncate", "EIO"),
        ("read", "EIO"),
        ("getdents64", "EIO"),
    ];
    let messages = fail_each(&calls);
    assert_named(&messages, &["create /", "write /", "lock /", "read /", "list /"]);
}

/// Programs opened, entries read and written.
#[test]
fn programs_and_maps_that_cannot_be_reached() {
    let messages = fail_each(&[("bpf", "ENOMEM")]);
    assert_named(&messages, &["load the flow owner", "write map entry", "read map entry"]);
}

/// The kernel carries a change out and is made to say that it refused it: every acknowledgement in turn becomes `ENOSPC`.
#[test]
fn changes_the_kernel_refuses() {
    let scene = Scene::new();
    let trace = scene.rehearsal();
    let mut messages = BTreeSet::new();
    let mut refused = 0;
    for (number, call) in trace.calls("recvfrom", &scene.pod.ns.path()) {
        if let Some(refusal) = call.contains("{error=0, ").then(|| refusal(call)) {
            messages.extend(scene.disturbed(&format!("recvfrom:poke_exit=@arg2={refusal}:when={number}")));
            refused += 1;
        }
    }
    assert!(refused > 10, "strace shows acknowledgements");
    scene.assert_no_trouble();
    assert_named(
        &messages,
        &[
            "add link vip",
            "configure link",
            "set up link",
            "add address 10.118.0.",
            "add address 169.254.118.1",
            "add neighbour 169.254.118.1",
            "add neighbour 10.1.1.",
            "add route default via 169.254.118.1 table 118",
            "add rule from 10.118.0.",
        ],
    );
}

/// The first bytes of an acknowledgement that says ENOSPC, otherwise as strace shows this one.
fn refusal(call: &str) -> String {
    let number = |key: &str| -> u32 {
        let (_, rest) = call.split_once(key).unwrap_or_else(|| panic!("{key} in {call}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|error| panic!("{key} in {call}: {error}"))
    };
    let mut bytes = number("nlmsg_len=").to_le_bytes().to_vec();
    bytes.extend(NLMSG_ERROR.to_le_bytes());
    bytes.extend(NLM_F_CAPPED.to_le_bytes());
    bytes.extend(number("nlmsg_seq=").to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend((-libc::ENOSPC).to_le_bytes());
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const NLMSG_ERROR: u16 = 2;
const NLM_F_CAPPED: u16 = 0x100;

/// The plugin is killed at each of its calls (by SIGTERM, which it leaves to the kernel, as SIGKILL): the DEL that a runtime sends then clears it all away.
#[test]
fn killed_at_any_point() {
    let scene = Scene::new();
    let trace = scene.rehearsal();
    for name in ["sendto", "openat", "rename", "write"] {
        for number in trace.numbers(name, &scene.pod.ns.path()) {
            let injection = format!("{name}:error=EINTR:signal=TERM:when={number}");
            let reply = scene.traced(&["-e", &format!("inject={injection}")]);
            assert!(!reply.succeeded(), "{injection}: {reply:?}");
            scene.node.del(&scene.pod, &scene.join).ok();
            scene.untouched(&format!("an ADD with {injection}, and DEL,"));
        }
    }
    scene.assert_no_trouble();
}

/// A foreign object is where an object of a VIP has to be.
fn in_the_way(place: impl FnOnce(&Scene) -> (&Netns, String), step: &str) {
    let scene = Scene::new();
    let (ns, object) = place(&scene);
    ns.ip(&object);
    scene.before.replace(scene.node.snapshot(&[&scene.first, &scene.pod]));
    let error = scene.node.add(&scene.pod, &scene.join).error();
    assert!(error.msg.starts_with(step), "{error:?}");
    scene.untouched(&format!("an ADD that met with {object} ({error:?})"));
    scene.assert_no_trouble();
}

/// The address that the node's allocator gave `fresh`, and will give it again.
fn fresh(scene: &Scene) -> std::net::Ipv4Addr {
    scene.node.stub(|stub| stub.address("default/fresh"))
}

#[test]
fn a_foreign_announcement_is_in_the_way() {
    in_the_way(
        |scene| (&scene.node.ns, format!("route add unreachable {}/32 metric 1 proto static", fresh(scene))),
        "add route unreachable 10.118.0.2/32 metric 1",
    );
}

#[test]
fn a_foreign_route_is_in_the_way() {
    in_the_way(
        |scene| (&scene.node.ns, format!("route add {}/32 via 192.0.2.254 proto static", fresh(scene))),
        "add route 10.118.0.2/32",
    );
}

/// The kernel tells rules apart by their protocol: both can stand, and DEL takes ours alone.
#[test]
fn a_foreign_rule_like_ours_stays() {
    let scene = Scene::new();
    let rules = scene.first.ns.ip_json("-4 rule");
    let ours = rules.iter().find(|rule| rule["table"] == "118").expect("a pod's rule");
    scene.pod.ns.ip(&format!("rule add from {}/32 lookup 118 priority {}", fresh(&scene), ours["priority"]));
    let before = scene.node.snapshot(&[&scene.first, &scene.pod]);
    scene.node.add(&scene.pod, &scene.join).ok();
    scene.node.del(&scene.pod, &scene.join).ok();
    before.assert_same(&scene.node.snapshot(&[&scene.first, &scene.pod]), "ADD and DEL beside a foreign rule");
}

/// A VIP's routes are put in order in several tries, so a single failure there costs nothing; one that stays is reported.
#[test]
fn routes_that_cannot_be_written() {
    let scene = Scene::new();
    let trace = scene.rehearsal();
    let namespace = scene.pod.ns.path();
    let changes = |trace: &Trace| -> Vec<usize> {
        let sent = trace.calls("sendto", &namespace);
        sent.into_iter().filter(|(_, call)| call.contains("RTM_NEWNEXTHOP")).map(|(number, _)| number).collect()
    };
    let [own, of_web, of_fresh] = changes(&trace)[..] else {
        panic!("a nexthop, and one group for each VIP: {:?}", changes(&trace));
    };
    let error = scene.disturbed(&format!("sendto:error=ENOSPC:when={own}"));
    assert!(error.as_ref().is_some_and(|error| error.starts_with("add nexthop id ")), "{error:?}");
    for (first, step) in [(of_web, "replace nexthop group id "), (of_fresh, "add nexthop group id ")] {
        assert_eq!(scene.disturbed(&format!("sendto:error=ENOSPC:when={first}")), None, "a second try");
        let retry = changes(&scene.trace()).into_iter().find(|number| *number > first).expect("a second try");
        let (last, period) = (first + 3 * (retry - first), retry - first);
        let error = scene.disturbed(&format!("sendto:error=ENOSPC:when={first}..{last}+{period}"));
        assert!(error.as_ref().is_some_and(|error| error.starts_with(step)), "{error:?}");
    }
    scene.assert_no_trouble();
}
