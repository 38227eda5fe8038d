//! Links and anchors lead somewhere, every page is linked, and the README stays short.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::markdown::{Page, root};

/// Where a link of `page` leads within the repository: the file, and an anchor. None: elsewhere.
fn target(page: &Page, link: &str) -> Option<(PathBuf, Option<String>)> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor.to_owned())));
    let dir = page.path.parent().expect("a page is in a directory");
    Some((if path.is_empty() { page.path.clone() } else { dir.join(path) }, anchor))
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in Page::all() {
        for link in page.links() {
            let Some((path, anchor)) = target(&page, &link) else { continue };
            let found = match anchor {
                _ if !path.exists() => false,
                Some(anchor) => Page::read(&path).anchors().contains(&anchor),
                None => true,
            };
            if !found {
                broken.push(format!("{}: {link}", page.name()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_reached_from_the_readme() {
    let mut open = vec![root().join("README.md")];
    let mut reached = BTreeSet::new();
    while let Some(path) = open.pop() {
        // A link that leads nowhere is another test's.
        let Ok(path) = path.canonicalize() else { continue };
        if path.extension().is_some_and(|ending| ending == "md") && reached.insert(path.clone()) {
            let page = Page::read(&path);
            open.extend(page.links().iter().filter_map(|link| Some(target(&page, link)?.0)));
        }
    }
    let lost: Vec<String> = Page::all().iter().filter(|page| !reached.contains(&page.path)).map(Page::name).collect();
    assert!(lost.is_empty(), "no link leads to: {}", lost.join(", "));
}

#[test]
fn the_readme_is_short_and_names_the_two_commands() {
    let readme = Page::read(&root().join("README.md"));
    assert!(readme.lines() <= 150, "README.md has {} lines: 150 at most", readme.lines());
    for command in ["./install.sh demo", "./install.sh test"] {
        assert!(readme.contains(command), "README.md doesn't name {command}");
    }
}
