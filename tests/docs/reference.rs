//! The reference's tables, each against what the code has.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;
use viproute::cni::protocol;
use viproute::internals::api::protocol::LeaseState;
use viproute::internals::dataplane::{ids, settings};
use viproute::internals::model::NodeId;
use viproute::internals::net::PROTOCOL;
use viproute::node::config;

use super::code::{Help, Opt, VIPROUTECTL, complaint, listed, refusal, sources};
use super::markdown::{Page, Row, root};

/// Both directions at once, each with a sentence of its own.
fn agree(page: &Page, documented: &BTreeSet<String>, code: &BTreeSet<String>) {
    let missing: Vec<_> = code.difference(documented).collect();
    let stale: Vec<_> = documented.difference(code).collect();
    assert!(missing.is_empty(), "{} lacks what the code has: {missing:?}", page.name());
    assert!(stale.is_empty(), "{} has what the code lacks: {stale:?}", page.name());
}

#[test]
fn annotations() {
    let page = Page::reference("annotations.md");
    let message = refusal(&json!({}), &json!({ "viproute.io/vip": "web", "viproute.io/x": "y" }));
    agree(&page, &page.keys("# Annotations"), &listed(&message, "expected ", "\n"));
}

#[test]
fn options_of_checks() {
    let page = Page::reference("annotations.md");
    let message = refusal(&json!({}), &json!({ "viproute.io/vip": "web", "viproute.io/health": "nonsense" }));
    let words = message.split([' ', ',']).filter(|word| word.split_once('=').is_some_and(|(key, _)| key.len() > 2));
    let code: BTreeSet<String> = words.map(str::to_owned).collect();
    // The page has two tables below that heading; the second one is that of the options.
    let options = page.second_table("## Checks");
    let documented = options.iter().map(|row| format!("{}={}", row.code(0)[0], row.code(1)[0])).collect();
    agree(&page, &documented, &code);
    for check in page.keys("## Checks") {
        let kind = check.split(':').next().unwrap_or_default();
        assert!(message.contains(&format!("\"{kind}")), "{kind} is no check: {message}");
    }
}

#[test]
fn keys_of_the_conflist() {
    let page = Page::reference("conflist.md");
    let pod = json!({ "viproute.io/vip": "web" });
    let mut code = listed(&refusal(&json!({ "nonsense": 1 }), &pod), "expected one of ", "\n");
    assert!(code.remove("group"), "group is no key any more: {code:?}");
    let group = listed(&refusal(&json!({ "group": { "nonsense": 1 } }), &pod), "expected one of ", "\n");
    code.extend(group.iter().map(|key| format!("group.{key}")));
    agree(&page, &page.keys("# The conflist entry"), &code);
}

#[test]
fn defaults_of_the_conflist() {
    let page = Page::reference("conflist.md");
    let entry = |keys: serde_json::Value| {
        let mut entry = json!({ "cniVersion": "1.0.0", "name": "net", "type": "viproute" });
        entry.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        format!("{:?}", protocol::Config::parse(entry.to_string().as_bytes()).expect("an accepted entry"))
    };
    let without = entry(json!({}));
    for row in page.table("# The conflist entry") {
        let (key, default) = (&row.code(0)[0], &row.code(1)[0]);
        let value: serde_json::Value =
            serde_json::from_str(default).unwrap_or_else(|e| panic!("{key}: {default}: {e}"));
        let keys = match key.strip_prefix("group.") {
            Some(inner) => json!({ "group": { inner: value } }),
            None => json!({ key.as_str(): value }),
        };
        assert_eq!(entry(keys), without, "{key} is not {default} by default");
    }
}

/// The tables that documented keys are in: `""`, `dhcp.`, `dhcp.relay.`, `pin[].`.
fn tables(keys: &BTreeSet<String>) -> BTreeSet<String> {
    let mut tables = BTreeSet::from([String::new()]);
    for key in keys {
        tables.extend(key.match_indices('.').map(|(dot, _)| key[..=dot].to_owned()));
    }
    tables
}

#[test]
fn keys_of_viprouted_toml() {
    let page = Page::reference("viprouted-toml.md");
    let documented = page.keys("# viprouted.toml");
    let tables = tables(&documented);
    let mut code = BTreeSet::new();
    for table in &tables {
        for key in listed(&complaint(&with_nonsense(table)), "(there are: ", ")") {
            // A table is documented by its keys.
            let inner = [format!("{table}{key}."), format!("{table}{key}[].")];
            if !inner.iter().any(|inner| tables.contains(inner)) {
                code.insert(format!("{table}{key}"));
            }
        }
    }
    agree(&page, &documented, &code);
    let shipped = std::fs::read_to_string(root().join("conf/viprouted.toml")).expect("the shipped file");
    for key in &documented {
        let name = key.rsplit('.').next().unwrap_or(key);
        assert!(shipped.contains(name), "conf/viprouted.toml doesn't show {key}");
    }
}

/// A configuration with a key that doesn't exist in that table, and with what the table can't be without.
fn with_nonsense(table: &str) -> String {
    match table {
        "" => "nonsense = 1".to_owned(),
        "pin[]." => "[[pin]]\nvip = \"a/b\"\naddress = \"10.0.0.1\"\nnonsense = 1".to_owned(),
        "gateway[]." => "[[gateway]]\nkind = \"bird\"\nnonsense = 1".to_owned(),
        "dhcp.relay." => {
            "allow = [\"10.0.0.0/8\"]\n[dhcp.relay]\nserver = \"192.0.2.1\"\nsubnet = \"10.0.0.0\"\nnonsense = 1"
                .to_owned()
        }
        "dhcp6.relay." => {
            "allow = [\"fd00::/8\"]\n[dhcp6.relay]\nserver = \"fd00::1\"\nsubnet = \"fd00:1::\"\nnonsense = 1"
                .to_owned()
        }
        other => format!("[{}]\nnonsense = 1", other.trim_end_matches('.')),
    }
}

#[test]
fn defaults_of_viprouted_toml() {
    let page = Page::reference("viprouted-toml.md");
    let mut count = 0;
    for row in page.table("# viprouted.toml") {
        // A default that depends on something has words beside its value.
        let Some(default) = row.code(1).into_iter().next().filter(|code| format!("`{code}`") == row.cell(1)) else {
            continue;
        };
        let key = &row.code(0)[0];
        // A table that isn't there may mean something else than one that is empty.
        let (empty, text) = match key.rsplit_once('.') {
            Some((table, key)) => (format!("[{table}]"), format!("[{table}]\n{key} = {default}")),
            None => (String::new(), format!("{key} = {default}")),
        };
        let without = config::Config::parse(&empty).unwrap_or_else(|error| panic!("{empty}: {error}"));
        let with = config::Config::parse(&text).unwrap_or_else(|error| panic!("{key} = {default}: {error}"));
        assert_eq!(with, without, "{key} is not {default} by default");
        count += 1;
    }
    assert!(count >= 10, "only {count} defaults were found");
}

/// One option's row: its name with its value, its default.
fn is_described(row: &Row, option: &Opt) -> bool {
    let values = option.values.join("|");
    let defaults_told = option.defaults.iter().all(|default| row.code(1).contains(default));
    let has_default = if option.has_default { !row.cell(1).is_empty() } else { row.code(1).is_empty() };
    row.code(0)[0].contains(&values) && defaults_told && has_default
}

fn compare_options(page: &Page, rows: &[Row], options: &[Opt]) {
    let name = |row: &Row| row.code(0)[0].split(' ').next().unwrap_or_default().trim_start_matches("--").to_owned();
    let documented = rows.iter().map(name).collect();
    let code = options.iter().map(|option| option.name.clone()).collect();
    agree(page, &documented, &code);
    for option in options {
        let row = rows.iter().find(|row| name(row) == option.name).expect("compared above");
        assert!(is_described(row, option), "{}: {row:?} is not as --help has it: {option:?}", page.name());
    }
}

fn options_of(help: Help, without: &[&str]) -> Vec<Opt> {
    let mut options = help.options;
    options.retain(|option| !["help", "version"].contains(&option.name.as_str()));
    options.retain(|option| !without.contains(&option.name.as_str()));
    options
}

#[test]
fn verbs_and_options_of_viproutectl() {
    const GLOBAL: [&str; 2] = ["data-dir", "allocator"];
    let page = Page::reference("cli.md");
    let help = Help::of(VIPROUTECTL, None);
    let verbs = help.verbs.clone();
    agree(&page, &page.second_table("## viproutectl").iter().flat_map(|row| row.code(0)).collect(), &verbs);
    compare_options(&page, &page.table("## viproutectl"), &options_of(help, &[]));
    for verb in &verbs {
        let options = options_of(Help::of(VIPROUTECTL, Some(verb)), &GLOBAL);
        compare_options(&page, &page.table(&format!("### {verb}")), &options);
    }
}

#[test]
fn options_of_viprouted() {
    let page = Page::reference("cli.md");
    compare_options(&page, &page.table("## viprouted"), &options_of(Help::of_viprouted(), &[]));
}

#[test]
fn verbs_of_install_sh() {
    let page = Page::reference("cli.md");
    let usage = Command::new(root().join("install.sh")).output().expect("run install.sh");
    let usage = String::from_utf8(usage.stderr).expect("text");
    let calls = usage.lines().filter_map(|line| line.split_once("./install.sh ")?.1.split("  ").next());
    agree(&page, &page.keys("## install.sh"), &calls.map(str::to_owned).collect());
}

/// Words that begin with `viproute_`, as metrics are named.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("viproute_")).map(str::to_owned).collect()
}

#[test]
fn metrics() {
    let page = Page::reference("metrics.md");
    let documented = page.keys("# Metrics").into_iter().filter(|key| key.starts_with("viproute_")).collect();
    // A family without values isn't on the page that viprouted serves, so they are read where they are named.
    let texts = sources(".rs");
    let names = texts.iter().flat_map(|text| text.split('"').skip(1).step_by(2));
    let code = names.filter(|name| metrics_in(name) == BTreeSet::from([(*name).to_owned()])).map(str::to_owned);
    agree(&page, &documented, &code.collect());
    let dashboard = std::fs::read_to_string(root().join("conf/grafana.json")).expect("the dashboard");
    for shown in metrics_in(&dashboard) {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| shown.strip_suffix(part)).unwrap_or(&shown);
        assert!(documented.contains(family), "conf/grafana.json asks for {shown}, which does not exist");
    }
    for block in page.blocks() {
        let unknown: Vec<_> = metrics_in(&block.text).difference(&documented).cloned().collect();
        assert!(unknown.is_empty(), "an alert asks for {unknown:?}");
    }
    let alerts = std::fs::read_to_string(root().join("conf/alerts.yaml")).expect("the alerts");
    let unknown: Vec<_> = metrics_in(&alerts).difference(&documented).cloned().collect();
    assert!(unknown.is_empty(), "conf/alerts.yaml asks for {unknown:?}");
}

/// By Prometheus' own tool: each alert fires where it should, and none on a node that is well.
#[test]
fn alerts() {
    let page = Page::reference("metrics.md");
    let text = std::fs::read_to_string(root().join("conf/alerts.yaml")).expect("the alerts");
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned);
    agree(&page, &page.keys("## Alerts worth having"), &names.collect());
    for arguments in [["check", "rules", "conf/alerts.yaml"], ["test", "rules", "testdata/alerts.test.yaml"]] {
        let mut promtool = Command::new("promtool");
        let done = promtool.current_dir(root()).args(arguments).output();
        let done = done.unwrap_or_else(|error| panic!("promtool ({error}): apt-get install prometheus"));
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    }
}

#[test]
fn outcomes_of_packets() {
    let page = Page::reference("metrics.md");
    // A label's values are on viprouted's page only once it has a VIP, so they are read where they are written.
    let texts = sources(".rs");
    let family =
        texts.iter().find_map(|text| text.split_once("\"viproute_flow_owner_packets_total\"")).expect("the family").1;
    let written = family.split_once(".with_label_values").expect("its values").0;
    let labels = written.split("(\"").skip(1).filter_map(|rest| rest.split_once("\", "));
    let code = labels.map(|(label, _)| label.to_owned()).collect();
    agree(&page, &page.keys("## Outcomes"), &code);
}

#[test]
fn states_of_leases() {
    let page = Page::read(&root().join("docs/concepts/leases.md"));
    agree(&page, &page.keys("## States"), &LeaseState::ALL.map(|state| state.name().to_owned()).into());
}

/// People filter Events by them.
#[test]
fn reasons_of_events() {
    let page = Page::read(&root().join("docs/how-to/kubernetes.md"));
    let text = std::fs::read_to_string(root().join("src/node/kubernetes/events.rs")).expect("the events");
    let code = text.split("#[cfg(test)]").next().unwrap_or_default().split('"').skip(1).step_by(2);
    let is_reason = |word: &&str| {
        let capitals = word.chars().filter(char::is_ascii_uppercase).count();
        capitals > 1 && word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(char::is_alphanumeric)
    };
    agree(&page, &page.keys("### Events, status, doctor"), &code.filter(is_reason).map(str::to_owned).collect());
}

#[test]
fn error_codes() {
    let page = Page::reference("errors.md");
    let texts = sources(".rs");
    let codes = texts.iter().find_map(|text| text.split_once("pub enum Code {")?.1.split('}').next());
    let numbers = codes.expect("the enumeration of codes").lines().filter_map(|line| {
        let (_, number) = line.trim().strip_suffix(',')?.split_once(" = ")?;
        number.parse::<u16>().ok().map(|number| number.to_string())
    });
    let documented = page.table("# Errors").iter().map(|row| row.cell(0).to_owned()).collect();
    agree(&page, &documented, &numbers.collect());
}

#[test]
fn ids_of_kernel_objects() {
    let page = Page::reference("kernel-objects.md");
    let hex = |id: Option<u32>| format!("{:#010x}", id.expect("an id"));
    let far = ids::peer_link_local(NodeId([192, 0, 2, 2].into())).to_string();
    let (first, last) = (ids::reply_table(0), ids::reply_table(ids::MAX_VIPS - 1));
    let code = [
        vec![PROTOCOL.to_string()],
        vec![hex(ids::nexthop(0))],
        vec![hex(Some(ids::group(0)))],
        vec![hex(Some(ids::local_group(0)))],
        vec![hex(ids::peer_nexthop(0))],
        vec![ids::HOST_DEVICE_PREFIX.to_owned()],
        vec![ids::POD_DEVICE.to_owned()],
        vec![ids::TUNNEL_DEVICE.to_owned(), ids::TUNNEL_PORT.to_string()],
        vec![ids::HOST_ADDRESS.to_string()],
        vec![ids::HOST_LINK_LOCAL.to_string(), ids::POD_LINK_LOCAL.to_string()],
        vec![far.trim_end_matches("c000:202").to_owned()],
        vec![ids::TABLE.to_string()],
        vec![format!("{:#04x}", ids::INWARD_TOS), "local".to_owned()],
        vec![first.to_string(), last.to_string()],
        vec![ids::RULE_PRIORITY.to_string()],
    ];
    let documented: Vec<Vec<String>> = page.table("## Numbers and names").iter().map(|row| row.code(1)).collect();
    assert_eq!(documented, code, "{}: numbers and names", page.name());
    let settings = settings::SETTINGS.into_iter().chain(settings::SETTINGS_IPV6).chain([settings::NO_REDIRECTS]);
    let settings = settings.map(|(name, value)| format!("{name} = {value}")).collect();
    let rows = page.table("## Settings");
    let documented = rows.iter().map(|row| format!("{} = {}", row.code(0)[0], row.code(1)[0])).collect();
    agree(&page, &documented, &settings);
}

#[test]
fn pinned_maps() {
    let page = Page::reference("kernel-objects.md");
    let texts = [sources(".bpf.c"), sources(".h")].concat();
    let maps = texts.iter().flat_map(|text| text.lines()).filter(|line| line.contains("SEC(\".maps\")"));
    let own = maps.filter_map(|line| line.strip_prefix("} ")?.split(' ').next());
    // Those with the clients' addresses have another name in the object for IPv6.
    let lines = || texts.iter().flat_map(|text| text.lines());
    let of_ipv6 = lines().filter_map(|line| line.strip_prefix("#define ")?.split(' ').nth(1));
    let of_ipv6 = of_ipv6.filter(|name| name.ends_with("6_v1"));
    let code = own.chain(of_ipv6).map(str::to_owned).collect();
    agree(&page, &page.keys("## Pinned maps"), &code);
}
