//! Pages of the documentation, as who copies their commands has them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The commands of a page, block by block; what they print is left out.
pub fn blocks(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/quickstart").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut blocks, mut block) = (Vec::new(), None::<(String, String)>);
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            match block.take() {
                Some(whole) => blocks.push(whole),
                None => block = Some((language.to_owned(), String::new())),
            }
        } else if let Some((_, text)) = &mut block {
            text.push_str(line);
            text.push('\n');
        }
    }
    let commands = blocks.into_iter().filter(|(language, text)| language.is_empty() && !text.starts_with(" VIP "));
    commands.map(|(_, text)| text).collect()
}

/// A script of those blocks, each announced by its first line. Before the block that begins so, people wait for this.
pub fn script(blocks: &[String], waits: &[(&str, &str)]) -> String {
    let mut script = String::new();
    for block in blocks {
        if let Some((_, condition)) = waits.iter().find(|(begin, _)| block.starts_with(begin)) {
            writeln!(script, "until {condition}; do sleep 0.05; done").expect("memory");
        }
        let title = block.lines().next().unwrap_or_default().replace('\'', "");
        write!(script, "echo '== {title}'\n{block}").expect("memory");
    }
    script + "echo '== the end'\n"
}
