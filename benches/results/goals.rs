//! The project's goals, held against the tables.

use serde::Serialize;

use super::series::Series;
use super::table::{Table, Tables};
use crate::contenders::{DIRECT, EXPRESS_SWITCHED, HAPROXY, KUBE_IPTABLES, KUBE_NFTABLES, VIPROUTE, WITHOUT_EXPRESS};

/// A goal and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub text: String,
    pub measured: String,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "**missed**",
            Self::NotMeasured => "not measured",
        }
    }
}

/// CPU time: the table, what its node does, the column, and how many times the pod's own address is the goal.
const CPU_TIME: [(&str, &str, &str, f64); 10] = [
    ("cpu", "", "requests", 1.08),
    ("cpu", "", "64-byte packets", 1.07),
    ("cpu", "", "1,400-byte packets", 1.07),
    ("cpu", "", "connections", 1.0),
    ("cpu", "", "UDP answers", 1.0),
    ("cpu-tracked", " with connection tracking", "requests", 1.25),
    ("cpu-tracked", " with connection tracking", "64-byte packets", 1.3),
    ("cpu-tracked", " with connection tracking", "1,400-byte packets", 1.3),
    ("cpu-tracked", " with connection tracking", "connections", 1.15),
    ("cpu-tracked", " with connection tracking", "UDP answers", 1.15),
];

/// All goals.
pub fn goals(tables: &[&Table]) -> Vec<Goal> {
    let tables = Tables(tables);
    let cpu_time = CPU_TIME.iter().map(|(table, node, column, least)| {
        let text = format!("{column} for the same CPU time{node} ≥ {least:.2} × the pod's own address");
        goal(&text, tables.ratio(table, column, (VIPROUTE, DIRECT)), |ratio| ratio >= *least)
    });
    let mut goals: Vec<Goal> = cpu_time.collect();
    goals.extend([
        flat(tables, "connections for the same CPU time flat (±5 %) to the most services", "services"),
        flat(tables, "packets for the same CPU time flat (±5 %) to the most services", "services-udp"),
        at_most_services(tables),
        always(tables, "> 1.1 × kube-proxy's nftables rules at any number of services", "services", KUBE_NFTABLES, 1.1),
        goal("≥ 3 × HAProxy's connections/s", tables.ratio("data", "connections/s", (VIPROUTE, HAPROXY)), |ratio| {
            ratio >= 3.0
        }),
        zero("0 refused in a rolling update of servers that just exit", refused(tables)),
        zero("0 live connections broken by drain and scale under load", drained(tables)),
        zero("0 connections broken in every survival row, but a removed replica's own", survival(tables)),
        zero("0 conntrack entries left behind", tables.at("data", VIPROUTE, TRACKED).map(Series::sum)),
        goal(
            "≥ 0.8 × of good connections' requests/s kept in a flood of misplaced packets",
            tables.at("flood", VIPROUTE, KEPT).map(|kept| kept.median() / 100.0),
            |kept| kept >= 0.8,
        ),
    ]);
    goals.extend(control(tables));
    goals
}

fn at_most_services(tables: Tables<'_>) -> Goal {
    let text = "≥ 4 × kube-proxy's iptables rules at the most services";
    let column = tables.find("services").and_then(|table| table.columns.last());
    let Some(column) = column else { return goal(text, None, |_| false) };
    let ratio = tables.ratio("services", &column.name, (VIPROUTE, KUBE_IPTABLES));
    goal(&format!("{text} ({})", column.name), ratio, |ratio| ratio >= 4.0)
}

/// viproute's number over another row's, in every column.
fn always(tables: Tables<'_>, text: &str, id: &str, other: &str, least: f64) -> Goal {
    let worst = tables.find(id).and_then(|table| {
        let ratios = table.columns.iter().map(|column| tables.ratio(id, &column.name, (VIPROUTE, other)));
        ratios.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::min)
    });
    goal(text, worst, |worst| worst > least)
}

/// The last column's ratio to the pod's own address, over the first one's: what the machine did in between cancels out.
fn flat(tables: Tables<'_>, text: &str, id: &str) -> Goal {
    let change = tables.find(id).and_then(|table| {
        let of = |name: &str| Some(table.at(VIPROUTE, name)?.ratio?.median);
        Some(of(&table.columns.last()?.name)? / of(&table.columns.first()?.name)?)
    });
    goal(text, change, |change| change >= 0.95)
}

/// viproute's numbers in these columns together; none where one of them wasn't measured.
fn sum(tables: Tables<'_>, id: &str, which: impl Fn(&str) -> bool) -> Option<f64> {
    let columns = tables.find(id)?.columns.iter().filter(|column| which(&column.name));
    let numbers = columns.map(|column| tables.at(id, VIPROUTE, &column.name).map(Series::sum));
    numbers.collect::<Option<Vec<f64>>>().filter(|numbers| !numbers.is_empty()).map(|numbers| numbers.iter().sum())
}

fn refused(tables: Tables<'_>) -> Option<f64> {
    sum(tables, "update", |column| column.ends_with("refused"))
}

fn drained(tables: Tables<'_>) -> Option<f64> {
    sum(tables, "drain", |column| column == DRAIN_COLUMNS[0])
}

/// A cell that can't be measured (viproute has nothing to reload) is none that broke.
fn survival(tables: Tables<'_>) -> Option<f64> {
    let table = tables.find("survival")?;
    let rows = [VIPROUTE, WITHOUT_EXPRESS, EXPRESS_SWITCHED];
    let numbers = rows.iter().flat_map(|row| table.columns.iter().filter_map(|column| table.at(row, &column.name)));
    numbers.map(Series::sum).reduce(|sum, number| sum + number)
}

fn control(tables: Tables<'_>) -> Vec<Goal> {
    let calls = |row: &str| Some(tables.at("calls", row, ADD)?.median());
    let over = |own: Option<f64>| own.zip(calls(PTP)).map(|(own, ptp)| own / ptp);
    let grown = tables.find("replicas-calls").and_then(|table| {
        let of = |name: &str| Some(table.at(ADD, name)?.median());
        Some(of(&table.columns.last()?.name)? / of(&table.columns.first()?.name)?)
    });
    vec![
        goal("ADD ≤ 0.5 × ptp with host-local", over(calls(VIPROUTE)), |ratio| ratio <= 0.5),
        goal("ADD flat to the most replicas (≤ 1.25 ×)", grown, |ratio| ratio <= 1.25),
        goal("pass-through ≤ 0.15 × ptp with host-local", over(calls(PASSED)), |ratio| ratio <= 0.15),
    ]
}

/// Names that the tables of calls share with the goals.
pub const ADD: &str = "ADD";
pub const PTP: &str = "ptp with host-local";
pub const PASSED: &str = "viproute, a pod without a VIP";
/// The column of what good connections keep in a flood.
pub const KEPT: &str = "kept, %";
/// The column of connections the kernel tracks afterwards.
pub const TRACKED: &str = "tracked connections left, of 1,000";
/// The columns of a drain under load.
pub const DRAIN_COLUMNS: [&str; 4] =
    ["live connections broken", "new connections failed", "to a drained replica", "tracked connections"];

/// The columns of a rolling update at a rate of new connections.
pub fn update_columns(rate: f64) -> [String; 4] {
    let rate = super::table::Unit::Count.text(rate);
    ["connections", "refused", "reset or timed out", "repeated SYNs"].map(|what| format!("{rate}/s: {what}"))
}

fn zero(text: &str, number: Option<f64>) -> Goal {
    let measured = number.map_or_else(|| "–".to_owned(), |number| format!("{number:.0}"));
    Goal { text: text.into(), measured, verdict: verdict(number.map(|number| number == 0.0)) }
}

fn goal(text: &str, ratio: Option<f64>, met: impl Fn(f64) -> bool) -> Goal {
    let measured = ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2} ×"));
    Goal { text: text.into(), measured, verdict: verdict(ratio.map(met)) }
}

fn verdict(met: Option<bool>) -> Verdict {
    match met {
        Some(true) => Verdict::Met,
        Some(false) => Verdict::Missed,
        None => Verdict::NotMeasured,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Column, Unit};

    fn table(id: &str, column: &str, rows: &[(&str, f64)]) -> Table {
        let mut table = Table::new(id, "", "");
        let one = |value| Ok(vec![Series::of(vec![value]).unwrap()]);
        let rows = rows.iter().map(|(name, value)| ((*name).to_owned(), one(*value))).collect();
        table.add(&[Column::new(column, Unit::PerSecond)], rows);
        table
    }

    fn first(table: &Table) -> (String, Verdict) {
        let goals = goals(&[table]);
        (goals[0].measured.clone(), goals[0].verdict)
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let requests = |viproute| table("cpu", "requests", &[(DIRECT, 100.0), (VIPROUTE, viproute)]);
        assert_eq!(first(&requests(109.0)), ("1.09 ×".into(), Verdict::Met));
        assert_eq!(first(&requests(107.0)), ("1.07 ×".into(), Verdict::Missed));
        assert_eq!(first(&Table::new("cpu", "", "")), ("–".into(), Verdict::NotMeasured));
    }

    #[test]
    fn every_refused_connection_of_a_rolling_update_counts() {
        let [_, refused_column, ..] = update_columns(1000.0);
        assert_eq!(refused_column, "1,000/s: refused");
        let update = table("update", &refused_column, &[(VIPROUTE, 2.0), (HAPROXY, 7.0)]);
        assert_eq!(refused(Tables(&[&update])), Some(2.0));
        assert_eq!(refused(Tables(&[])), None, "not measured is not 0");
    }
}
