//! The environment a runtime calls a plugin with (CNI spec, section 2, "Parameters").

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::{AttachmentId, DEFAULT_NAMESPACE};

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Compare its attachment with the registry.
    Check,
    /// Remove what no valid attachment needs.
    Gc,
    /// Could an ADD work?
    Status,
    /// Which versions?
    Version,
}

impl Command {
    /// As `CNI_COMMAND` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// The pod that `CNI_ARGS` names; empty where it names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE` or `NOMAD_NAMESPACE`; `default` where the runtime knows no namespaces.
    pub namespace: String,
    /// `K8S_POD_NAME`; with Nomad the group's name and the allocation's ID as far as Nomad shows it.
    pub name: String,
    /// `K8S_POD_UID` or `NOMAD_ALLOC_ID`
    pub uid: String,
}

/// `CNI_ARGS`, as far as it concerns viproute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Nomad's.
    pub is_nomad: bool,
    /// `VIPROUTE_…`: what a Nomad job says in its group's `cni { args }`.
    pub ours: BTreeMap<String, String>,
}

impl Arguments {
    /// The argument that the pod's namespace comes from.
    pub fn namespace(&self) -> &'static str {
        if self.is_nomad { "NOMAD_NAMESPACE" } else { "K8S_POD_NAMESPACE" }
    }
}

/// A call, as far as the environment says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is to be done.
    pub command: Command,
    /// To which attachment; ADD, DEL and CHECK have one.
    pub attachment: Option<AttachmentId>,
    /// `CNI_NETNS`; ADD and CHECK have one, DEL may.
    pub netns: Option<PathBuf>,
    /// From `CNI_ARGS`.
    pub pod: Pod,
    /// From `CNI_ARGS`.
    pub arguments: Arguments,
}

/// A variable that is missing or bad.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// It is not set, or empty.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// It is not UTF-8 text.
    #[error("{0} is not UTF-8 text")]
    NotText(&'static str),
    /// It is set to something it can't be.
    #[error("{variable} is {value:?}: expected {expected}")]
    Invalid {
        /// Which variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

/// Arguments of viproute's own begin with this.
const OURS: &str = "VIPROUTE_";

/// The longest container ID taken. It becomes part of a file name, which may have 255 bytes.
const MAX_CONTAINER_ID: usize = 200;
/// `IFNAMSIZ` less the final zero.
const MAX_IFNAME: usize = 15;

impl Call {
    /// Reads and checks the variables; `variable` looks one up.
    pub fn from_env(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self, EnvError> {
        let text = |name: &'static str| -> Result<Option<String>, EnvError> {
            match variable(name) {
                None => Ok(None),
                Some(value) if value.is_empty() => Ok(None),
                Some(value) => value.into_string().map(Some).map_err(|_| EnvError::NotText(name)),
            }
        };
        let required = |name| text(name)?.ok_or(EnvError::Missing(name));
        let command = command(&required("CNI_COMMAND")?)?;
        let mut call =
            Self { command, attachment: None, netns: None, pod: Pod::default(), arguments: Arguments::default() };
        if !matches!(command, Command::Add | Command::Del | Command::Check) {
            return Ok(call);
        }
        call.attachment = Some(AttachmentId {
            container_id: container_id(required("CNI_CONTAINERID")?)?,
            ifname: ifname(required("CNI_IFNAME")?)?,
        });
        call.netns = match command {
            Command::Del => text("CNI_NETNS")?,
            _ => Some(required("CNI_NETNS")?),
        }
        .map(PathBuf::from);
        (call.pod, call.arguments) = match text("CNI_ARGS").and_then(|args| arguments(&args.unwrap_or_default())) {
            // A DEL needs no pod name.
            Err(_) if command == Command::Del => Default::default(),
            read => read?,
        };
        if call.pod.namespace.is_empty() {
            DEFAULT_NAMESPACE.clone_into(&mut call.pod.namespace);
        }
        Ok(call)
    }
}

fn command(value: &str) -> Result<Command, EnvError> {
    Ok(match value {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => Command::Version,
        other => {
            return Err(EnvError::Invalid {
                variable: "CNI_COMMAND",
                value: other.to_owned(),
                expected: "ADD, DEL, CHECK, GC, STATUS or VERSION",
            });
        }
    })
}

/// Section 2: "Must start with an alphanumeric character, optionally followed by one or more alphanumeric characters,
/// underscore, dot, or hyphen". Capitals included.
pub fn is_identifier(value: &str) -> bool {
    value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn container_id(value: String) -> Result<String, EnvError> {
    if is_identifier(&value) && value.len() <= MAX_CONTAINER_ID {
        return Ok(value);
    }
    Err(EnvError::Invalid {
        variable: "CNI_CONTAINERID",
        value,
        expected: "at most 200 letters, digits, '_', '.' and '-', a letter or digit first",
    })
}

/// As the kernel names devices (`dev_valid_name`), and as the CNI library checks it.
fn ifname(value: String) -> Result<String, EnvError> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if value.len() <= MAX_IFNAME && value != "." && value != ".." && !value.contains(bad) {
        return Ok(value);
    }
    Err(EnvError::Invalid {
        variable: "CNI_IFNAME",
        value,
        expected: "a device name: at most 15 bytes, no '/', ':' or blank",
    })
}

/// `CNI_ARGS` is `KEY=VALUE;…`. Keys that are neither a runtime's nor ours are for others. Control characters would get into logs
/// and onto terminals by the pod's name.
fn arguments(args: &str) -> Result<(Pod, Arguments), EnvError> {
    const PAIRS: &str = "KEY=VALUE pairs separated by ';', without control characters";
    let bad = |expected| EnvError::Invalid { variable: "CNI_ARGS", value: args.to_owned(), expected };
    if args.contains(char::is_control) {
        return Err(bad(PAIRS));
    }
    let mut all: BTreeMap<&str, &str> = BTreeMap::new();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| bad(PAIRS))?;
        let concerns_us = ["K8S_POD_", "NOMAD_", OURS].iter().any(|prefix| key.starts_with(prefix));
        // A job's own argument could have another behind a ';', such as the namespace.
        if concerns_us && all.insert(key, value).is_some_and(|other| other != value) {
            return Err(bad("no key twice with two values"));
        }
    }
    let text = |key: &str| all.get(key).copied().unwrap_or_default().to_owned();
    let ours = all.iter().filter(|(key, _)| key.starts_with(OURS));
    let ours = ours.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    // Nomad sets it behind the arguments of the job, which may have Kubernetes' names.
    let is_nomad = all.contains_key("NOMAD_NAMESPACE");
    let pod = if is_nomad {
        let (group, allocation) = (text("NOMAD_GROUP_NAME"), text("NOMAD_ALLOC_ID"));
        let short = allocation.split('-').next().unwrap_or_default();
        let name = if group.is_empty() { allocation.clone() } else { format!("{group}-{short}") };
        Pod { namespace: text("NOMAD_NAMESPACE"), name, uid: allocation }
    } else {
        Pod { namespace: text("K8S_POD_NAMESPACE"), name: text("K8S_POD_NAME"), uid: text("K8S_POD_UID") }
    };
    Ok((pod, Arguments { is_nomad, ours }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn call(variables: &[(&str, &str)]) -> Result<Call, EnvError> {
        let map: BTreeMap<_, _> = variables.iter().copied().collect();
        Call::from_env(|name| map.get(name).map(Into::into))
    }

    const ADD: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "Abc.1"), ("CNI_NETNS", "/run/netns/x"), ("CNI_IFNAME", "eth0")];

    fn add_with(name: &'static str, value: &'static str) -> Result<Call, EnvError> {
        let mut variables = ADD.to_vec();
        variables.retain(|(n, _)| *n != name);
        variables.push((name, value));
        call(&variables)
    }

    #[test]
    fn an_add_needs_all_four() {
        assert!(call(&ADD).is_ok());
        for missing in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert_eq!(add_with(missing, ""), Err(EnvError::Missing(missing)));
        }
    }

    #[test]
    fn a_del_needs_no_namespace() {
        let variables: Vec<_> = ADD.iter().copied().filter(|(n, _)| *n != "CNI_NETNS").collect();
        assert!(matches!(call(&variables), Err(EnvError::Missing("CNI_NETNS"))));
        let del = add_with("CNI_COMMAND", "DEL").unwrap();
        assert_eq!(del.command, Command::Del);
    }

    #[test]
    fn identifiers_that_could_leave_the_registry_are_refused() {
        for bad in ["../x", "a/b", ".a", "-a", "a b", "é"] {
            assert!(add_with("CNI_CONTAINERID", bad).is_err(), "{bad}");
        }
        for bad in ["..", "a/b", "0123456789abcdef", "a b", "a:b"] {
            assert!(add_with("CNI_IFNAME", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_pod_comes_in_any_order_among_others() {
        let args =
            "K8S_POD_UID=u;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_INFRA_CONTAINER_ID=i;K8S_POD_NAME=web-0";
        let pod = add_with("CNI_ARGS", args).unwrap().pod;
        assert_eq!(pod, Pod { namespace: "shop".into(), name: "web-0".into(), uid: "u".into() });
        assert!(add_with("CNI_ARGS", "nonsense").is_err());
    }

    /// As Nomad's client joins them: the job's own arguments, then what it says of the allocation.
    #[test]
    fn a_nomad_allocation_has_a_namespace_and_arguments() {
        let args = "IgnoreUnknown=true;K8S_POD_NAMESPACE=bank;VIPROUTE_VIP=web;VIPROUTE_HEALTH=http:80/ fall=2;other=x;\
                    NOMAD_NAMESPACE=shop;NOMAD_GROUP_NAME=api;NOMAD_JOB_ID=a=b;NOMAD_ALLOC_ID=5b3e7c1a-0000-1111";
        let call = add_with("CNI_ARGS", args).unwrap();
        let uid = "5b3e7c1a-0000-1111".to_owned();
        assert_eq!(call.pod, Pod { namespace: "shop".into(), name: "api-5b3e7c1a".into(), uid });
        let ours = [("VIPROUTE_HEALTH", "http:80/ fall=2"), ("VIPROUTE_VIP", "web")];
        let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(call.arguments, Arguments { is_nomad: true, ours });
    }

    /// Whichever counted, it would be somebody's choice who has none.
    #[test]
    fn one_key_has_one_value() {
        for twice in ["NOMAD_NAMESPACE=shop;NOMAD_NAMESPACE=bank", "VIPROUTE_VIP=a;VIPROUTE_VIP=b"] {
            let error = add_with("CNI_ARGS", twice).unwrap_err().to_string();
            assert!(error.ends_with("expected no key twice with two values"), "{error}");
        }
        assert!(add_with("CNI_ARGS", "K8S_POD_NAME=a;K8S_POD_NAME=a;x=1;x=2").is_ok());
    }

    #[test]
    fn a_pod_without_a_namespace_is_of_the_default_one() {
        assert_eq!(add_with("CNI_ARGS", "K8S_POD_NAME=w1").unwrap().pod.namespace, "default");
        assert_eq!(call(&ADD).unwrap().pod.namespace, "default");
    }

    #[test]
    fn control_characters_are_refused_but_keep_nobody_from_leaving() {
        let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web\u{1b}[2J";
        let error = add_with("CNI_ARGS", args).unwrap_err().to_string();
        assert!(error.contains("without control characters") && !error.contains('\u{1b}'), "{error}");
        let variables: Vec<_> = ADD.iter().copied().filter(|(name, _)| *name != "CNI_COMMAND").collect();
        let del = [&variables[..], &[("CNI_COMMAND", "DEL"), ("CNI_ARGS", args)]].concat();
        assert!(call(&del).is_ok());
    }
}
