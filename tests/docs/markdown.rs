//! As much of Markdown as the documentation uses: headings, tables, links, fenced blocks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub struct Page {
    pub path: PathBuf,
    text: String,
}

/// A fenced block: its language, and its lines.
pub struct Block {
    pub language: String,
    pub text: String,
}

/// A row of a table, cell by cell.
#[derive(Debug)]
pub struct Row(Vec<String>);

impl Row {
    pub fn cell(&self, column: usize) -> &str {
        self.0.get(column).map_or("", String::as_str)
    }

    /// All that is between backquotes in a cell.
    pub fn code(&self, column: usize) -> Vec<String> {
        let parts: Vec<&str> = self.cell(column).split('`').collect();
        parts.iter().skip(1).step_by(2).map(|part| (*part).to_owned()).collect()
    }
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        Self { path: path.to_owned(), text }
    }

    /// A page of the reference.
    pub fn reference(name: &str) -> Self {
        Self::read(&root().join("docs/reference").join(name))
    }

    /// Every page of the repository.
    pub fn all() -> Vec<Self> {
        let mut pages = Vec::new();
        for dir in ["", "docs"] {
            collect(&root().join(dir), !dir.is_empty(), &mut pages);
        }
        assert!(pages.len() > 20, "only {} pages were found", pages.len());
        pages
    }

    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    pub fn contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    pub fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }

    /// The lines of prose, without fenced blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut fenced = false;
        self.text.lines().filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fenced && !fence
        })
    }

    pub fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
        for line in self.text.lines() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(language), None) => open = Some(Block { language: language.to_owned(), text: String::new() }),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block has no end", self.name());
        blocks
    }

    /// The rows of the tables below a heading, up to the next one, each without its head.
    fn tables(&self, heading: &str) -> Vec<Vec<Row>> {
        let mut lines = self.prose().skip_while(|line| *line != heading);
        assert!(lines.next().is_some(), "{} has no heading {heading:?}", self.name());
        let section: Vec<&str> = lines.take_while(|line| !line.starts_with('#')).collect();
        let tables = section.split(|line| !line.starts_with('|')).filter(|table| !table.is_empty());
        tables.map(|table| table.iter().skip(2).map(|line| row(line)).collect()).collect()
    }

    /// The first table below a heading; empty where the section has none.
    pub fn table(&self, heading: &str) -> Vec<Row> {
        self.tables(heading).into_iter().next().unwrap_or_default()
    }

    /// The second table below a heading, which must be there.
    pub fn second_table(&self, heading: &str) -> Vec<Row> {
        self.tables(heading).into_iter().nth(1).unwrap_or_else(|| panic!("{}: {heading}", self.name()))
    }

    /// The first column's code of a table, which must have rows.
    pub fn keys(&self, heading: &str) -> BTreeSet<String> {
        let rows = self.table(heading);
        assert!(!rows.is_empty(), "{}: no table below {heading:?}", self.name());
        rows.iter().flat_map(|row| row.code(0)).collect()
    }

    /// What `#…` may name on this page, as GitHub makes it of the headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose().filter(|line| line.starts_with('#'));
        headings.map(|line| slug(line.trim_start_matches('#').trim())).collect()
    }

    /// The targets of all links and pictures.
    pub fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in self.prose() {
            let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
            let targets = outside.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            links.extend(targets.map(str::to_owned));
        }
        links
    }
}

fn collect(dir: &Path, deep: bool, pages: &mut Vec<Page>) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).expect("list a directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && deep {
            collect(&path, deep, pages);
        } else if path.extension().is_some_and(|ending| ending == "md") {
            pages.push(Page::read(&path));
        }
    }
}

fn row(line: &str) -> Row {
    const BAR: &str = "\u{1}";
    let line = line.replace("\\|", BAR);
    let cells = line.trim().trim_start_matches('|').trim_end_matches('|').split('|');
    Row(cells.map(|cell| cell.replace(BAR, "|").trim().to_owned()).collect())
}

fn slug(heading: &str) -> String {
    let heading = heading.to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn tables_and_links_are_read() {
    let text =
        "# A b: `C`\n\n| k | d |\n|---|---|\n| `x`, `y` | a\\|b |\n\n[t](u.md#v) `[no](no)`\n\n```toml\n[n](n)\n```\n";
    let page = Page { path: PathBuf::from("p.md"), text: text.to_owned() };
    let rows = page.table("# A b: `C`");
    assert_eq!((rows.len(), rows[0].code(0), rows[0].cell(1)), (1, vec!["x".to_owned(), "y".to_owned()], "a|b"));
    assert_eq!(page.anchors(), BTreeSet::from(["a-b-c".to_owned()]));
    assert_eq!(page.links(), ["u.md#v"]);
    assert_eq!((page.blocks().len(), page.blocks()[0].language.as_str()), (1, "toml"));
}
