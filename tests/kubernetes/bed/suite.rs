//! Kubernetes' own end-to-end suite, which tests/kubernetes.sh --e2e has built, on a cluster of the tests'.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::cluster::Cluster;
use super::parts::part;
use crate::harness::image;
use crate::harness::{Run, TempDir, tool};

/// Where the suite looks for images: nothing is fetched, so that all of them are on the nodes.
const REGISTRY: &str = "rt.local";
/// What its pods run, of the version that the suite's own list names.
const AGNHOST: &str = "rt.local/agnhost:2.66.1";
/// What waits in some of its pods.
const PAUSE: &str = "rt.local/pause:3.10.2";

/// One of its specs, by its name, and what has become of it.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    /// `passed`, `failed`, `skipped` …
    pub state: String,
    pub seconds: u64,
    /// Why it failed, or skipped itself.
    pub said: String,
}

/// The suite, ready to run.
pub struct Suite<'a> {
    cluster: &'a Cluster,
    dir: TempDir,
}

impl<'a> Suite<'a> {
    /// Gives the nodes the images that its pods want.
    pub fn new(cluster: &'a Cluster) -> Self {
        let dir = TempDir::new();
        agnhost(&dir.path().join("agnhost.tar"));
        let waits = image::Content { name: PAUSE, entrypoint: &["/bin/busybox", "sleep", "1000000"], programs: &[] };
        image::of(&dir.path().join("pause.tar"), &waits);
        for worker in &cluster.workers {
            worker.containerd.import(&dir.path().join("agnhost.tar"), AGNHOST);
            worker.containerd.import(&dir.path().join("pause.tar"), PAUSE);
        }
        let keys = ["promoterE2eRegistry", "gcRegistry", "buildImageRegistry"];
        let list = keys.map(|key| format!("{key}: {REGISTRY}\n")).concat();
        fs::write(dir.file("repos.yaml"), list).expect("write the list of registries");
        fs::write(dir.file("admin"), cluster.control.admin()).expect("write a kubeconfig");
        // It calls kubectl by its name.
        std::os::unix::fs::symlink(part("kubectl"), dir.path().join("kubectl")).expect("a link");
        Self { cluster, dir }
    }

    /// The names of the specs that `focus` means, a regular expression.
    pub fn names(&self, focus: &str) -> Vec<String> {
        let status = self.command("names", focus).arg("--ginkgo.dry-run").status().expect("run the suite");
        assert!(status.success(), "the suite's dry run: {}", self.log("names"));
        self.report("names").into_iter().map(|spec| spec.name).collect()
    }

    /// Runs these specs, by so many processes side by side: each of them waits for minutes.
    pub fn run(&self, names: &[String], processes: usize) -> Vec<Spec> {
        let mut running: Vec<(String, Child)> = Vec::new();
        for number in 0..processes.min(names.len()) {
            let own = names.iter().skip(number).step_by(processes).map(|name| escaped(name));
            let focus = own.collect::<Vec<_>>().join("|");
            let run = format!("run-{number}");
            let child = self.command(&run, &focus).spawn().expect("run the suite");
            running.push((run, child));
        }
        let mut specs = Vec::new();
        for (run, mut child) in running {
            child.wait().expect("the suite ends");
            let found = self.report(&run);
            assert!(!found.is_empty(), "{run} says nothing: {}", self.log(&run));
            specs.extend(found);
        }
        specs
    }

    /// As a client outside of the cluster.
    fn command(&self, run: &str, focus: &str) -> Command {
        let mut command = self.cluster.client.cmd(part("e2e.test"));
        let log = fs::File::create(self.dir.file(&format!("{run}.log"))).expect("a log");
        command.args(["--provider=skeleton", "--minStartupPods=0", "--allowed-not-ready-nodes=0"]);
        command.args(["--ginkgo.no-color", "--ginkgo.timeout=2h", &format!("--ginkgo.focus={focus}")]);
        command.arg(format!("--ginkgo.json-report={}", self.dir.file(&format!("{run}.json"))));
        command.arg(format!("--kubeconfig={}", self.dir.file("admin")));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.dir.path().display()));
        command.env("KUBE_TEST_REPO_LIST", self.dir.file("repos.yaml")).env("HOME", self.dir.path());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second descriptor")).stderr(log).dies_with_us();
        command
    }

    fn log(&self, run: &str) -> String {
        fs::read_to_string(self.dir.file(&format!("{run}.log"))).unwrap_or_default()
    }

    /// The specs that were in focus.
    fn report(&self, run: &str) -> Vec<Spec> {
        let text = fs::read_to_string(self.dir.file(&format!("{run}.json")));
        let Ok(text) = text else { return Vec::new() };
        let report: Value = serde_json::from_str(&text).expect("ginkgo's JSON");
        let suites = report.as_array().expect("suites").iter();
        let specs = suites.flat_map(|suite| suite["SpecReports"].as_array().cloned().unwrap_or_default());
        specs.filter(|spec| spec["LeafNodeType"] == "It" && !is_out_of_focus(spec)).map(|spec| of(&spec)).collect()
    }
}

/// Those beside the focus are skipped without a word.
fn is_out_of_focus(spec: &Value) -> bool {
    spec["State"] == "skipped" && said(spec).is_empty()
}

fn said(spec: &Value) -> String {
    spec["Failure"]["Message"].as_str().unwrap_or_default().replace('\n', " ")
}

fn of(spec: &Value) -> Spec {
    let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let words: Vec<&str> = containers.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect();
    let nanoseconds = spec["RunTime"].as_u64().unwrap_or_default();
    let state = spec["State"].as_str().unwrap_or_default().to_owned();
    Spec { name: words.join(" "), state, seconds: nanoseconds / 1_000_000_000, said: said(spec) }
}

/// As a regular expression that means this text alone.
fn escaped(text: &str) -> String {
    let of = |c: char| if c.is_ascii_alphanumeric() || c == ' ' { c.to_string() } else { format!("\\{c}") };
    text.chars().map(of).collect()
}

/// The suite runs shell lines in its pods: busybox's shell would take its own applets for the programs that are named there, and its wget
/// and nc know other options.
fn agnhost(archive: &Path) {
    let dir = TempDir::new();
    let layer = dir.path().join("layer");
    let links = Command::new(tool("busybox")).arg("--list").finish("").ok();
    fs::create_dir_all(layer.join("bin")).expect("a directory for the layer");
    for place in ["etc", "tmp", "usr/bin"] {
        fs::create_dir_all(layer.join(place)).expect("a directory of the layer");
    }
    fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("write passwd");
    fs::copy(tool("busybox"), layer.join("bin/busybox")).expect("copy busybox");
    let mut programs = BTreeMap::from([("agnhost".to_owned(), part("agnhost"))]);
    for (at, name) in
        [("usr/bin/curl", "curl"), ("usr/bin/wget", "wget"), ("usr/bin/nc", "nc.openbsd"), ("bin/sh", "dash")]
    {
        programs.insert(at.to_owned(), tool(name).display().to_string());
    }
    for (at, program) in &programs {
        copy(&layer, Path::new(program), at);
    }
    for applet in links.lines().filter(|applet| !matches!(*applet, "sh" | "busybox" | "nc" | "wget")) {
        let at = layer.join("bin").join(applet);
        if !at.exists() {
            std::os::unix::fs::symlink("busybox", at).expect("a link");
        }
    }
    image::pack(&dir, archive, AGNHOST, &["/agnhost"]);
}

/// With the libraries that it is linked to.
fn copy(layer: &Path, program: &Path, at: &str) {
    fs::copy(program, layer.join(at)).unwrap_or_else(|error| panic!("copy {}: {error}", program.display()));
    let listed = Command::new(tool("ldd")).arg(program).finish("").stdout;
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = layer.join(library.trim_start_matches('/'));
        if !to.exists() {
            fs::create_dir_all(to.parent().expect("a directory")).expect("a directory of the layer");
            fs::copy(library, to).unwrap_or_else(|error| panic!("copy {library}: {error}"));
        }
    }
}
