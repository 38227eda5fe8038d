//! What the programs say of themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::markdown::root;

const VIPROUTE: &str = env!("CARGO_BIN_EXE_viproute");
const VIPROUTED: &str = env!("CARGO_BIN_EXE_viprouted");
pub const VIPROUTECTL: &str = env!("CARGO_BIN_EXE_viproutectl");

/// Nothing is there, and nothing can be made there.
const NOWHERE: &str = "/dev/null/viproute";

/// What an ADD answers that is refused: its `msg`. `extra`: keys of the conflist entry; `annotations`: the pod's.
pub fn refusal(extra: &Value, annotations: &Value) -> String {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "viproute", "allocator": NOWHERE, "dataDir": NOWHERE,
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
    });
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let mut command = Command::new(VIPROUTE);
    command.env_clear().envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")]);
    command.envs([("CNI_NETNS", NOWHERE), ("CNI_PATH", "/")]);
    let output = run(&mut command, &conf.to_string());
    let answer: Value = serde_json::from_slice(&output.stdout).expect("an answer in JSON");
    assert_eq!(answer["code"], 7, "{answer}");
    answer["msg"].as_str().expect("a message").to_owned()
}

/// What viprouted says of a configuration that it doesn't accept.
pub fn complaint(configuration: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("docs-{}.toml", std::process::id()));
    fs::write(&path, configuration).expect("write a configuration");
    let output = run(Command::new(VIPROUTED).arg("--config").arg(&path), "");
    let _ = fs::remove_file(&path);
    assert!(!output.status.success(), "accepted:\n{configuration}");
    String::from_utf8(output.stderr).expect("text")
}

fn run(command: &mut Command, stdin: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    // One that refuses its arguments ends without reading.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("its output")
}

/// The comma list that follows `mark` in a message, up to `end`.
pub fn listed(message: &str, mark: &str, end: &str) -> BTreeSet<String> {
    let (_, rest) = message.split_once(mark).unwrap_or_else(|| panic!("{mark:?} is not in: {message}"));
    let list = rest.split_once(end).map_or(rest, |(list, _)| list);
    list.trim().split(", ").map(str::to_owned).collect()
}

/// An option as `--help` shows it.
#[derive(Debug)]
pub struct Opt {
    pub name: String,
    pub has_default: bool,
    /// Its values; none where words say what it is.
    pub defaults: Vec<String>,
    pub values: Vec<String>,
}

/// What a program's `--help` lists.
pub struct Help {
    pub verbs: BTreeSet<String>,
    pub options: Vec<Opt>,
}

impl Help {
    /// `program verb --help`.
    pub fn of(program: &str, verb: Option<&str>) -> Self {
        let output = Command::new(program).args(verb).arg("--help").output().expect("--help");
        assert!(output.status.success(), "{program} {verb:?} --help failed");
        Self::read(&String::from_utf8(output.stdout).expect("text"))
    }

    /// viprouted's.
    pub fn of_viprouted() -> Self {
        Self::of(VIPROUTED, None)
    }

    fn read(text: &str) -> Self {
        let mut help = Self { verbs: BTreeSet::new(), options: Vec::new() };
        let mut section = "";
        for line in text.lines() {
            if let Some(heading) = line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
                section = heading;
                continue;
            }
            match section {
                "Commands" => help.verbs.extend(verb(line)),
                "Options" => help.option(line.trim()),
                _ => {}
            }
        }
        help
    }

    /// A line of the options: a new one, or more about the last.
    fn option(&mut self, line: &str) {
        let words = line.split([' ', ',']).filter(|word| !word.is_empty());
        let long = words.take(2).find_map(|word| word.strip_prefix("--"));
        if let Some(name) = long.filter(|_| line.starts_with('-')) {
            let name = name.to_owned();
            self.options.push(Opt { name, has_default: false, defaults: Vec::new(), values: Vec::new() });
        }
        let Some(last) = self.options.last_mut() else { return };
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.split([']', ';']).next().unwrap_or(rest));
        if let Some(default) = after("[default: ") {
            let values: Vec<&str> = default.split(' ').collect();
            last.has_default = true;
            if values.len() == 1 || values.iter().all(|value| value.starts_with('/')) {
                last.defaults = values.into_iter().map(str::to_owned).collect();
            }
        }
        if let Some(values) = after("[possible values: ") {
            last.values = values.split(", ").map(str::to_owned).collect();
        } else if let Some(value) = line.strip_prefix("- ").and_then(|rest| rest.split(':').next()) {
            last.values.push(value.trim().to_owned());
        }
    }
}

/// A verb's line is indented by two; what is said of it further below, by more.
fn verb(line: &str) -> Option<String> {
    let rest = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?;
    rest.split(' ').next().filter(|verb| *verb != "help").map(str::to_owned)
}

/// The text of every source file with that ending, for what no program says of itself.
pub fn sources(ending: &str) -> Vec<String> {
    let mut texts = Vec::new();
    collect(&root().join("src"), ending, &mut texts);
    assert!(!texts.is_empty(), "no {ending} in src");
    texts
}

fn collect(dir: &Path, ending: &str, texts: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("list a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, ending, texts);
        } else if path.to_string_lossy().ends_with(ending) {
            texts.push(fs::read_to_string(&path).expect("read a source file"));
        }
    }
}
