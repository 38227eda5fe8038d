//! A network's text, with viproute as its last plugin.

use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Deserializer, Value};

use crate::model::cni::SUPPORTED;

/// What joins a chain.
const ENTRY: &str = r#"{ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true } }"#;

/// The same, by which pods that name no VIP are recorded too.
const REGISTERING: &str =
    r#"{ "type": "viproute", "capabilities": { "io.kubernetes.cri.pod-annotations": true }, "register": true }"#;

/// Why viproute can't join a network.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Somebody else keeps it.
    Link,
    /// It is a single plugin's file.
    NoList,
    /// What the parser says.
    NotJson(String),
    /// Nothing, or two, or a list.
    NotOneObject,
    /// Or an empty one.
    NoPlugins,
    /// A plugin of it.
    NoType,
    /// Those that it names.
    Version(Vec<String>),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("it is a symbolic link, so somebody else keeps it"),
            Self::NoList => f.write_str(
                "it is no .conflist: runtimes read a single plugin from it. Put that into the \"plugins\" of a .conflist",
            ),
            Self::NotJson(error) => write!(f, "it is not valid JSON: {error}"),
            Self::NotOneObject => f.write_str("it is not one JSON object"),
            Self::NoPlugins => f.write_str("it has no list of \"plugins\""),
            Self::NoType => f.write_str("one of its plugins has no \"type\""),
            Self::Version(named) => {
                let named = if named.is_empty() { "missing".to_owned() } else { named.join(", ") };
                let known = SUPPORTED.join(", ");
                write!(f, "its cniVersion is {named}; viproute needs one of {known} (most plugins take 1.0.0)")
            }
        }
    }
}

/// The one part that is changed, as it is in the text.
#[derive(Deserialize)]
struct Plugins<'a> {
    #[serde(borrow)]
    plugins: &'a RawValue,
}

/// Whether viproute's entry in a text that it has made records all pods.
pub fn registers(joined: &str) -> bool {
    joined.contains(REGISTERING)
}

/// The text with viproute's entry; none where it has one. `register`: pods that name no VIP are to be recorded too.
pub fn with_viproute(text: &str, register: bool) -> Result<Option<String>, Wrong> {
    let documents: Result<Vec<Value>, _> = Deserializer::from_str(text).into_iter().collect();
    let documents = documents.map_err(|error| Wrong::NotJson(error.to_string()))?;
    let [Value::Object(network)] = &documents[..] else { return Err(Wrong::NotOneObject) };
    let plugins = network.get("plugins").and_then(Value::as_array).filter(|plugins| !plugins.is_empty());
    let plugins = plugins.ok_or(Wrong::NoPlugins)?;
    let types: Option<Vec<&str>> = plugins.iter().map(|plugin| plugin.get("type")?.as_str()).collect();
    if types.ok_or(Wrong::NoType)?.contains(&"viproute") {
        return Ok(None);
    }
    // A chain of another version would be refused by the plugin, at every pod. A runtime takes the newest of "cniVersions".
    let text_of = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = network.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let versions: Vec<String> = network.get("cniVersion").into_iter().chain(list).map(text_of).collect();
    if !versions.iter().any(|version| SUPPORTED.contains(&version.as_str())) {
        return Err(Wrong::Version(versions));
    }
    inserted(text, if register { REGISTERING } else { ENTRY }).map(Some)
}

/// Behind the last plugin, indented as the list's end says.
fn inserted(text: &str, entry: &str) -> Result<String, Wrong> {
    // A key that is there twice, say: runtimes and this program might take another one each.
    let found: Plugins<'_> = serde_json::from_str(text).map_err(|error| Wrong::NotJson(error.to_string()))?;
    let list = found.plugins.get();
    let begin = list.as_ptr().addr() - text.as_ptr().addr();
    let inner = list.strip_suffix(']').unwrap_or(list);
    let filled = inner.trim_end();
    let space = &inner[filled.len()..];
    let separator = match space.rsplit_once('\n') {
        Some((_, indent)) => format!(",\n{indent}  "),
        None => ", ".to_owned(),
    };
    let at = begin + filled.len();
    Ok(format!("{}{separator}{entry}{}", &text[..at], &text[at..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_but_the_entry_stays_to_the_letter() {
        let odd = r#"{"cniVersion": "1.0.0",   "name":"x", "n":1.50, "plugins":[{"type":"bridge","a":[null,"\u00e9"]} ], "z":{}}"#;
        let expected = odd.replace(r#""\u00e9"]} ]"#, &format!(r#""\u00e9"]}}, {ENTRY} ]"#));
        assert_eq!(with_viproute(odd, false).unwrap(), Some(expected));
        let indented = "{\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    { \"type\": \"ptp\" }\n  ]\n}\n";
        let expected = indented.replace("\n  ]", &format!(",\n    {ENTRY}\n  ]"));
        assert_eq!(with_viproute(indented, false).unwrap(), Some(expected.clone()));
        assert_eq!(with_viproute(&expected, false), Ok(None));
    }

    #[test]
    fn an_entry_that_records_all_pods_is_known_again() {
        let network = r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#;
        let joined = |register| with_viproute(network, register).unwrap().unwrap();
        let parsed: Value = serde_json::from_str(&joined(true)).unwrap();
        assert_eq!(parsed["plugins"][1]["register"], json!(true));
        assert_eq!((registers(&joined(true)), registers(&joined(false))), (true, false));
    }

    #[test]
    fn a_key_that_is_there_twice_is_refused() {
        let twice = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#;
        assert!(matches!(with_viproute(twice, false), Err(Wrong::NotJson(error)) if error.contains("duplicate field")));
    }

    proptest! {
        #[test]
        fn what_is_joined_has_one_plugin_more(
            keys in proptest::collection::btree_map("[a-z]{1,8}", "[ -~]{0,12}", 0..6), plugins in 1usize..5, pretty: bool,
        ) {
            let mut network = json!({ "cniVersion": "1.0.0", "plugins": vec![json!({ "type": "x", "k": keys }); plugins] });
            for (key, value) in keys {
                network[format!("a{key}")] = value.into();
            }
            let text = if pretty { serde_json::to_string_pretty(&network).unwrap() } else { network.to_string() };
            let joined: Value = serde_json::from_str(&with_viproute(&text, false).unwrap().unwrap()).unwrap();
            network["plugins"].as_array_mut().unwrap().push(serde_json::from_str(ENTRY).unwrap());
            prop_assert_eq!(joined, network);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = with_viproute(&text, false);
        }
    }
}
