//! A runtime's network configurations, read as libcni reads them (`ConfFiles`, `ConfListFromFile`, `ConfFromFile` in
//! libcni/conf.go).

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The files of a directory that are networks, in the order a runtime takes them. The first is containerd's and CRI-O's.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    // A link to a directory is taken, and can't be read then.
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
    let mut paths: Vec<_> = files.map(|entry| entry.path()).filter(|path| ending(path).is_some()).collect();
    paths.sort();
    paths
}

/// What is behind the last dot, where it is a configuration's. A name may begin with that dot.
fn ending(path: &Path) -> Option<&'static str> {
    let (_, ending) = path.file_name()?.to_str()?.rsplit_once('.')?;
    ["conflist", "conf", "json"].into_iter().find(|known| *known == ending)
}

/// What a network configuration says.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// It is a list, by its file's name.
    pub is_list: bool,
    /// What it is called; a single plugin's may have no name.
    pub name: Option<String>,
    /// Its plugins, in order.
    pub plugins: Vec<Map<String, Value>>,
    /// `cniVersion`, and `cniVersions`: a runtime takes the newest it knows.
    pub versions: Vec<String>,
}

impl Content {
    /// Of a file; the error is the rest of a sentence that begins with the file's name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("can't be read: {e}"))?;
        Self::parse(&text, is_list(path))
    }

    /// What libcni makes of a text.
    pub fn parse(text: &str, is_list: bool) -> Result<Self, String> {
        let whole: Value = serde_json::from_str(text).map_err(|e| format!("is not valid JSON: {e}"))?;
        let whole = whole.as_object().ok_or("is not a JSON object")?;
        let plugins = if is_list { list(whole)? } else { single(whole)? };
        let name = whole.get("name").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { is_list, name, plugins, versions: versions(whole)? })
    }

    /// It gives a pod no network.
    pub fn is_loopback(&self) -> bool {
        self.plugins.iter().all(|plugin| type_of(plugin) == "loopback")
    }
}

/// Whether a file is read as a list of plugins.
pub fn is_list(path: &Path) -> bool {
    ending(path) == Some("conflist")
}

fn list(whole: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    if whole.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("has no \"name\"".to_owned());
    }
    let plugins =
        whole.get("plugins").ok_or("has no \"plugins\"")?.as_array().ok_or("has \"plugins\" that are no list")?;
    if plugins.is_empty() {
        return Err("has no plugin in \"plugins\"".to_owned());
    }
    let objects = plugins.iter().map(|plugin| plugin.as_object().cloned());
    let plugins: Vec<_> = objects.collect::<Option<_>>().ok_or("has a plugin that is no object")?;
    if plugins.iter().any(|plugin| type_of(plugin).is_empty()) {
        return Err("has a plugin without \"type\"".to_owned());
    }
    Ok(plugins)
}

fn single(whole: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    if !type_of(whole).is_empty() {
        return Ok(vec![whole.clone()]);
    }
    Err(if whole.contains_key("plugins") {
        "is a list of plugins, which runtimes take from a .conflist only".to_owned()
    } else {
        "has no \"type\"".to_owned()
    })
}

fn versions(whole: &Map<String, Value>) -> Result<Vec<String>, String> {
    let text =
        |value: &Value, key: &str| value.as_str().map(str::to_owned).ok_or(format!("has a {key:?} that is no text"));
    let mut versions = Vec::new();
    if let Some(version) = whole.get("cniVersion") {
        versions.push(text(version, "cniVersion")?);
    }
    if let Some(list) = whole.get("cniVersions") {
        let list = list.as_array().ok_or("has \"cniVersions\" that are no list")?;
        for version in list {
            versions.push(text(version, "cniVersions")?);
        }
    }
    Ok(versions)
}

/// A plugin's `type`.
pub fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, is_list: bool) -> String {
        Content::parse(text, is_list).err().unwrap_or_else(|| panic!("{text} was taken"))
    }

    #[test]
    fn what_libcni_refuses() {
        for (text, wrong) in [
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#, "has no \"name\""),
            (r#"{"name":"n"}"#, "has no \"plugins\""),
            (r#"{"name":"n","plugins":{}}"#, "has \"plugins\" that are no list"),
            (r#"{"name":"n","plugins":[]}"#, "has no plugin in \"plugins\""),
            (r#"{"name":"n","plugins":[7]}"#, "has a plugin that is no object"),
            (r#"{"name":"n","plugins":[{"type":"ptp"},{}]}"#, "has a plugin without \"type\""),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"ptp"}]}"#, "has a \"cniVersion\" that is no text"),
            (
                r#"{"name":"n","cniVersions":"1.0.0","plugins":[{"type":"ptp"}]}"#,
                "has \"cniVersions\" that are no list",
            ),
            ("[]", "is not a JSON object"),
        ] {
            assert_eq!(refused(text, true), wrong, "{text}");
        }
        assert!(refused("", true).starts_with("is not valid JSON"));
        assert!(refused(r#"{"name":"n","plugins":[{"type":"ptp"}]}"#, false).starts_with("is a list of plugins"));
        assert_eq!(refused("{}", false), "has no \"type\"");
        assert_eq!(Content::parse(r#"{"type":"ptp"}"#, false).map(|content| content.plugins.len()), Ok(1));
    }

    #[test]
    fn names_of_files() {
        let of = |name: &str| ending(Path::new("/d").join(name).as_path());
        assert_eq!(
            (of("10-a.conflist"), of(".10-a.conf"), of(".json")),
            (Some("conflist"), Some("conf"), Some("json"))
        );
        assert_eq!((of("conflist"), of("10-a.conflist.orig"), of("10-a.CONF")), (None, None, None));
    }
}
