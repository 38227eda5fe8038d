//! What can be copied out of the documentation is accepted by the programs.

use serde_json::{Value, json};
use viproute::cni::protocol;
use viproute::node::config;

use super::markdown::{Block, Page};

fn blocks(language: &str) -> Vec<(String, Block)> {
    let mut found = Vec::new();
    for page in Page::all() {
        let of_page = page.blocks().into_iter().filter(|block| block.language == language);
        found.extend(of_page.map(|block| (page.name(), block)));
    }
    assert!(!found.is_empty(), "no block of {language}");
    found
}

/// viproute's entries in a conflist, or the block itself where it is one.
fn entries(value: &Value) -> Vec<Value> {
    let plugins = value["plugins"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    plugins.into_iter().filter(|plugin| plugin["type"] == "viproute").collect()
}

#[test]
fn conflist_entries_are_accepted() {
    let mut count = 0;
    for (page, block) in blocks("json") {
        let value: Value = serde_json::from_str(&block.text).unwrap_or_else(|e| panic!("{page}: {e}\n{}", block.text));
        for mut entry in entries(&value) {
            entry["name"] = json!("web");
            entry["cniVersion"] = value["cniVersion"].as_str().map_or_else(|| json!("1.0.0"), |text| json!(text));
            protocol::Config::parse(entry.to_string().as_bytes())
                .unwrap_or_else(|e| panic!("{page}: {e}\n{}", block.text));
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} entries of viproute's were found");
}

/// The files that a block of shell writes so: `cat >…/viprouted.toml <<'EOF'`.
fn written(shell: &str) -> impl Iterator<Item = &str> {
    let begun = shell.split("viprouted.toml <<'EOF'\n").skip(1);
    begun.map(|rest| rest.split_once("EOF\n").expect("the end of a file").0)
}

#[test]
fn configurations_of_viprouted_are_accepted() {
    let mut texts: Vec<(String, String)> = Vec::new();
    for (page, block) in blocks("toml") {
        let value: toml::Table = block.text.parse().unwrap_or_else(|e| panic!("{page}: {e}\n{}", block.text));
        // podman's containers.conf is TOML too.
        if !value.contains_key("network") {
            texts.push((page, block.text));
        }
    }
    for (page, block) in blocks("") {
        texts.extend(written(&block.text).map(|text| (page.clone(), text.to_owned())));
    }
    assert!(texts.len() >= 8, "only {} configurations were found", texts.len());
    for (page, text) in texts {
        config::Config::parse(&text).unwrap_or_else(|e| panic!("{page}: {e}\n{text}"));
    }
}
