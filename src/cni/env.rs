//! The environment a runtime calls a plugin with (CNI spec, section 2, "Parameters").

use std::path::PathBuf;

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as it should be?
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

/// One attachment, in the runtime's terms: a container and the interface that joins it to the network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

/// The pod, as `CNI_ARGS` tells it. Empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`
    pub namespace: String,
    /// `K8S_POD_NAME`
    pub name: String,
    /// `K8S_POD_UID`
    pub uid: String,
}

/// A call, as far as the environment says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is to be done.
    pub command: Command,
    /// To which attachment; ADD, DEL and CHECK have one.
    pub attachment: Option<Attachment>,
    /// `CNI_NETNS`; ADD and CHECK have one, DEL may.
    pub netns: Option<PathBuf>,
    /// From `CNI_ARGS`.
    pub pod: Pod,
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
        let mut call = Self { command, attachment: None, netns: None, pod: Pod::default() };
        if !matches!(command, Command::Add | Command::Del | Command::Check) {
            return Ok(call);
        }
        call.attachment = Some(Attachment {
            container_id: container_id(required("CNI_CONTAINERID")?)?,
            ifname: ifname(required("CNI_IFNAME")?)?,
        });
        call.netns = match command {
            Command::Del => text("CNI_NETNS")?,
            _ => Some(required("CNI_NETNS")?),
        }
        .map(PathBuf::from);
        if let Some(args) = text("CNI_ARGS")? {
            call.pod = pod(&args)?;
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

/// `CNI_ARGS` is `KEY=VALUE;…`. Keys that are not the pod's are for others.
fn pod(args: &str) -> Result<Pod, EnvError> {
    let mut pod = Pod::default();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(EnvError::Invalid {
                variable: "CNI_ARGS",
                value: args.to_owned(),
                expected: "KEY=VALUE pairs separated by ';'",
            });
        };
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            _ => {}
        }
    }
    Ok(pod)
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
}
